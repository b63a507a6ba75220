//! The environment as it was at the start: read once, then passed on as a value.

use std::collections::HashMap;

#[derive(Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    pub fn of_process() -> Env {
        Env(std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect())
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

    /// A comma-separated list without blanks; `None` when nothing is left.
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let list: Vec<String> =
            self.get(name)?.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect();
        (!list.is_empty()).then_some(list)
    }
}

/// Shows names only: values may be keys.
impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
