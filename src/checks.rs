//! Rules of the house that no compiler knows, checked over the sources; and tables of the README, checked against the code.
//! A room that owns such a table has the test beside it and reads the table from here.

use std::collections::BTreeSet;
use std::path::Path;

const README: &str = include_str!("../README.md");

/// The cells of the first table behind a line, without its head.
pub fn table(behind: &str) -> Vec<Vec<String>> {
    let mut lines =
        README.lines().skip_while(|line| !line.starts_with(behind)).skip_while(|line| !line.starts_with('|'));
    let head = lines.next().unwrap_or_else(|| panic!("no table behind {behind:?}"));
    let columns = head.matches('|').count() - 1;
    let rows: Vec<Vec<String>> = lines
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect())
        .collect();
    assert!(rows.iter().all(|row| row.len() == columns), "a row is cut wrongly: {rows:?}");
    rows
}

/// Fails with what one side has and the other has not.
#[track_caller]
pub fn difference<T: Ord + std::fmt::Debug>(what: &str, listed: &[T], real: &[T]) {
    let (listed_once, real): (BTreeSet<&T>, BTreeSet<&T>) = (listed.iter().collect(), real.iter().collect());
    assert_eq!(listed_once.len(), listed.len(), "{what}: the README lists one twice");
    let missing: Vec<_> = real.difference(&listed_once).collect();
    let unreal: Vec<_> = listed_once.difference(&real).collect();
    assert!(missing.is_empty() && unreal.is_empty(), "{what}: not in the README {missing:?}; only there {unreal:?}");
}

/// The words in backticks in the first column of a table.
pub fn names(behind: &str) -> Vec<String> {
    let rows = table(behind);
    let cells = rows.iter().inspect(|row| assert!(!row.last().unwrap().is_empty(), "{row:?}")).map(|row| &row[0]);
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_string)).collect()
}

/// Every source file without its tests, with its path.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

fn collect(dir: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).expect("the sources").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if entry.is_dir() && name != "tests" {
            collect(&entry, into);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "checks.rs" {
            let text = std::fs::read_to_string(&entry).expect("a source file");
            let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_string();
            into.push((entry.display().to_string(), text));
        }
    }
}

/// What stands before the name of a variable where it is read.
const READERS: &[&str] = &[
    "env(\"",
    "env, \"",
    ".number(\"",
    ".get(\"",
    ".raw(\"",
    ".flag(\"",
    ".says_yes(\"",
    ".list(\"",
    "var_os(\"",
    "var(\"",
];

/// Every variable that is read by its name, whatever the reader.
fn read_from_the_environment() -> Vec<String> {
    let texts = sources();
    let mut found = BTreeSet::new();
    for before in READERS {
        for (_, text) in &texts {
            for rest in text.split(before).skip(1) {
                let name = rest.split('"').next().unwrap_or_default();
                if name.len() > 3 && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                    found.insert(name.to_string());
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Read by libraries, or by code that takes the names from a list.
const READ_ELSEWHERE: &[&str] = &["RUST_LOG", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR", "SHELL"];

#[test]
fn the_readme_lists_every_variable_that_is_read_and_no_other() {
    let mut real = read_from_the_environment();
    assert!(real.len() > 10, "the readers are written otherwise now: {real:?}");
    real.extend(READ_ELSEWHERE.iter().map(|name| name.to_string()));
    difference("environment", &names("Environment; blank counts as unset"), &real);
}

/// [`Secret`](crate::core::ports::Secret) compares itself in a time that says nothing; its text is taken out to be sent or
/// stored, never to be compared.
#[test]
fn no_secret_is_taken_out_to_be_compared() {
    let compares = |line: &str| ["==", "!=", "starts_with", ".eq(", "matches!"].iter().any(|how| line.contains(how));
    let seen = |text: &str| text.lines().any(|line| line.contains(".expose()") && compares(line));
    let offenders: Vec<_> = sources().into_iter().filter(|(_, text)| seen(text)).map(|(path, _)| path).collect();
    assert!(offenders.is_empty(), "use Secret::is or ==: {offenders:?}");
    assert!(seen("if given == key.expose() {"), "it would be seen");
    let comparisons = sources().iter().filter(|(_, text)| text.contains("difference |=")).count();
    assert_eq!(comparisons, 1, "one comparison of secrets, in core/ports/secret.rs");
}
