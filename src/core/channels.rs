//! The channels of an agent: its own list, by which the broker routes, and its membership at the engine, which follows.

use log::Level;
use serde_json::{Value, json};

use super::ports::{ApiAnswer, EngineCall, EngineError, Generation, Ticket};
use super::roster::Phase;
use super::{Awaited, Broker, answers};
use crate::wire::events::Event;

/// What makes two spellings one channel; the engine knows it by this name.
fn key(channel: &str) -> String {
    channel.trim().trim_start_matches('#').to_ascii_lowercase()
}

impl Broker {
    pub(super) fn subscribe(&mut self, ticket: Ticket, name: &str, channels: &[String]) {
        self.change_channels(ticket, name, |have| {
            let mut added = Vec::new();
            for channel in channels.iter().map(|channel| channel.trim()) {
                if !key(channel).is_empty() && !have.iter().any(|other| key(other) == key(channel)) {
                    have.push(channel.to_string());
                    added.push(channel.to_string());
                }
            }
            (added, |name, channels| Event::ChannelSubscribed { name, channels })
        });
    }

    pub(super) fn unsubscribe(&mut self, ticket: Ticket, name: &str, channels: &[String]) {
        self.change_channels(ticket, name, |have| {
            let goes = |other: &String| channels.iter().any(|channel| key(channel) == key(other));
            (have.extract_if(.., |other| goes(other)).collect(), |name, channels| Event::ChannelUnsubscribed {
                name,
                channels,
            })
        });
    }

    fn change_channels<E: Fn(String, Vec<String>) -> Event>(
        &mut self,
        ticket: Ticket,
        name: &str,
        change: impl FnOnce(&mut Vec<String>) -> (Vec<String>, E),
    ) {
        let generation = self.roster.generation_of(name);
        let Some(agent) = generation.and_then(|generation| self.roster.get_mut(generation)) else {
            self.reply(ticket, unknown_worker(name));
            return;
        };
        let generation = agent.generation;
        let (changed, event) = change(&mut agent.channels);
        let all = agent.channels.clone();
        for channel in &changed {
            self.settle_membership(generation, channel);
        }
        if !changed.is_empty() {
            self.event(event(name.to_string(), changed));
        }
        self.reply(ticket, answers::ok(json!({"name": name, "channels": all})));
    }

    /// Makes the engine agree with the agent's list, once the agent runs. One call at a time for an agent and a channel, or
    /// a later one could overtake an earlier one.
    pub(super) fn settle_membership(&mut self, generation: Generation, channel: &str) {
        let channel = key(channel);
        let Some(agent) = self.roster.get(generation).filter(|agent| agent.phase == Phase::Running) else { return };
        let Some(token) = agent.token.clone().filter(|token| !token.is_blank()) else { return };
        let is_underway = self.calls.values().any(|awaited| {
            matches!(awaited, Awaited::Membership { generation: of, channel: other, .. }
                if *of == generation && *other == channel)
        });
        if channel.is_empty() || is_underway {
            return;
        }
        let joins = agent.channels.iter().any(|other| key(other) == channel);
        let call = match joins {
            true => EngineCall::JoinChannel { channel: channel.clone(), token },
            false => EngineCall::LeaveChannel { channel: channel.clone(), token },
        };
        self.call_engine(call, Awaited::Membership { generation, channel, joins });
    }

    pub(super) fn on_membership(
        &mut self,
        generation: Generation,
        channel: &str,
        joined: bool,
        outcome: Result<Value, EngineError>,
    ) {
        let Some(agent) = self.roster.get(generation) else { return };
        let wanted = agent.channels.iter().any(|other| key(other) == channel);
        if let Err(error) = outcome {
            let what = if joined { "join" } else { "leave" };
            self.log(Level::Warn, format!("'{}' could not {what} #{channel}: {error}", agent.name.clone()));
        }
        // Changed meanwhile.
        if wanted != joined {
            self.settle_membership(generation, channel);
        }
    }
}

fn unknown_worker(name: &str) -> ApiAnswer {
    answers::code(404, "agent_not_found", &format!("unknown worker '{name}'"))
}
