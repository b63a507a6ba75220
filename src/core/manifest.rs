//! What this node says of itself in `node.register` and `node.heartbeat`: little by itself, more once a sidecar declares it.

use super::Broker;
use super::mutants::{Mutant, planted};
use crate::wire::fleet;
use crate::wire::node::Capability;

/// What is declared beyond the broker's own words. The default claims nothing, on purpose: a bare `spawn` would make the
/// engine pin every spawn of the workspace to this node.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Declared {
    /// `None`: the broker's own.
    name: Option<String>,
    pub capabilities: Vec<Capability>,
    /// 0 = unlimited.
    pub max_agents: u64,
    pub tags: Vec<String>,
    /// `None`: the broker's own.
    version: Option<String>,
}

impl Declared {
    /// The engine's schema is strict: what would lose the whole frame is cleaned away here.
    fn read(manifest: fleet::Manifest) -> Declared {
        let text = |text: String| Some(text.trim().to_string()).filter(|text| !text.is_empty());
        let named = |capability: Capability| Some(Capability { name: text(capability.name)?, ..capability });
        Declared {
            name: text(manifest.name),
            capabilities: manifest.capabilities.into_iter().filter_map(named).collect(),
            max_agents: manifest.max_agents,
            tags: manifest.tags.into_iter().filter_map(text).collect(),
            version: manifest.version.and_then(text),
        }
    }

    /// The share of the room that is taken.
    pub fn load(&self, active: u64) -> f64 {
        match self.max_agents {
            0 => 0.0,
            max => (active as f64 / max as f64).clamp(0.0, 1.0),
        }
    }
}

/// What is declared, and what the engine is known to have accepted.
#[derive(Debug, Default)]
pub struct Face {
    declared: Declared,
    accepted: Declared,
}

impl Face {
    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// The declared name, else the broker's own.
    pub fn name<'a>(&'a self, own: &'a str) -> &'a str {
        self.declared.name.as_deref().unwrap_or(own)
    }

    /// The name that the engine has accepted, else the broker's own.
    pub fn known_name<'a>(&'a self, own: &'a str) -> &'a str {
        self.accepted.name.as_deref().unwrap_or(own)
    }

    /// The declared version, else the broker's own.
    pub fn version<'a>(&'a self, own: &'a str) -> &'a str {
        self.declared.version.as_deref().unwrap_or(own)
    }

    fn declare(&mut self, declared: Declared) {
        self.declared = declared;
    }

    pub fn accept(&mut self) {
        self.accepted = self.declared.clone();
    }

    pub fn is_accepted(&self) -> bool {
        self.declared == self.accepted
    }

    /// Nothing is declared any more, and there is no way back.
    pub fn forget(&mut self) {
        *self = Face::default();
    }

    /// The engine refuses it: what it had accepted before comes back. `false`: there is nothing to take back, the refusal
    /// is about the broker itself.
    pub fn take_back(&mut self, code: &str) -> bool {
        if matches!(code, "node_id_mismatch" | "node_not_found" | "internal_error") {
            return false;
        }
        if !self.is_accepted() {
            self.declared = self.accepted.clone();
            return true;
        }
        // Accepted on an earlier connection: its name has become another's since.
        let renames = code == "node_name_conflict" && self.declared.name.take().is_some();
        self.accept();
        renames
    }
}

impl Broker {
    /// A sidecar's manifest takes the place of what was declared.
    pub(super) fn declare(&mut self, manifest: fleet::Manifest) {
        if let Some(id) = manifest.node_id.as_deref().map(str::trim).filter(|id| !id.is_empty())
            && id != self.config.node_id
        {
            self.log(log::Level::Warn, format!("the sidecar calls this node {id}; it is {}", self.config.node_id));
        }
        self.link.face.declare(Declared::read(manifest));
        self.say_face();
    }

    /// The bootstrap manifest again.
    pub(super) fn declare_nothing(&mut self) {
        if !planted(Mutant::CapabilitiesOutliveSidecar) {
            self.link.face.forget();
        }
        self.say_face();
    }

    fn say_face(&mut self) {
        if self.link.is_open() {
            self.send_register();
        }
        self.owes_heartbeat = true;
    }

    /// The engine refuses the manifest of a sidecar, which must not cost the node its place: the previous one is said again.
    /// `true`: that was it.
    pub(super) fn take_back_manifest(&mut self, code: &str, message: &str) -> bool {
        let taken_back = self.link.face.take_back(code);
        if taken_back {
            self.log(
                log::Level::Error,
                format!("the engine refuses the sidecar's manifest: {code}: {message}; the previous one stays"),
            );
            self.say_face();
        }
        taken_back
    }
}
