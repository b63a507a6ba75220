//! The invariants of delivery, checked at the moment when they could break: when an ack leaves, when a record is written,
//! when something is typed.

use agent_relay_broker::core::ports::{EngineCall, Generation, Injection, Record};
use agent_relay_broker::wire::events::Event;
use agent_relay_broker::wire::node::{ActionOutcome, Deliver, DeliveryMode, InventorySync, ToEngine};

use super::disk::answer_text;
use super::rows::{Agent, Row};
use super::terminal::Terminal;
use super::world::World;

/// The row that a delivery id stands for: `del_<message>_<agent id>`.
fn row_of<'a>(agents: &'a mut std::collections::BTreeMap<String, Agent>, delivery_id: &str) -> Option<&'a mut Row> {
    let (_, agent_id) = delivery_id.strip_prefix("del_")?.split_once('_')?;
    let agent = agents.get_mut(agent_id)?;
    agent.rows.values_mut().find(|row| row.copy_of.is_none() && row.delivery_id == delivery_id)
}

impl World {
    /// The broker takes a frame over.
    pub fn arrived(&mut self, deliver: &Deliver) {
        self.arrivals += 1;
        let order = self.arrivals;
        let life = self.site.life;
        if deliver.seq == 0 {
            let passing = self.engine.passing.iter_mut().find(|one| one.delivery_id == deliver.delivery_id);
            if let Some(passing) = passing {
                passing.arrived = Some(life);
            }
            return;
        }
        let up = self.site.terminals.values().any(|one| one.name == deliver.agent && one.is_up());
        let coming = self.site.terminals.values().any(|one| one.name == deliver.agent && !one.told_gone);
        // Frames for an agent whose id is still asked for wait like those for one that is coming.
        let looked_up = |call: &EngineCall| matches!(call, EngineCall::LookUpAgent { name } if *name == deliver.agent);
        let nameless = self.site.calls.values().any(looked_up);
        if let Some(agent) = self.engine.agents.get_mut(&deliver.agent_id)
            && ((!up && (coming || !self.site.told_inventory)) || nameless)
        {
            agent.left_in.insert(life);
        }
        if let Some(row) =
            self.engine.agents.get_mut(&deliver.agent_id).and_then(|agent| agent.rows.get_mut(&deliver.seq))
            && row.arrived.is_none_or(|(at, _)| at != life)
        {
            row.arrived = Some((life, order));
        }
    }

    pub fn check_injection(&mut self, generation: Generation, injection: &Injection) {
        let id = injection.delivery_id.as_str();
        let terminal = &self.site.terminals[&generation];
        let (name, agent_id) = (terminal.name.clone(), terminal.agent_id.clone());
        if id.starts_with("del_foreign") {
            return self.fail("foreign_typed", format!("{name} is given {id}, which is for another identity"));
        }
        if let Some(passing) = self.engine.passing.iter().find(|one| one.delivery_id == id) {
            if !passing.inject {
                self.fail("ack_only_typed", format!("{name} is given {id}"));
            } else if injection.body != passing.text {
                let text = format!("{id}: {:?} instead of {:?}", injection.body, passing.text);
                self.fail("garbled", text);
            } else if agent_id.as_ref().is_some_and(|agent_id| *agent_id != passing.agent_id) {
                self.fail("wrong_terminal", format!("{name} is given {id}"));
            }
            return;
        }
        if injection.event_id.starts_with("http_") {
            return self.check_send_injected(generation, &name, injection);
        }
        if injection.event_id.starts_with("init_") {
            return;
        }
        let life = self.site.life;
        let Some(row) = row_of(&mut self.engine.agents, id) else {
            return self.fail("typed_from_nowhere", format!("{name} is given {injection:?}"));
        };
        row.injected = Some((life, generation));
        let (seq, steer, inject) = (row.seq, row.steer, row.inject);
        let same = injection.event_id == row.msg_id
            && injection.body == row.text
            && injection.from == row.from
            && injection.target == row.target
            && (injection.mode == DeliveryMode::Steer) == row.steer;
        if !same {
            let text = format!("{injection:?} should be {row:?}");
            return self.fail("garbled", text);
        }
        if !inject {
            return self.fail("ack_only_typed", format!("{name} is given {id}"));
        }
        let (_, owner) = id["del_".len()..].split_once('_').expect("the form of a row's id");
        let agent = &self.engine.agents[owner];
        if agent.name != name || agent_id.as_ref().is_some_and(|agent_id| agent_id != owner) {
            return self.fail("wrong_terminal", format!("{name} ({agent_id:?}) is given {id}"));
        }
        if steer {
            return;
        }
        let row = &agent.rows[&seq];
        let overtaken = agent.open.range(..seq).map(|lower| &agent.rows[lower]).find(|lower| {
            lower.inject
                && !lower.steer
                && !agent.disposed(lower.seq)
                && lower.copy_of.is_none()
                && lower.arrived.is_some_and(|(at, _)| at == life)
                && lower.declared_missing != Some(life)
                && lower.typed.iter().all(|(at, _)| *at != life)
        });
        if let Some(lower) = overtaken {
            let text =
                format!("{name}: {seq} (arrived {:?}) before {} (arrived {:?})", row.arrived, lower.seq, lower.arrived);
            self.fail("order", text);
        }
    }

    /// Body and Enter are in the terminal.
    pub fn check_typed(&mut self, generation: Generation, delivery_id: &str) {
        let (life, durable) = (self.site.life, self.weather.durable);
        let mut wrong = None;
        let terminals = &self.site.terminals;
        let counts = |by: Generation| terminals.get(&by).is_none_or(|one| !one.outlived);
        if let Some(passing) = self.engine.passing.iter_mut().find(|one| one.delivery_id == delivery_id) {
            if passing.typed.iter().any(|(at, by)| *at == life && counts(*by)) {
                wrong =
                    Some(("typed_twice", format!("{delivery_id} into generation {generation}: {:?}", passing.typed)));
            }
            passing.typed.push((life, generation));
        } else if let Some(row) = row_of(&mut self.engine.agents, delivery_id) {
            if row.typed.iter().any(|(at, by)| *at == life && counts(*by)) {
                wrong = Some(("typed_twice", format!("{delivery_id} into generation {generation}: {:?}", row.typed)));
            }
            row.typed.push((life, generation));
            let (_, owner) = delivery_id["del_".len()..].split_once('_').expect("the form of a row's id");
            // A copy came under another number.
            let here = row.came.get(&life).map(|moves| (self.site.node, *moves));
            let before = std::mem::replace(&mut row.typed_at, here);
            if before.zip(here).is_some_and(|(before, here)| before.0 != here.0 && before.1 == here.1) {
                wrong.get_or_insert(("typed_at_both", format!("{delivery_id} at two nodes, its agent has not moved")));
            }
            // What was disposed before the agent moved is not on this disk.
            let stayed = self.engine.agents[owner].moves == 0 && !self.weather.twins;
            let Some(row) = row_of(&mut self.engine.agents, delivery_id) else { return };
            if durable && stayed && self.site.disk.cursor(owner) >= row.seq && row.declared_missing.is_none() {
                wrong.get_or_insert((
                    "typed_after_disposed",
                    format!("{delivery_id}, number {}, though the journal says that it is disposed", row.seq),
                ));
            }
        } else {
            self.site.desk.typed(generation, delivery_id);
            if self
                .site
                .desk
                .typed_twice(delivery_id, |by| self.site.terminals.get(&by).is_none_or(|one| !one.outlived))
            {
                wrong = Some(("typed_twice", format!("{delivery_id} into generation {generation}")));
            }
        }
        if let Some((invariant, text)) = wrong {
            self.fail(invariant, text);
        }
    }

    /// The program has taken it.
    pub fn check_read(&mut self, generation: Generation, delivery_id: &str) {
        if let Some(passing) = self.engine.passing.iter_mut().find(|one| one.delivery_id == delivery_id) {
            passing.read = true;
        } else if let Some(row) = row_of(&mut self.engine.agents, delivery_id) {
            row.read = Some(self.site.life);
        } else {
            self.site.desk.read(generation, delivery_id);
        }
    }

    fn dead(&mut self, delivery_id: &str, on_disk: bool) {
        if let Some(passing) = self.engine.passing.iter_mut().find(|one| one.delivery_id == delivery_id) {
            passing.dead = true;
            return;
        }
        let life = self.site.life;
        let mut wrong = None;
        if row_of(&mut self.engine.agents, delivery_id).is_some() {
            let (_, owner) = delivery_id["del_".len()..].split_once('_').expect("the form of a row's id");
            let stayed = self.engine.agents[owner].moves == 0 && !self.weather.twins;
            let Some(row) = row_of(&mut self.engine.agents, delivery_id) else { return };
            if !row.dead && row.read == Some(life) {
                wrong = Some(("dead_letter_of_read", format!("{delivery_id} was read in this life")));
            } else if !row.dead && self.weather.durable && stayed && self.site.disk.cursor(owner) >= row.seq {
                wrong = Some(("dead_letter_of_disposed", format!("{delivery_id} is disposed in the journal")));
            }
            row.dead = true;
            row.dead_on_disk |= on_disk;
        }
        if let Some((invariant, text)) = wrong {
            self.fail(invariant, text);
        }
    }

    pub fn event_seen(&mut self, event: &Event) {
        match event {
            Event::DeadLetterAdded { delivery_id, event_id, .. } => {
                self.dead(delivery_id, false);
                self.site.desk.failed(event_id, delivery_id);
            }
            Event::MessageDeliveryFailed { delivery_id, event_id, .. } => self.site.desk.failed(event_id, delivery_id),
            Event::DeliveryDropped { name, count, .. } => self.site.desk.dropped(name, *count),
            Event::RelayInbound { event_id, .. } => self.site.desk.accepted(event_id),
            Event::AgentRestarting { name, .. } => {
                for one in self.site.terminals.values_mut().filter(|one| one.name == *name && one.told_gone) {
                    (one.outlived, one.cooling) = (true, true);
                }
            }
            Event::AgentRestarted { name, .. } => {
                self.come_to_rest(name);
                let again = self.site.terminals.iter_mut().find(|(_, one)| one.name == *name && one.is_up());
                match again {
                    Some((generation, one)) => one.claimed = Some(format!("restart {generation}")),
                    None => self.fail("restart_without_agent", format!("{name} is said to run again; it does not")),
                }
            }
            Event::AgentPermanentlyDead { name, .. } | Event::AgentReleased { name } => self.come_to_rest(name),
            Event::DeliveryGap { name, from_seq, to_seq } => self.gap(name, *from_seq, *to_seq),
            _ => {}
        }
    }

    fn come_to_rest(&mut self, name: &str) {
        self.site.terminals.values_mut().filter(|one| one.name == name).for_each(|one| one.cooling = false);
    }

    /// The broker gives numbers up as missing. Wrongly, if the engine has them open: the next acknowledgement will tell.
    fn gap(&mut self, name: &str, from: u64, to: u64) {
        let life = self.site.life;
        let Some(agent) = self.engine.names.get(name).and_then(|id| self.engine.agents.get_mut(id)) else { return };
        for (_, row) in agent.rows.range_mut(from..=to) {
            if row.arrived.is_none_or(|(at, _)| at != life) {
                row.declared_missing = Some(life);
            }
        }
    }

    pub fn check_record(&mut self, record: &Record) {
        match record {
            Record::Disposed { agent_id, agent, seq, .. } => {
                // Of an agent that is bound nowhere the engine forgets nothing: no acknowledgement reaches it.
                let Some(known) = self.engine.agents.get(agent_id).filter(|known| known.at == Some(self.site.node))
                else {
                    return;
                };
                let open = known.open.range(..=*seq).find(|open| !known.disposed(**open)).copied();
                if let Some(open) = open {
                    self.fail(
                        "journal_ahead",
                        format!("{agent}: disposed up to {seq}, but {open} is neither read nor dead"),
                    );
                }
            }
            Record::DeadLetter(letter) => self.dead(&letter.delivery_id, true),
            _ => {}
        }
    }

    pub fn check_outbound(&mut self, frame: &ToEngine) {
        match frame {
            ToEngine::DeliveryAck(ack) => self.check_ack(&ack.agent, ack.up_to_seq),
            ToEngine::AgentDeregister(frame) => {
                self.site.bound.remove(&frame.agent_id);
            }
            ToEngine::InventorySync(inventory) => self.check_inventory(inventory),
            ToEngine::AgentRegister(register) => {
                *self.engine.asked.entry(register.name.clone()).or_default() += 1;
                let running = self.site.terminals.values().any(|one| one.name == register.name && one.is_up());
                if running {
                    self.fail("register_of_running", format!("{}: its token would be rotated", register.name));
                }
            }
            ToEngine::ActionResult(result) => {
                let (output, error) = match &result.outcome {
                    ActionOutcome::Output(output) => (Some(output), None),
                    ActionOutcome::Error(error) => (None, Some(error.as_str())),
                };
                let spawned = output.is_some_and(|output| output.get("spawned").is_some());
                self.check_result(&result.invocation_id, answer_text(output, error), spawned);
            }
            _ => {}
        }
    }

    fn check_ack(&mut self, name: &str, up_to: u64) {
        let life = self.site.life;
        let durable = self.weather.durable;
        if self.weather.twins {
            // One of them may mean an identity of another time.
            return;
        }
        let Some(agent) = self.engine.by_name(name) else { return };
        let key = (agent.id.clone(), agent.epoch);
        if let Some(before) = self.site.acks.insert(key, up_to).filter(|before| *before > up_to) {
            return self.fail("ack_falls", format!("{name}: ack {up_to} after ack {before}"));
        }
        let Some(agent) = self.engine.by_name(name).filter(|agent| agent.at == Some(self.site.node)) else { return };
        for seq in agent.open.range(..=up_to).copied() {
            let row = &agent.rows[&seq];
            if !agent.disposed(seq) {
                let arrived = row.arrived.is_some_and(|(at, _)| at == life);
                let text =
                    format!("{name}: ack {up_to}, but {seq} (arrived: {arrived}) is neither read nor recorded as dead");
                return self.fail("ack_ahead", text);
            }
            if durable && !row.hole && !row.dead_on_disk && self.site.disk.cursor(&agent.id) < seq {
                let text = format!("{name}: ack {up_to}, but the journal does not say that {seq} is disposed");
                return self.fail("ack_before_journal", text);
            }
        }
    }

    fn check_inventory(&mut self, inventory: &InventorySync) {
        // Listing an agent with its invocation answers that.
        for entry in &inventory.agents {
            let terminal = self.site.terminals.values_mut().find(|one| one.name == entry.name && one.is_up());
            if let (Some(id), Some(terminal)) = (&entry.invocation_id, terminal) {
                terminal.claimed.get_or_insert(format!("invocation {id}"));
            }
        }
        if let Some(stranger) = inventory.agents.iter().find(|entry| {
            !self.site.terminals.values().any(|one| {
                one.name == entry.name
                    && (one.is_up() || one.cooling)
                    && one.agent_id.as_ref().is_none_or(|id| *id == entry.agent_id)
            })
        }) {
            return self.fail("inventory", format!("{stranger:?} is listed, but no such agent runs"));
        }
        let missing = self.site.terminals.values().find(|one| {
            one.is_up()
                && one.claimed.is_some()
                && !one.release_asked
                && one.agent_id.as_ref().is_some_and(|id| {
                    self.site.bound.contains(id) && !inventory.agents.iter().any(|entry| entry.agent_id == *id)
                })
        });
        if let Some(missing) = missing.filter(|_| self.site.stopping.is_none()) {
            let text = format!("{} runs and is registered, but is not listed", missing.name);
            self.fail("inventory", text);
        }
    }

    /// The broker has made up its answer, whenever it may leave.
    pub fn result_reached(&mut self, invocation_id: &str) {
        let life = self.site.life;
        let replayed = self.site.disk.answers.get(invocation_id).is_some_and(|(earlier, _)| *earlier < life);
        if let Some(invocation) = self.engine.invocations.get_mut(invocation_id) {
            let asked = self.engine.asked.get(&invocation.name).copied().unwrap_or_default();
            match invocation.asked_before {
                Some((answered_in, _)) if replayed || answered_in == life => {}
                _ => {
                    invocation.asked_before = Some((life, asked));
                    let id = self.engine.names.get(&invocation.name);
                    invocation.epoch_before =
                        id.and_then(|id| self.engine.agents.get(id)).map(|agent| (agent.id.clone(), agent.epoch));
                }
            }
        }
    }

    /// No handler is there, which ends nothing: the invocation may come again, and find one.
    pub fn came_back(&mut self, invocation_id: &str) {
        if let Some(invocation) = self.engine.invocations.get_mut(invocation_id) {
            invocation.invoked.remove(&self.site.life);
        }
    }

    fn check_result(&mut self, invocation_id: &str, said: String, spawned: bool) {
        self.result_reached(invocation_id);
        let (life, opened) = (self.site.life, self.site.link.opened_in_life);
        let on_disk = self.site.disk.answers.get(invocation_id).cloned();
        let Some(invocation) = self.engine.invocations.get_mut(invocation_id) else {
            return self.fail("answer_to_nothing", format!("{invocation_id}: {said}"));
        };
        let count = invocation.answers.entry(life).or_default();
        *count += 1;
        let seen = invocation.seen.get(&life).copied().unwrap_or_default();
        if *count > seen + opened {
            let text = format!("{invocation_id}: {count} answers to {seen} requests over {opened} connections");
            return self.fail("invocation_answered_too_often", text);
        }
        if said == "error handler_unavailable" {
            return self.came_back(invocation_id);
        }
        if said.starts_with("error release_superseded: ") {
            // Only in the place of a report of success. That the agent is there again, if only between two lives, the core's
            // own tests show: by the time the word arrives here it may have gone once more.
            let released = format!("output {}", serde_json::json!({"released": true, "name": invocation.name}));
            let before = invocation.said.get(&life).or(on_disk.as_ref().map(|(_, stored)| stored));
            if before != Some(&released) {
                let text = format!("{invocation_id}: {said} after {before:?}");
                self.fail("two_answers", text);
            }
            return;
        }
        if let Some(promised) = invocation.promised.get(&life).filter(|promised| **promised != said) {
            let text = format!("{invocation_id}: {said}, the sidecar was told that it counts as {promised}");
            return self.fail("result_not_verbatim", text);
        }
        let name = invocation.name.clone();
        let before = invocation.said.insert(life, said.clone());
        if let Some(before) = before {
            if before != said {
                self.fail("two_answers", format!("{invocation_id}: {said} after {before}"));
            }
            return;
        }
        if self.weather.durable
            && let Some((stored_in, stored)) = on_disk
        {
            if stored != said {
                self.fail("two_answers", format!("{invocation_id}: {said}, but the journal has {stored}"));
            }
            if stored_in < life {
                return;
            }
        }
        if spawned {
            self.claim(&name, format!("invocation {invocation_id}"));
        }
    }

    /// A spawn was answered with success: there must be a running agent that no other answer stands for.
    pub fn claim(&mut self, name: &str, by: String) {
        // The result of an invocation may leave later than it was reached: the agent may have ended since.
        let late = by.starts_with("invocation");
        let unclaimed = |one: &Terminal| one.name == name && one.told_started && one.claimed.is_none();
        let mut candidates: Vec<_> = self.site.terminals.iter().filter(|(_, one)| unclaimed(one)).collect();
        candidates.sort_by_key(|(generation, one)| (!one.is_up(), std::cmp::Reverse(**generation)));
        if self.site.terminals.values().any(|one| one.name == name && one.claimed.as_ref() == Some(&by)) {
            return;
        }
        // One that has ended well before the answer was no failed spawn.
        let counts = |one: &Terminal| late || one.is_up() || one.has_done_its_work;
        let found = candidates.first().filter(|(_, one)| counts(one)).map(|(generation, _)| **generation);
        let agent = match found {
            Some(generation) => self.site.terminals.get_mut(&generation),
            None => self.site.terminals.values_mut().find(|one| one.name == name && one.is_up()),
        };
        match agent {
            None => self.fail("spawn_without_agent", format!("{by} is told that {name} runs; it does not")),
            Some(agent) => {
                if let Some(other) = agent.claimed.replace(by.clone()) {
                    self.fail("one_agent_two_spawns", format!("{name} answers {by} and {other}"));
                }
            }
        }
    }
}
