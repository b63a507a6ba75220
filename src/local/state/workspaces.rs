//! Workspaces: created without credentials, each with one key that has full rights on it.

use serde_json::{Map, Value, json};

use super::call::id;
use super::rows::{Row, Workspace};
use super::stamp::{digest, iso, workspace_key};
use super::tables::Owner;
use super::{Answer, Call, Engine, Fail, Outcome};

const DEFAULT_PROMPT: &str = "You are an agent in a shared workspace. Read your inbox and answer in the channel or \
                              conversation that a message came from.";

impl Engine {
    /// `POST /v1/workspaces`. Without credentials it always creates; with the key of a workspace of that name it
    /// answers 200 with that one, and without its key, which only its maker was told.
    pub fn create_workspace(&mut self, call: &Call) -> Outcome {
        let name = call.text("name")?.trim().to_string();
        if let Some(bearer) = &call.bearer
            && let Some(Owner::Workspace(ws)) = self.t.owners.get(&digest(bearer))
            && let Some(existing) = self.t.workspaces.get(ws).filter(|ws| ws.name == name)
        {
            return Ok(Answer::ok(json!({
                "workspace_id": id(existing.id), "api_key": bearer, "created_at": iso(existing.created_at),
            })));
        }
        let key = workspace_key();
        let row = Workspace {
            id: self.next_id(),
            name,
            key_digest: digest(&key),
            system_prompt: None,
            metadata: Map::new(),
            created_at: self.now.unix,
        };
        let answer = json!({"workspace_id": id(row.id), "api_key": key, "created_at": iso(row.created_at)});
        let ws = row.id;
        self.put(Row::Workspace(row));
        self.ensure_general(ws);
        Ok(Answer::created(answer))
    }

    fn workspace(&self, ws: u64) -> Result<&Workspace, Fail> {
        self.t.workspaces.get(&ws).ok_or_else(|| Fail::new(404, "workspace_not_found", "Workspace not found"))
    }

    fn workspace_view(&self, ws: u64) -> Outcome {
        let row = self.workspace(ws)?;
        Ok(Answer::ok(json!({
            "id": id(row.id), "name": row.name, "system_prompt": row.system_prompt, "plan": "free",
            "created_at": iso(row.created_at), "metadata": row.metadata,
        })))
    }

    /// `GET /v1/workspace`
    pub fn get_workspace(&mut self, call: &Call) -> Outcome {
        self.workspace_view(call.ws)
    }

    /// `GET /v1/workspaces/by-name/:name`: the latest of that name.
    pub fn find_workspace(&mut self, call: &Call) -> Outcome {
        let found = self.t.workspaces.values().rev().find(|ws| ws.name == call.arg(0));
        let row = found.ok_or_else(|| Fail::new(404, "workspace_not_found", "Workspace not found"))?;
        Ok(Answer::ok(json!({"id": id(row.id), "name": row.name, "created_at": iso(row.created_at)})))
    }

    /// `PATCH /v1/workspace`
    pub fn update_workspace(&mut self, call: &Call) -> Outcome {
        let mut row = self.workspace(call.ws)?.clone();
        if let Some(name) = call.optional("name")? {
            row.name = name;
        }
        if call.body.contains_key("system_prompt") {
            row.system_prompt = call.optional("system_prompt")?;
        }
        if let Some(metadata) = call.object("metadata")? {
            row.metadata = metadata;
        }
        self.put(Row::Workspace(row));
        self.workspace_view(call.ws)
    }

    /// `DELETE /v1/workspace`: everything in it goes, its node sockets are closed.
    pub fn delete_workspace(&mut self, call: &Call) -> Outcome {
        self.workspace(call.ws)?;
        let nodes: Vec<String> = self.t.nodes.values().filter(|n| n.ws == call.ws).map(|n| n.id.clone()).collect();
        for node in nodes {
            self.close_link_of(&node, 1008, "workspace deleted");
        }
        self.put(Row::WorkspaceGone { id: call.ws });
        Ok(Answer::empty())
    }

    /// `GET /v1/workspace/system-prompt`
    pub fn get_system_prompt(&mut self, call: &Call) -> Outcome {
        let prompt = self.workspace(call.ws)?.system_prompt.clone();
        let is_default = prompt.is_none();
        Ok(Answer::ok(json!({"prompt": prompt.unwrap_or_else(|| DEFAULT_PROMPT.into()), "is_default": is_default})))
    }

    /// `PUT /v1/workspace/system-prompt`
    pub fn set_system_prompt(&mut self, call: &Call) -> Outcome {
        let mut row = self.workspace(call.ws)?.clone();
        let reset = call.body.get("reset").and_then(Value::as_bool).unwrap_or(false);
        row.system_prompt = if reset { None } else { call.optional("prompt")? };
        self.put(Row::Workspace(row));
        self.get_system_prompt(call)
    }
}
