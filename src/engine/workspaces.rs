//! Which workspaces the broker joins: read from the environment that it is handed.

use serde_json::{Map, Value};

use crate::core::ports::Secret;

/// Looks a variable up.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// One entry of `RELAY_WORKSPACES_JSON`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: Secret,
    pub workspace_id: Option<String>,
    pub alias: Option<String>,
}

/// Where the keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `RELAY_WORKSPACES_JSON`, with the hint for the default (an id or an alias).
    Many {
        entries: Vec<Entry>,
        hint: Option<String>,
    },
    /// A key that the operator gave on purpose; a refusal is fatal and names the variable.
    Explicit {
        variable: &'static str,
        key: Secret,
    },
    /// `RELAY_API_KEY`; a refused one is replaced by a new workspace.
    Soft(Secret),
    Create,
}

/// Blank counts as unset.
fn set(env: Env<'_>, name: &str) -> Option<String> {
    env(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// The engine of an installation that names none.
pub const DEFAULT_BASE: &str = "https://cast.agentrelay.com";

/// The engine's base URL, trimmed, without trailing slashes: `RELAYCAST_BASE_URL`, else `RELAY_BASE_URL`. The first that
/// is set decides, and when it is blank the default engine is meant.
pub fn base_url(env: Env<'_>) -> String {
    let named = env("RELAYCAST_BASE_URL").or_else(|| env("RELAY_BASE_URL")).unwrap_or_default();
    match named.trim().trim_end_matches('/') {
        "" => DEFAULT_BASE.into(),
        base => base.into(),
    }
}

/// The source that wins.
///
/// # Errors
/// The operator's words for what cannot be used.
pub fn choose(env: Env<'_>, key_flag: Option<&str>) -> Result<Source, String> {
    if let Some(text) = set(env, "RELAY_WORKSPACES_JSON") {
        let (entries, inner_hint) = parse(&text)?;
        return Ok(Source::Many { entries, hint: set(env, "RELAY_DEFAULT_WORKSPACE").or(inner_hint) });
    }
    let flag = key_flag.map(str::trim).filter(|key| !key.is_empty()).map(str::to_string);
    let explicit = [
        ("AGENT_RELAY_WORKSPACE_KEY", flag),
        ("AGENT_RELAY_WORKSPACE_KEY", set(env, "AGENT_RELAY_WORKSPACE_KEY")),
        ("RELAY_WORKSPACE_KEY", set(env, "RELAY_WORKSPACE_KEY")),
    ];
    for (variable, key) in explicit {
        if let Some(key) = key {
            if !key.starts_with("rk_") {
                return Err(format!("{variable} is not a valid workspace key"));
            }
            return Ok(Source::Explicit { variable, key: Secret::new(key) });
        }
    }
    Ok(match set(env, "RELAY_API_KEY").filter(|key| key.starts_with("rk_")) {
        Some(key) => Source::Soft(Secret::new(key)),
        None => Source::Create,
    })
}

/// An array of entries, an object with `memberships`, or one entry.
fn parse(text: &str) -> Result<(Vec<Entry>, Option<String>), String> {
    const NAME: &str = "RELAY_WORKSPACES_JSON";
    let value: Value = serde_json::from_str(text).map_err(|_| format!("{NAME} must be valid JSON"))?;
    let unusable = || format!("{NAME} contains an invalid membership entry");
    let (list, hint) = match value {
        Value::Array(list) => (list, None),
        Value::Object(mut object) => {
            let hint = field(&object, &["default_workspace_id", "defaultWorkspaceId"]);
            match object.remove("memberships") {
                Some(Value::Array(list)) => (list, hint),
                Some(_) => return Err(unusable()),
                None => (vec![Value::Object(object)], hint),
            }
        }
        _ => return Err(unusable()),
    };
    if list.is_empty() {
        return Err(format!("{NAME} must contain at least one membership"));
    }
    let mut entries = Vec::with_capacity(list.len());
    for item in &list {
        let object = item.as_object().ok_or_else(unusable)?;
        let key = field(object, &["api_key"]).ok_or_else(unusable)?;
        if !key.starts_with("rk_") {
            return Err(format!("{NAME} contained an invalid workspace key"));
        }
        let entry = Entry {
            key: Secret::new(key),
            workspace_id: field(object, &["workspace_id", "workspaceId"]),
            alias: field(object, &["workspace_alias", "workspaceAlias"]),
        };
        // A second agent of ours in one workspace would take the name, or the token, from the first.
        match entries.iter_mut().find(|known: &&mut Entry| known.key == entry.key) {
            Some(known) => {
                known.workspace_id = known.workspace_id.take().or(entry.workspace_id);
                known.alias = known.alias.take().or(entry.alias);
            }
            None => entries.push(entry),
        }
    }
    Ok((entries, hint))
}

/// The first of `names` that holds text which is not blank.
fn field(object: &Map<String, Value>, names: &[&str]) -> Option<String> {
    names
        .iter()
        .find_map(|name| object.get(*name).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty()))
        .map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pairs: &[(&str, &str)], flag: Option<&str>) -> Result<Source, String> {
        let env = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string());
        choose(&env, flag)
    }

    #[test]
    fn the_first_base_that_is_set_decides() {
        let base = |pairs: &[(&str, &str)]| {
            base_url(&|name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_string()))
        };
        let (first, second) = (("RELAYCAST_BASE_URL", " http://a/ "), ("RELAY_BASE_URL", "http://b//"));
        assert_eq!(base(&[first, second]), "http://a");
        assert_eq!(base(&[second]), "http://b");
        assert_eq!(base(&[("RELAYCAST_BASE_URL", " "), second]), DEFAULT_BASE);
        assert_eq!(base(&[]), DEFAULT_BASE);
    }

    #[test]
    fn keys_in_their_order() {
        let all = [
            ("AGENT_RELAY_WORKSPACE_KEY", "rk_live_a"),
            ("RELAY_WORKSPACE_KEY", "rk_live_b"),
            ("RELAY_API_KEY", "rk_live_c"),
        ];
        let explicit = |variable, key: &str| Ok(Source::Explicit { variable, key: Secret::new(key) });
        assert_eq!(chosen(&all, Some(" rk_live_f ")), explicit("AGENT_RELAY_WORKSPACE_KEY", "rk_live_f"));
        assert_eq!(chosen(&all, Some(" ")), explicit("AGENT_RELAY_WORKSPACE_KEY", "rk_live_a"));
        assert_eq!(chosen(&all[1..], None), explicit("RELAY_WORKSPACE_KEY", "rk_live_b"));
        assert_eq!(chosen(&all[2..], None), Ok(Source::Soft(Secret::new("rk_live_c"))));
        assert_eq!(chosen(&[("RELAY_API_KEY", "sk-123")], None), Ok(Source::Create));
        assert_eq!(chosen(&[("RELAY_WORKSPACE_KEY", "  ")], None), Ok(Source::Create));
        assert_eq!(
            chosen(&[("RELAY_WORKSPACE_KEY", "x")], None),
            Err("RELAY_WORKSPACE_KEY is not a valid workspace key".into())
        );
        assert_eq!(chosen(&[], Some("x")), Err("AGENT_RELAY_WORKSPACE_KEY is not a valid workspace key".into()));
    }

    #[test]
    fn many_workspaces_in_three_shapes() {
        let entry = |key: &str, id: Option<&str>, alias: Option<&str>| Entry {
            key: Secret::new(key),
            workspace_id: id.map(Into::into),
            alias: alias.map(Into::into),
        };
        let many = |text: &str, more: &[(&str, &str)]| {
            let mut pairs = vec![("RELAY_WORKSPACES_JSON", text)];
            pairs.extend(more);
            chosen(&pairs, Some("rk_live_ignored"))
        };
        assert_eq!(
            many(r#"{"api_key":"rk_1","workspaceId":"1","x":0}"#, &[]),
            Ok(Source::Many { entries: vec![entry("rk_1", Some("1"), None)], hint: None })
        );
        let text =
            r#"{"memberships":[{"api_key":"rk_1","workspace_alias":"A"},{"api_key":"rk_2"}],"defaultWorkspaceId":"7"}"#;
        let entries = vec![entry("rk_1", None, Some("A")), entry("rk_2", None, None)];
        assert_eq!(many(text, &[]), Ok(Source::Many { entries: entries.clone(), hint: Some("7".into()) }));
        // One workspace twice is one; the second says what the first leaves out.
        let twice =
            r#"[{"api_key":"rk_1"},{"api_key":"rk_2"},{"api_key":"rk_1","workspace_id":"1","workspace_alias":"A"}]"#;
        let once = vec![entry("rk_1", Some("1"), Some("A")), entry("rk_2", None, None)];
        assert_eq!(many(twice, &[]), Ok(Source::Many { entries: once, hint: None }));
        assert_eq!(
            many(text, &[("RELAY_DEFAULT_WORKSPACE", "a")]),
            Ok(Source::Many { entries, hint: Some("a".into()) })
        );
    }

    #[test]
    fn what_cannot_be_used_has_its_words() {
        for (text, words) in [
            ("{", "must be valid JSON"),
            ("7", "contains an invalid membership entry"),
            ("[1]", "contains an invalid membership entry"),
            ("{}", "contains an invalid membership entry"),
            (r#"[{"api_key":""}]"#, "contains an invalid membership entry"),
            (r#"{"memberships":{}}"#, "contains an invalid membership entry"),
            ("[]", "must contain at least one membership"),
            (r#"[{"api_key":"rk_1"},{"api_key":"k"}]"#, "contained an invalid workspace key"),
        ] {
            let error = chosen(&[("RELAY_WORKSPACES_JSON", text)], None).unwrap_err();
            assert_eq!(error, format!("RELAY_WORKSPACES_JSON {words}"), "{text}");
        }
    }
}
