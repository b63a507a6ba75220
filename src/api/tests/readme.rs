//! The README's list of routes is that of the table.

use super::super::routes::{Auth, Kind, ROUTES};
use crate::checks::{difference, table};

#[test]
fn the_readme_lists_every_route_and_no_other() {
    let listed: Vec<String> = table("### Routes")
        .into_iter()
        .map(|row| {
            let [method, path, auth, meaning] = &row[..] else { panic!("{row:?}") };
            assert!(!meaning.is_empty(), "{row:?}");
            let auth = if auth == "key" { "key" } else { "open" };
            format!("{method} {path} {auth}")
        })
        .collect();
    let served: Vec<String> = ROUTES
        .iter()
        .map(|route| {
            let method = if route.kind == Kind::WebSocket { "WebSocket" } else { route.method };
            let auth = if route.auth == Auth::Key { "key" } else { "open" };
            format!("{method} `{}` {auth}", route.path)
        })
        .collect();
    difference("routes", &listed, &served);
}
