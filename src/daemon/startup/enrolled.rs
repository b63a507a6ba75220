//! What follows from the enrolment: its token kept, its identity written down, its channels joined.

use std::time::{Duration, Instant};

use super::Start;
use crate::daemon::effects::TokenCache;
use crate::daemon::enrolment::Enrolled;
use crate::store::{StateDir, identity, tokens};
use crate::sys::{clock, threads};

impl Start {
    pub(super) fn token_cache(&self, enrolled: &Enrolled) -> TokenCache {
        let (tokens, node_id, base) = (enrolled.tokens.clone(), enrolled.node.node_id.clone(), enrolled.base.clone());
        let workspace_id = enrolled.session.acting().workspace_id.clone();
        let (forgetful, forgotten) = (tokens.clone(), node_id.clone());
        let forget = move || {
            if let Err(error) = forgetful.forget(&forgotten) {
                log::warn!("the refused node token stays in its cache: {error}");
            }
        };
        TokenCache::new(forget, move |token| {
            let wanted = tokens::Use { node_id: &node_id, workspace_id: &workspace_id, base_url: &base };
            if let Err(error) = tokens.store(wanted, token) {
                log::warn!("the node token could not be cached: {error}");
            }
        })
    }

    pub(super) fn write_identity_debug(&self, state: &StateDir, enrolled: &Enrolled) {
        if self.env.raw("AGENT_RELAY_NO_DEBUG_FILES").is_some() {
            return;
        }
        let acting = enrolled.session.acting();
        let debug = identity::Debug {
            agent_name: &acting.agent_name,
            requested: &self.name,
            agent_id: &acting.agent_id,
            default_workspace: &acting.workspace_id,
            workspace_count: enrolled.session.memberships.len(),
            timestamp: &crate::wire::time::rfc3339(clock::unix_ms()),
        };
        if let Err(error) = identity::write_debug(&state.identity_debug(), &debug) {
            log::warn!("{error}");
        }
    }

    /// The broker's own agents make and join their channels, beside the loop; a failure is a warning.
    pub(super) fn join_channels(&self, enrolled: &Enrolled) -> Option<threads::Thread> {
        let mut channels: Vec<(String, Option<&'static str>)> = vec![
            ("general".into(), Some("General discussion")),
            ("engineering".into(), Some("Engineering discussion")),
        ];
        for channel in &self.options.channels {
            if !channels.iter().any(|(known, _)| known == channel) {
                channels.push((channel.clone(), None));
            }
        }
        let client = enrolled.client.clone();
        let workspaces: Vec<String> = enrolled.session.memberships.iter().map(|of| of.workspace_id.clone()).collect();
        threads::spawn("engine-channels", move || {
            threads::doing("joining channels");
            for (at, workspace) in workspaces.iter().enumerate() {
                let Ok(token) = client.own_token(at) else { continue };
                for (channel, topic) in &channels {
                    let deadline = Instant::now() + Duration::from_secs(10);
                    if let Err(error) = client.join_channel(&token, channel, *topic, deadline) {
                        log::warn!("the broker's agent could not join #{channel} of workspace {workspace}: {error}");
                    }
                }
            }
        })
        .map_err(|error| log::warn!("channels are not joined: {error}"))
        .ok()
    }
}
