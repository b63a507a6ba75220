//! What came out of the broker, and the questions that tests ask of it.

use std::fmt;

use serde_json::Value;

use crate::core::ports::{
    AgentCommand, ApiAnswer, Effect, EngineCall, Generation, Launch, Ms, NodeCommand, Record, Ticket,
};
use crate::wire::events::Event;
use crate::wire::node::{ActionOutcome, InventoryEntry, ToEngine};

#[derive(Clone)]
pub struct Seen(pub Vec<Effect>);

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for effect in &self.0 {
            match effect {
                Effect::Node(NodeCommand::Send { frame, .. }) => writeln!(f, "  send {}", frame.encode())?,
                Effect::Event(event) => writeln!(f, "  event {event:?}")?,
                other => writeln!(f, "  {other:?}")?,
            }
        }
        if self.0.is_empty() { writeln!(f, "  (nothing)") } else { Ok(()) }
    }
}

impl Seen {
    pub(super) fn each<T>(&self, pick: impl Fn(&Effect) -> Option<T>) -> Vec<T> {
        self.0.iter().filter_map(pick).collect()
    }

    pub fn frames(&self) -> Vec<ToEngine> {
        self.each(|effect| match effect {
            Effect::Node(NodeCommand::Send { frame, .. }) => Some(frame.clone()),
            _ => None,
        })
    }

    /// The types of the frames sent, in order.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.frames().iter().map(ToEngine::kind).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.kinds().iter().filter(|seen| **seen == kind).count()
    }

    pub fn acks(&self) -> Vec<(String, u64)> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::DeliveryAck(ack) => Some((ack.agent, ack.up_to_seq)),
                _ => None,
            })
            .collect()
    }

    /// The numbers acknowledged for one agent.
    pub fn acked(&self, name: &str) -> Vec<u64> {
        self.acks().into_iter().filter(|(agent, _)| agent == name).map(|(_, seq)| seq).collect()
    }

    pub fn results(&self) -> Vec<(String, Result<Value, String>)> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::ActionResult(result) => Some((
                    result.invocation_id,
                    match result.outcome {
                        ActionOutcome::Output(output) => Ok(output),
                        ActionOutcome::Error(error) => Err(error),
                    },
                )),
                _ => None,
            })
            .collect()
    }

    /// Agent id and name of each `agent.deregister`.
    pub fn deregistered(&self) -> Vec<(String, String)> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::AgentDeregister(frame) => Some((frame.agent_id, frame.name.unwrap_or_default())),
                _ => None,
            })
            .collect()
    }

    pub fn inventories(&self) -> Vec<Vec<InventoryEntry>> {
        self.frames()
            .into_iter()
            .filter_map(|frame| match frame {
                ToEngine::InventorySync(frame) => Some(frame.agents),
                _ => None,
            })
            .collect()
    }

    /// The names in the last inventory.
    #[track_caller]
    pub fn listed(&self) -> Vec<String> {
        let last = self.inventories().pop().unwrap_or_else(|| panic!("no inventory was sent:\n{self:?}"));
        last.into_iter().map(|entry| entry.name).collect()
    }

    /// Message ids given to terminals.
    pub fn typed(&self) -> Vec<String> {
        self.each(|effect| match effect {
            Effect::Agent { command: AgentCommand::Inject(injection), .. } => Some(injection.event_id.clone()),
            _ => None,
        })
    }

    /// Bodies given to terminals.
    pub fn bodies(&self) -> Vec<String> {
        self.each(|effect| match effect {
            Effect::Agent { command: AgentCommand::Inject(injection), .. } => Some(injection.body.clone()),
            _ => None,
        })
    }

    pub fn launches(&self) -> Vec<Launch> {
        self.each(|effect| match effect {
            Effect::Launch(launch) => Some(launch.clone()),
            _ => None,
        })
    }

    pub fn starts(&self) -> Vec<Generation> {
        self.each(|effect| match effect {
            Effect::Agent { generation, command: AgentCommand::Start { .. } } => Some(*generation),
            _ => None,
        })
    }

    /// The environment of the one program that was started.
    #[track_caller]
    pub fn environment(&self) -> Vec<(String, String)> {
        let sets = self.each(|effect| match effect {
            Effect::Agent { command: AgentCommand::Start { set, .. }, .. } => Some(set.0.clone()),
            _ => None,
        });
        assert_eq!(sets.len(), 1, "one start expected:\n{self:?}");
        sets.into_iter().next().unwrap_or_default()
    }

    pub fn releases(&self) -> Vec<Generation> {
        self.each(|effect| match effect {
            Effect::Agent { generation, command: AgentCommand::Release } => Some(*generation),
            _ => None,
        })
    }

    pub fn calls(&self) -> Vec<EngineCall> {
        self.each(|effect| match effect {
            Effect::Engine { call, .. } => Some(call.clone()),
            _ => None,
        })
    }

    pub fn answers(&self) -> Vec<(Ticket, ApiAnswer)> {
        self.each(|effect| match effect {
            Effect::Reply { ticket, answer } => Some((*ticket, answer.clone())),
            _ => None,
        })
    }

    pub fn answer(&self, ticket: Ticket) -> Option<ApiAnswer> {
        self.answers().into_iter().find(|(of, _)| *of == ticket).map(|(_, answer)| answer)
    }

    /// The one answer to this ticket: status and error text (empty for a success).
    #[track_caller]
    pub fn outcome(&self, ticket: Ticket) -> (u16, String) {
        let mine: Vec<ApiAnswer> =
            self.answers().into_iter().filter(|(of, _)| *of == ticket).map(|(_, answer)| answer).collect();
        assert_eq!(mine.len(), 1, "exactly one answer expected to {ticket}:\n{self:?}");
        (mine[0].status, mine[0].body["error"].as_str().unwrap_or_default().to_string())
    }

    pub fn events(&self) -> Vec<Event> {
        self.each(|effect| match effect {
            Effect::Event(event) => Some(event.clone()),
            _ => None,
        })
    }

    /// The kinds of the events, in order.
    pub fn event_kinds(&self) -> Vec<String> {
        self.events()
            .iter()
            .map(|event| serde_json::to_value(event).expect("JSON")["kind"].as_str().unwrap_or_default().to_string())
            .collect()
    }

    pub fn event(&self, kind: &str) -> Vec<Value> {
        self.events()
            .iter()
            .map(|event| serde_json::to_value(event).expect("JSON"))
            .filter(|event| event["kind"] == kind)
            .collect()
    }

    pub fn journal(&self) -> Vec<Record> {
        self.each(|effect| match effect {
            Effect::Journal(record) => Some(record.clone()),
            _ => None,
        })
    }

    pub fn dead(&self) -> Vec<(String, String)> {
        self.each(|effect| match effect {
            Effect::Journal(Record::DeadLetter(letter)) => Some((letter.event_id.clone(), letter.reason.clone())),
            _ => None,
        })
    }

    pub fn logs(&self, level: log::Level) -> Vec<String> {
        self.each(|effect| match effect {
            Effect::Log { level: of, text } if *of == level => Some(text.clone()),
            _ => None,
        })
    }

    pub fn closes(&self) -> usize {
        self.each(|effect| matches!(effect, Effect::Node(NodeCommand::Close { .. })).then_some(())).len()
    }

    pub fn pings(&self) -> usize {
        self.each(|effect| matches!(effect, Effect::Node(NodeCommand::Ping { .. })).then_some(())).len()
    }

    pub fn tokens(&self) -> Vec<String> {
        self.each(|effect| match effect {
            Effect::Node(NodeCommand::Connect { token, .. }) => Some(token.expose().to_string()),
            _ => None,
        })
    }

    pub fn exits(&self) -> bool {
        self.0.contains(&Effect::Exit)
    }

    /// Where in the order of effects the first one stands that `wanted` accepts.
    #[track_caller]
    pub fn at(&self, what: &str, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.0.iter().position(wanted).unwrap_or_else(|| panic!("{what} is missing:\n{self:?}"))
    }
}

/// `true` for the frame of this type.
pub fn sends(kind: &'static str) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::Node(NodeCommand::Send { frame, .. }) if frame.kind() == kind)
}

/// `true` for an event of this kind.
pub fn tells(kind: &'static str) -> impl Fn(&Effect) -> bool {
    move |effect| matches!(effect, Effect::Event(event) if serde_json::to_value(event).is_ok_and(|e| e["kind"] == kind))
}

#[track_caller]
pub fn between(value: Ms, low: Ms, high: Ms, what: &str) {
    assert!((low..=high).contains(&value), "{what}: {value} is not in {low}..={high}");
}
