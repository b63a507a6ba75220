//! Secrets in texts: what goes to a log, an error or an answer passes here, and every key in it is cut short.

/// Prefixes of keys and tokens, and how much of the rest is shown.
const SECRET_PREFIXES: &[&str] =
    &["rk_live_", "at_live_", "nt_live_", "ot_live_", "rk_", "at_", "nt_", "ot_", "br_", "arr_"];
const SHOWN: usize = 4;
/// Bytes of the secret that must follow a short prefix before it counts as one, so that words such as `br_tag` stay.
const SHORT_PREFIX_TAIL: usize = 16;

/// Words after which, with `:` or `=` between, a secret follows whatever its shape.
const SECRET_NAMES: &[&str] = &["api_key", "api-key", "apikey", "token"];
const HIDDEN: &str = "[REDACTED]";

/// Hides what is named as a secret, and cuts known keys and tokens short: of them the prefix and four characters stay.
pub fn redact(text: &str) -> String {
    redact_shapes(&redact_names(text))
}

/// `token=…`, `api_key: …`, `authorization: bearer …`, whatever the case and with or without quotes.
fn redact_names(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(value) = lower.get(at..).and_then(|rest| next_named(rest, at)) {
        let end = lower[value..]
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '}' | ')' | ']'))
            .map_or(lower.len(), |length| value + length);
        out.push_str(&text[at..value]);
        // What has a known shape is more useful cut short than hidden.
        let shown = &text[value..end];
        out.push_str(if shown.is_empty() || redact_shapes(shown) != shown { shown } else { HIDDEN });
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

/// Where the next value of a secret begins, on the scale of the whole text.
fn next_named(rest: &str, offset: usize) -> Option<usize> {
    let after = |from: usize| {
        let tail = rest[from..].trim_start_matches(['"', '\'']).trim_start();
        let tail = tail.strip_prefix([':', '='])?.trim_start().trim_start_matches(['"', '\'']);
        Some(rest.len() - tail.len())
    };
    let named = SECRET_NAMES.iter().flat_map(|name| rest.match_indices(name).map(|(at, name)| at + name.len()));
    let bearer = rest.match_indices("authorization").filter_map(|(at, name)| {
        let value = after(at + name.len())?;
        Some(value + rest[value..].strip_prefix("bearer ").map(|_| "bearer ".len())?)
    });
    named.filter_map(after).chain(bearer).min().map(|at| at + offset)
}

fn redact_shapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    'outer: while !rest.is_empty() {
        let at_word_start = out.chars().next_back().is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
        if at_word_start {
            for prefix in SECRET_PREFIXES {
                let Some(tail) = rest.strip_prefix(prefix) else { continue };
                let length = tail.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'-').count();
                if length > SHOWN && (prefix.ends_with("live_") || length >= SHORT_PREFIX_TAIL) {
                    out.push_str(prefix);
                    out.push_str(&tail[..SHOWN]);
                    out.push('…');
                    rest = &tail[length..];
                    continue 'outer;
                }
            }
        }
        let next = rest.chars().next().map_or(1, char::len_utf8);
        out.push_str(&rest[..next]);
        rest = &rest[next..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s9_secrets_are_cut_short() {
        for (text, shown) in [
            ("key rk_live_0123456789abcdef end", "key rk_live_0123… end"),
            ("Bearer at_live_abcdef,", "Bearer at_live_abcd…,"),
            ("nt_live_ffffffffffff", "nt_live_ffff…"),
            ("br_0123456789abcdef0123456789abcdef", "br_0123…"),
            ("http://br_0123456789abcdef0123456789abcdef/", "http://br_0123…/"),
            ("a br_tag and rk_x stay", "a br_tag and rk_x stay"),
            ("über rk_live_0123456789 ß", "über rk_live_0123… ß"),
            ("TOKEN=abc end", "TOKEN=[REDACTED] end"),
            ("über token: ß, end", "über token: [REDACTED], end"),
            (r#"{"api_key": "secret", "n": 1}"#, r#"{"api_key": "[REDACTED]", "n": 1}"#),
            ("api-key=a&apikey=b", "api-key=[REDACTED]&apikey=[REDACTED]"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer [REDACTED]"),
            ("token=rk_live_0123456789abcdef", "token=rk_live_0123…"),
            ("token=", "token="),
            ("no token here; a token", "no token here; a token"),
            ("authorization: basic is not named", "authorization: basic is not named"),
            ("arr_0123456789abcdef0123456789abcdef", "arr_0123…"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
