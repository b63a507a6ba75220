//! Enrolment at the start: workspace, the broker's own agent, node identity, node token. All of it by one deadline, and
//! never ready without a token.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::Fatal;
use super::logging::{self, operator};
use super::startup::{KEY_VARS, Start, VERSION};
use crate::core::ports::Secret;
use crate::engine::{
    Client, Enrolment, JoinRequest, NodeEnrolment, NodeIdentity, OwnAgent, Session, base_url, fatal_config,
};
use crate::store::{self, Claim, Identity, identity, paths, tokens};
use crate::sys::ids;

/// From the bound port to readiness: clients give up after nine seconds.
const HANDSHAKE: Duration = Duration::from_secs(8);

/// Where and as whom the broker is enrolled.
pub struct Enrolled {
    pub session: Session,
    pub node: NodeEnrolment,
    pub pinned: bool,
    pub client: Arc<Client>,
    pub base: String,
    pub base_given: bool,
    pub tokens: tokens::Tokens,
    /// Keeps other brokers of this directory from being the same node. A node of the operator's is the operator's to keep.
    _claim: Option<Claim>,
}

impl Start {
    pub(super) fn handshake_limit(&self) -> Duration {
        self.env
            .get("AGENT_RELAY_HANDSHAKE_TIMEOUT_MS")
            .and_then(|text| text.parse().ok())
            .map_or(HANDSHAKE, |ms: u64| Duration::from_millis(ms.max(1)))
    }

    /// Workspace, own agent, node identity and node token; all by one deadline.
    pub(super) fn enrol(&self, cwd: &Path, local: Option<String>, deadline: Instant) -> Result<Enrolled, Fatal> {
        let failed = || Fatal::new("failed to initialize relaycast session");
        let env = |name: &str| self.env.raw(name).map(str::to_string);
        let base_given =
            local.is_some() || self.env.get("RELAYCAST_BASE_URL").or(self.env.get("RELAY_BASE_URL")).is_some();
        let base = local.unwrap_or_else(|| base_url(&env));
        let client = Arc::new(Client::new(self.client_settings(&base)).map_err(|error| failed().because(error))?);
        let data_dir = paths::data_dir(self.env.get("XDG_DATA_HOME"), self.env.get("HOME").map(Path::new));
        let identity = Identity::load(data_dir.as_deref(), std::env::current_dir()).map_err(Fatal::new)?;
        let session = self.join(cwd, &client, deadline)?;
        let acting = session.acting();
        let pinned = self.env.get("RELAY_NODE_TOKEN").map(Secret::new);
        let tokens = tokens::Tokens::new(data_dir.as_deref().unwrap_or(cwd));
        let node_name = identity::node_name(
            self.options.name.as_deref(),
            self.options.instance_name.as_deref().or_else(|| self.env.get("AGENT_RELAY_BROKER_NAME")),
            host_name().as_deref(),
        );
        let (node, claim) = match &pinned {
            Some(token) => {
                let node_id = identity.pinned_id().to_string();
                (NodeEnrolment { node_id, name: node_name, token: token.clone() }, None)
            }
            None => {
                let claim = self.claim(data_dir.as_deref().unwrap_or(cwd), &identity, &acting.workspace_id)?;
                (self.node_token(&client, &tokens, &claim.identity, &node_name, acting, &base, deadline)?, Some(claim))
            }
        };
        let own = |of: &crate::engine::Membership| OwnAgent {
            workspace_key: of.key.clone(),
            name: of.agent_name.clone(),
            token: of.agent_token.clone(),
        };
        client.enrol(Enrolment {
            own: session.memberships.iter().map(own).collect(),
            home: session.acting,
            node_id: node.node_id.clone(),
        });
        Ok(Enrolled { session, node, pinned: pinned.is_some(), client, base, base_given, tokens, _claim: claim })
    }

    fn claim(&self, data_dir: &Path, identity: &Identity, workspace_id: &str) -> Result<Claim, Fatal> {
        let is_kept = self.options.persist || self.options.state_dir.is_some();
        let claim =
            Claim::take(data_dir, identity, workspace_id, is_kept.then_some(&*self.name)).map_err(Fatal::new)?;
        if claim.is_beside {
            operator(&format!(
                "the node of this directory, {}, is left to another broker that runs or ran here; this one is {}",
                identity.node_id(),
                claim.identity.node_id()
            ));
        }
        Ok(claim)
    }

    fn client_settings(&self, base: &str) -> crate::engine::Settings {
        let mut settings = crate::engine::Settings::new(base, VERSION);
        if let Some(ms) = self.env.number("AGENT_RELAY_HTTP_API_RELAYCAST_SEND_TIMEOUT_MS") {
            settings.send_limit = Duration::from_millis(ms.max(500));
        }
        settings
    }

    fn join(&self, cwd: &Path, client: &Client, deadline: Instant) -> Result<Session, Fatal> {
        let kept = self.kept_key();
        let env = |name: &str| match (name, &kept) {
            ("AGENT_RELAY_WORKSPACE_KEY", Some(key)) => Some(key.clone()),
            // An engine of our own knows no workspace of another.
            (_, _) if self.options.local && name.starts_with("RELAY_WORKSPACES") => None,
            (name, _) if self.options.local && KEY_VARS.contains(&name) => None,
            _ => self.env.raw(name).map(str::to_string),
        };
        let request = JoinRequest {
            key_flag: self.options.workspace_key.clone().filter(|_| !self.options.local),
            agent_name: self.own_name(cwd),
            strict: self.options.persist,
            cwd: cwd.display().to_string(),
        };
        let session = client.join_workspaces(&env, &request, deadline).map_err(|error| {
            let fatal = Fatal::new("failed to initialize relaycast session").because(&error);
            match &error.cause {
                Some(cause) => fatal.because(cause),
                None => fatal,
            }
        })?;
        let acting = session.acting();
        for warning in &session.warnings {
            operator(&format!("WARNING: {}", logging::redact(warning)));
        }
        let several = session.memberships.len() > 1;
        if several && session.default_workspace_id.is_none() {
            operator(&format!(
                "WARNING: {} workspaces are joined and none is the default; agents are started in the first, '{}'. Name \
                 another with RELAY_DEFAULT_WORKSPACE",
                session.memberships.len(),
                acting.workspace_id
            ));
        }
        for own in session.memberships.iter().filter(|own| own.agent_name != request.agent_name) {
            let place = if several { format!(" in workspace '{}'", own.workspace_id) } else { String::new() };
            operator(&format!(
                "WARNING: registered as '{}' (requested '{}'){place}",
                own.agent_name, request.agent_name
            ));
        }
        self.keep_key(&acting.key);
        Ok(session)
    }

    /// The name of the broker's own agent. Where it wraps a program the broker's name is that of the program's agent; its
    /// own is one of the place, because it takes that over at every start.
    fn own_name(&self, cwd: &Path) -> String {
        if self.outside.is_none() {
            return self.name.clone();
        }
        let place = format!("{}\0{}", host_name().unwrap_or_default(), cwd.display());
        format!("{}-wrap-{}", self.name, &ids::hex(&Sha256::digest(place.as_bytes()))[..8])
    }

    /// With `--local --data` the workspace made for the user is found again at the next start.
    fn kept_key_file(&self) -> Option<PathBuf> {
        self.options.data.as_ref().filter(|_| self.options.local).map(|dir| dir.join("workspace-key"))
    }

    fn kept_key(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.kept_key_file()?).ok()?;
        Some(text.trim().to_string()).filter(|key| !key.is_empty())
    }

    fn keep_key(&self, key: &Secret) {
        let Some(file) = self.kept_key_file() else { return };
        if !self.kept_key().is_some_and(|kept| key.is(&kept))
            && let Err(error) = store::secrets::replace(&file, format!("{}\n", key.expose()).as_bytes())
        {
            operator(&format!("WARNING: the workspace key cannot be kept: {error}"));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn node_token(
        &self,
        client: &Client,
        tokens: &tokens::Tokens,
        identity: &Identity,
        node_name: &str,
        acting: &crate::engine::Membership,
        base: &str,
        deadline: Instant,
    ) -> Result<NodeEnrolment, Fatal> {
        let wanted = |node_id| tokens::Use { node_id, workspace_id: &acting.workspace_id, base_url: base };
        let first = identity.node_id();
        let second = identity.node_id_in(&acting.workspace_id);
        for node_id in [&first, &second] {
            if let Some(token) = tokens.load(wanted(node_id)) {
                let name = client.node_name_for(&acting.key, node_id, node_name, deadline);
                return Ok(NodeEnrolment { node_id: node_id.clone(), name, token });
            }
        }
        let asked =
            NodeIdentity { node_id: first.clone(), fallback_id: Some(second.clone()), name: node_name.to_string() };
        let node = client.mint_node_token(&acting.key, &asked, deadline).map_err(|error| {
            logging::say(&logging::redact(&fatal_config(&first, &error.to_string())));
            Fatal::new("no node token").because(&error)
        })?;
        if let Err(error) = tokens.store(wanted(&node.node_id), &node.token) {
            operator(&format!("WARNING: the node token cannot be cached: {error}"));
        }
        Ok(node)
    }
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().trim().to_string();
    (!name.is_empty()).then_some(name)
}
