//! The place where a recording is played again: a working directory, a home, and programs that write down how they were
//! called.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub struct Scene {
    root: PathBuf,
    /// Placeholder and what stands for it here.
    pub names: Vec<(&'static str, String)>,
}

/// Says how it was called: the directory, its name, its arguments, each ended by NUL, and a line end after all.
const FAKE: &str = r#"#!/bin/sh
case "$1 $2" in
"debug models" | "mcp add" | "mcp remove" | "app-server --listen") ;;
*)
  env -0 > "$FAKE_CALLS.env"
  for word; do
    [ "$before" != --mcp-config ] || cp -p "$word" "$FAKE_CALLS.config" 2>/dev/null
    before=$word
  done ;;
esac
{ printf '%s\0' "$(pwd -P)" "${0##*/}" "$@"; echo; } >> "$FAKE_CALLS"
if [ "$1" = app-server ]; then
  while read -r line; do
    printf '%s\0\n' "$line" >> "$FAKE_CALLS"
    id=${line#*\"id\":}; id=${id%%,*}
    echo "{\"id\":$id,\"result\":{\"thread\":{\"id\":\"thr_fake_1\"}}}"
  done
  exit 0
fi
if [ "$1 $2" = "mcp remove" ]; then exit "${FAKE_REMOVE_RC:-0}"; fi
if [ "$1 $2" = "mcp add" ]; then
  [ -z "$FAKE_ADD_STDERR" ] || echo "$FAKE_ADD_STDERR" >&2
  exit "${FAKE_ADD_RC:-0}"
fi
if [ "$1 $2" = "debug models" ]; then echo '{"models":[{"slug":"gpt-5.4"}]}'; exit 0; fi
exec cat
"#;

impl Scene {
    pub fn new(id: &str) -> Scene {
        let root = std::env::temp_dir().join(format!("harness-{}-{id}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        for name in ["cwd", "home", "bin", "acwd"] {
            std::fs::create_dir_all(root.join(name)).expect("a directory");
        }
        let root = root.canonicalize().expect("it exists");
        let place = |name: &str| root.join(name).to_string_lossy().into_owned();
        let names = vec![
            ("{CWD}", place("cwd")),
            ("{HOME}", place("home")),
            ("{BIN}", place("bin")),
            ("{ACWD}", place("acwd")),
        ];
        Scene { root, names }
    }

    /// A recorded text with this scene's names.
    pub fn here(&self, text: &str) -> String {
        self.names.iter().fold(text.to_string(), |text, (name, value)| text.replace(name, value))
    }

    pub fn here_in(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.here(text).into(),
            Value::Array(items) => items.iter().map(|item| self.here_in(item)).collect(),
            Value::Object(members) => {
                members.iter().map(|(key, value)| (self.here(key), self.here_in(value))).collect()
            }
            other => other.clone(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(self.here(name))
    }

    pub fn fake(&self, cli: &str) {
        self.program(cli, FAKE);
    }

    pub fn program(&self, cli: &str, text: &str) {
        let path = self.path("{BIN}").join(cli);
        std::fs::write(&path, text).expect("a program");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    }

    pub fn calls_file(&self) -> PathBuf {
        self.root.join("calls")
    }

    /// How the programs were called: `{cwd, cli, argv}` in order.
    pub fn calls(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.calls_file()).unwrap_or_default();
        let lines = text.split_terminator("\0\n").map(|line| line.split('\0').collect::<Vec<_>>());
        lines
            .map(|words| match words.as_slice() {
                [line] => json!({"codex_app_server_request": serde_json::from_str::<Value>(line).unwrap_or_default()}),
                [cwd, cli, argv @ ..] => json!({"cwd": cwd, "cli": cli, "argv": argv}),
                [] => Value::Null,
            })
            .collect()
    }

    /// Makes what a recording found: directories, links, files.
    pub fn furnish(&self, vector: &Value) {
        for directory in vector["dirs_before"].as_array().into_iter().flatten() {
            std::fs::create_dir_all(self.path(directory.as_str().expect("a path"))).expect("a directory");
        }
        for file in vector["files_before"].as_array().into_iter().flatten() {
            let path = self.path(file["path"].as_str().expect("a path"));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(&path, self.here(file["content"].as_str().expect("a text"))).expect("a file");
            let mode = file["mode"].as_str().map_or(0o644, |mode| u32::from_str_radix(mode, 8).expect("a mode"));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
        for (link, target) in vector["symlinks_before"].as_object().into_iter().flatten() {
            let target = self.path(target.as_str().expect("a path"));
            std::os::unix::fs::symlink(target, self.path(link)).expect("a link");
        }
        for cli in vector["fake_clis"].as_array().into_iter().flatten() {
            self.fake(cli.as_str().expect("a name"));
        }
    }

    /// Every regular file below the working directory and the home, links followed: path, mode, content.
    pub fn files(&self) -> Vec<(String, u32, String)> {
        let mut found = Vec::new();
        for place in ["{CWD}", "{HOME}"] {
            walk(&self.path(place), &mut found);
        }
        found.sort();
        found
    }
}

fn walk(directory: &Path, found: &mut Vec<(String, u32, String)>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_dir() {
            if !path.is_symlink() {
                walk(&path, found);
            }
        } else {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            found.push((path.to_string_lossy().into_owned(), meta.permissions().mode() & 0o7777, text));
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
