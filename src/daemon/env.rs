//! The environment as it was at the start: read once, then passed on as a value.

use std::collections::HashMap;

#[derive(Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    pub fn of_process() -> Env {
        let mut env = Env(std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect());
        if env.get("HOME").is_none() {
            let home = env.get("USERPROFILE").map(str::to_string).or_else(|| {
                let users = std::fs::read_to_string("/etc/passwd").ok()?;
                home_of(&users, rustix::process::getuid().as_raw())
            });
            if let Some(home) = home {
                env.set("HOME", &home);
            }
        }
        env
    }

    /// The raw value, blank or not.
    pub fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The trimmed value; blank counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim).filter(|value| !value.is_empty())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_string(), value.to_string());
    }

    /// A whole number; what is none counts as unset.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// On unless unset, blank, `0` or `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    /// Off unless `1`, `true`, `yes` or `on`.
    pub fn says_yes(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| ["1", "true", "yes", "on"].iter().any(|yes| value.eq_ignore_ascii_case(yes)))
    }

    /// A comma-separated list without blanks; `None` when nothing is left.
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let list: Vec<String> =
            self.get(name)?.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect();
        (!list.is_empty()).then_some(list)
    }
}

/// The home of a user by the password database.
fn home_of(users: &str, uid: u32) -> Option<String> {
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut homes = fields.filter(|user| user.len() >= 7 && user[2].parse() == Ok(uid)).map(|user| user[5]);
    homes.next().filter(|home| home.starts_with('/')).map(str::to_string)
}

/// Shows names only: values may be keys.
impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(value: &str) -> Env {
        let mut env = Env::default();
        env.set("X", value);
        env
    }

    #[test]
    fn blank_counts_as_unset_and_what_is_no_number_too() {
        for (value, text, flag, number) in [
            ("", None, false, None),
            (" \t", None, false, None),
            ("0", Some("0"), false, Some(0)),
            ("False", Some("False"), false, None),
            (" 7 ", Some("7"), true, Some(7)),
            ("-1", Some("-1"), true, None),
            ("yes", Some("yes"), true, None),
        ] {
            let env = env(value);
            assert_eq!((env.get("X"), env.flag("X"), env.number("X")), (text, flag, number), "{value:?}");
        }
        assert_eq!(Env::default().get("X"), None);
        assert_eq!(env(" , ,").list("X"), None);
        assert_eq!(env("a, ,b").list("X"), Some(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn a_home_is_found_in_the_password_database() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nbroken:x:7\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:8:8:::/bin/sh";
        let homes = [0, 7, 8, 9, 1000].map(|uid| home_of(users, uid));
        assert_eq!(homes, [Some("/root".into()), None, None, None, Some("/home/ann".into())]);
    }
}
