//! The workspaces that the broker is a member of. Its agents, its node and its keys belong to one of them, the home; into
//! the others it only sends.

use super::Broker;
use super::ports::{Config, SendRequest, Workspace, WorkspaceNo};
use crate::wire::api::{AuthStatus, AuthWorkspace, Membership};

impl Config {
    pub fn home(&self) -> &Workspace {
        &self.workspaces[self.home]
    }

    fn is_default(&self, at: WorkspaceNo) -> bool {
        self.has_default && at == self.home
    }

    pub fn default_workspace_id(&self) -> Option<String> {
        self.has_default.then(|| self.home().id.clone())
    }

    /// As `/health` and `/api/config` list them.
    pub fn memberships(&self) -> Vec<Membership> {
        let rows = self.workspaces.iter().enumerate().map(|(at, workspace)| Membership {
            workspace_id: workspace.id.clone(),
            workspace_alias: workspace.alias.clone(),
            is_default: self.is_default(at),
        });
        rows.collect()
    }

    /// As `/api/status` lists them.
    pub(super) fn auth(&self) -> AuthStatus {
        let rows = self.workspaces.iter().enumerate().map(|(at, workspace)| AuthWorkspace {
            workspace_id: workspace.id.clone(),
            workspace_alias: workspace.alias.clone(),
            self_name: workspace.self_name.clone(),
            self_agent_id: workspace.self_agent_id.clone(),
            authenticated: true,
            default: self.is_default(at),
        });
        AuthStatus {
            authenticated: true,
            workspace_count: self.workspaces.len() as u64,
            default_workspace_id: self.default_workspace_id(),
            workspaces: rows.collect(),
        }
    }

    /// `RELAY_WORKSPACES_JSON` of the agents.
    pub(super) fn workspaces_json(&self) -> String {
        let rows = self.workspaces.iter().map(|workspace| {
            serde_json::json!({
                "workspace_id": workspace.id,
                "workspace_alias": workspace.alias,
                "api_key": workspace.key.expose(),
            })
        });
        serde_json::Value::from_iter(rows).to_string()
    }

    /// Which workspace a message is for: the one that it names, else the default. `None`: it names none, and there is no
    /// default.
    ///
    /// # Errors
    /// In words, for a name that is none of ours.
    pub(super) fn workspace_for(&self, request: &SendRequest) -> Result<Option<WorkspaceNo>, String> {
        let with = |is: &dyn Fn(&Workspace) -> bool| self.workspaces.iter().position(is);
        let by_id = match &request.workspace_id {
            Some(id) => Some(with(&|own| own.id == *id).ok_or_else(|| format!("workspace '{id}' is not attached"))?),
            None => None,
        };
        let Some(alias) = &request.workspace_alias else {
            return Ok(by_id.or(self.has_default.then_some(self.home)));
        };
        let has_alias = |own: &Workspace| own.alias.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(alias));
        match by_id {
            Some(at) if has_alias(&self.workspaces[at]) => Ok(Some(at)),
            // The two name different workspaces, or the alias names none.
            Some(_) => Err(format!("workspace alias '{alias}' is not attached")),
            None => with(&has_alias).map(Some).ok_or_else(|| format!("workspace alias '{alias}' is not attached")),
        }
    }
}

impl Workspace {
    /// As receivers of a message see it.
    pub(super) fn shown(&self) -> &str {
        self.alias.as_deref().unwrap_or(&self.id)
    }
}

impl Broker {
    /// The broker's own agent of any workspace, or another name by which it knows itself.
    pub(super) fn is_self(&self, name: &str) -> bool {
        let own = self.config.workspaces.iter().map(|workspace| &workspace.self_name);
        own.chain(&self.config.self_aliases).any(|own| own.eq_ignore_ascii_case(name))
    }

    pub(super) fn each_workspace(&self) -> std::ops::Range<WorkspaceNo> {
        0..self.config.workspaces.len()
    }
}
