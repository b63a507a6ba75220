//! The calm after the storm: no faults, no new traffic. Everything that was accepted must come to its end, and then the
//! broker must be quiet.

use std::collections::BTreeMap;

use agent_relay_broker::core::ports::{ApiCall, Expected, InboundMode, Ms};

use super::agenda::Act;
use super::link::Phase as LinkPhase;
use super::rows::Agent;
use super::terminal::Phase;
use super::world::World;

/// Longest of all patience: the retry of a rejected token is 300 s, then back-off, replay, 10 failed tries.
const SETTLE_MS: Ms = 900_000;
const QUIET_MS: Ms = 60_000;

impl World {
    pub fn settle(&mut self) {
        self.calm = true;
        self.weather.calm();
        if self.weather.twins {
            self.focus(1);
            self.retire();
        }
        self.each_site(World::calm_down);
        let end = self.now + SETTLE_MS;
        let mut release_holds = self.now;
        loop {
            if self.violation.is_some() {
                return;
            }
            if self.now >= release_holds {
                release_holds = self.now + 30_000;
                self.each_site(World::release_holds);
            }
            match self.unsettled_anywhere() {
                None => break,
                Some((invariant, text)) if self.now > end => return self.fail(invariant, text),
                Some(_) => self.step(),
            }
        }
        self.quiet();
        let mut homes = BTreeMap::new();
        self.each_site(|world| {
            if world.violation.is_none() && !world.weather.twins {
                world.last_look();
                world.one_home(&mut homes);
            }
        });
    }

    /// No agent is at home on two machines, and no invocation has two agents.
    fn one_home(&mut self, homes: &mut BTreeMap<String, usize>) {
        let bound = |id: &&String| self.site.bound.contains(*id);
        let mut found = Vec::new();
        for one in self.site.terminals.values().filter(|one| one.is_up()) {
            let Some(id) = one.agent_id.as_ref().filter(bound) else { continue };
            found.push(format!("agent {id}"));
            found.extend(one.claimed.clone().filter(|by| by.starts_with("invocation")));
        }
        for what in found {
            if let Some(other) = homes.insert(what.clone(), self.at) {
                self.fail("two_homes", format!("{what} is at {other} and at {}", self.at));
            }
        }
    }

    /// The machine is switched off for good.
    fn retire(&mut self) {
        if self.site.broker.is_some() {
            self.crash();
        }
        self.site.retired = true;
    }

    fn calm_down(&mut self) {
        self.sidecars_calm_down();
        if self.weather.token_pinned {
            self.engine.node_mut().token = self.site.config.node_token.expose().to_string();
        }
        let generations: Vec<_> = self.site.terminals.keys().copied().collect();
        for generation in generations {
            let Some(terminal) = self.site.terminals.get_mut(&generation) else { continue };
            terminal.fail_next = 0;
            if terminal.busy_until > self.now {
                terminal.busy_until = self.now;
            }
            if let Some(flight) = terminal.in_flight.as_ref().filter(|flight| flight.typed) {
                let delivery_id = flight.injection.delivery_id.clone();
                self.act_in(generation, 5, Act::Read { delivery_id });
            }
        }
    }

    fn release_holds(&mut self) {
        if !self.site.is_up() {
            return;
        }
        let names: Vec<String> =
            self.site.terminals.values().filter(|one| one.is_up()).map(|one| one.name.clone()).collect();
        for name in names {
            self.ask(ApiCall::SetDeliveryMode { name, mode: InboundMode::AutoInject, expected: Expected::default() });
        }
    }

    fn unsettled_anywhere(&mut self) -> Option<(&'static str, String)> {
        let mut found = None;
        self.each_site(|world| found = found.take().or_else(|| world.unsettled()));
        found
    }

    /// What is still open, and the invariant that says it must not stay so.
    fn unsettled(&self) -> Option<(&'static str, String)> {
        if !self.site.is_up() {
            return Some(("never_back", "the broker is not up".into()));
        }
        if self.site.link.phase != LinkPhase::Open || !self.engine.registered() {
            return Some(("never_online", format!("the node link is {:?}", self.site.link)));
        }
        if let Some(text) = self.site.desk.unsettled() {
            return Some(("ticket_or_send_unsettled", text));
        }
        if let Some((id, invocation)) = self.engine.invocations.iter().find(|(_, one)| !one.done) {
            return Some(("invocation_unanswered", format!("{id}: {invocation:?}")));
        }
        if let Some((generation, one)) = self.site.terminals.iter().find(|(_, one)| {
            matches!(one.phase, Phase::Looking | Phase::Prepared | Phase::Starting)
                || (one.phase == Phase::Running && one.open.is_some())
                || (one.phase == Phase::Gone) != one.told_gone
                || (one.phase == Phase::Running && one.release_asked)
        }) {
            return Some(("agent_unsettled", format!("generation {generation}: {one:?}")));
        }
        let pending = self.site.broker.as_ref().map_or(0, |broker| broker.health().pending_deliveries);
        if pending > 0 {
            return Some(("pending_for_ever", format!("{pending} deliveries wait in the broker")));
        }
        if self.weather.twins {
            // Each takes the other's messages for its own, or for nobody's: only the fight itself has rules.
            return None;
        }
        let runs = |agent: &Agent| self.site.terminals.values().any(|one| one.is_up() && one.name == agent.name);
        // What waits for the next life of an agent waits at the engine.
        // What is for another identity than the one that runs is neither typed nor acknowledged.
        let foreign = |agent: &Agent| {
            let other = |id: &Option<String>| id.as_ref() != Some(&agent.id);
            self.site.terminals.values().any(|one| one.is_up() && one.name == agent.name && other(&one.agent_id))
        };
        let must = |agent: &&Agent| {
            agent.at == Some(self.site.node)
                && !agent.release_ignored
                && !foreign(agent)
                && (!agent.left_in.contains(&self.site.life) || runs(agent))
        };
        for agent in self.engine.agents.values().filter(must) {
            if let Some(row) = agent.open.first().map(|seq| &agent.rows[seq]) {
                return Some(("row_unsettled", format!("{}: {row:?}", agent.name)));
            }
        }
        let passing = self.engine.passing.iter().find(|one| {
            one.inject
                && !one.read
                && !one.dead
                && one.arrived.is_some_and(|life| {
                    let stored = || self.site.disk.unrepeated.iter().any(|(_, key)| key.contains(&one.delivery_id));
                    let runs = || {
                        self.site.terminals.values().any(|t| t.is_up() && t.agent_id.as_ref() == Some(&one.agent_id))
                    };
                    life == self.site.life || (self.weather.durable && stored() && runs())
                })
        });
        if let Some(passing) = passing {
            return Some(("unrepeated_lost", format!("{passing:?}")));
        }
        None
    }

    /// Nothing happens: the broker may wake for its heartbeats and nothing else.
    fn quiet(&mut self) {
        let until = self.now + QUIET_MS;
        // What is under way (echo windows, replies) ends first.
        let calm_down = self.now + 6_000;
        while self.now < calm_down && self.violation.is_none() {
            self.step();
        }
        self.each_site(|world| world.site.ticks = 0);
        while self.now < until && self.violation.is_none() {
            self.step();
        }
        self.each_site(|world| {
            // An agent that is bound elsewhere is offered again every 15 s.
            if world.site.ticks > if world.sites() == 1 { 9 } else { 14 } {
                world.fail("restless", format!("{} ticks in 54 s of quiet", world.site.ticks));
            }
        });
        // An agent may come once more to its messages, when its bind is tried again.
        let patience = self.now + SETTLE_MS;
        while self.now < patience && self.violation.is_none() && self.unsettled_anywhere().is_some() {
            self.step();
        }
        if let Some((invariant, text)) = self.unsettled_anywhere() {
            self.fail(invariant, format!("again open after it had settled: {text}"));
        }
    }

    fn last_look(&mut self) {
        let running: Vec<(u64, String, Option<String>)> = self
            .site
            .terminals
            .iter()
            .filter(|(_, one)| one.phase == Phase::Running)
            .map(|(generation, one)| (*generation, one.name.clone(), one.agent_id.clone()))
            .collect();
        for (generation, name, agent_id) in &running {
            let terminal = &self.site.terminals[generation];
            if terminal.claimed.is_none() {
                return self.fail("unclaimed_agent", format!("{name} runs, but no spawn was answered with it"));
            }
            let Some(agent) = agent_id.as_ref().and_then(|id| self.engine.agents.get(id)) else { continue };
            if !self.site.bound.contains(&agent.id) {
                continue;
            }
            let taken_back = agent.token.is_none() && agent.unbound_by != self.site.node;
            if agent.deleted || taken_back || agent.registrar != self.site.node {
                // Registered on another machine since, while this one was cut off.
                continue;
            }
            if agent.token != terminal.token {
                let text = format!("{name} holds {:?}, the engine takes {:?}", terminal.token, agent.token);
                return self.fail("token_of_running_agent_dead", text);
            }
            if agent.at != Some(self.site.node) || !agent.online {
                let text = format!("{name} runs, but the engine has it at {:?}, online: {}", agent.at, agent.online);
                return self.fail("running_agent_offline", text);
            }
        }
        // Tokens that this life was told and that no running agent holds.
        let usable = self.engine.agents.values().find(|agent| {
            let told =
                agent.token.as_ref().and_then(|token| self.engine.tokens.get(token)).and_then(|token| token.told);
            // Active elsewhere it is not ours to take back; neither is what a release left whose report came second.
            agent.at.is_none_or(|at| at == self.site.node)
                && !agent.release_ignored
                && told == Some(self.site.life)
                && !running.iter().any(|(_, _, id)| id.as_ref() == Some(&agent.id))
        });
        if let Some(agent) = usable {
            let text = format!("{} does not run; its token {:?} still works", agent.name, agent.token);
            return self.fail("usable_token", text);
        }
        let mut expected: Vec<(String, String)> = running
            .iter()
            .filter_map(|(_, name, id)| {
                id.clone().filter(|id| self.site.bound.contains(id)).map(|id| (name.clone(), id))
            })
            .collect();
        expected.sort();
        let mut listed = self.engine.node().inventory.clone().unwrap_or_default();
        listed.sort();
        listed.retain(|entry| expected.contains(entry) || !running.iter().any(|(_, name, _)| *name == entry.0));
        if listed != expected {
            return self.fail("inventory", format!("the engine has {listed:?}, there run {expected:?}"));
        }
        let node = self.engine.node();
        let unclaimed = node.capabilities.is_empty() || self.site.sidecars.declared.contains(&node.capabilities);
        if !unclaimed || node.handlers_live != self.site.sidecars.live() {
            let text = format!("the engine has {:?}, live: {}", node.capabilities, node.handlers_live);
            return self.fail("stale_face", text);
        }
        if let Some(said) = self.engine.node().active_agents.filter(|said| *said != running.len() as u64) {
            let text = format!("the last heartbeat counts {said} agents, {} run", running.len());
            return self.fail("heartbeat_count", text);
        }
        self.check_dead_letters();
    }

    /// Every dead letter on disk can be looked at.
    fn check_dead_letters(&mut self) {
        self.ask(ApiCall::DeadLetters);
        let Some(shown) = self.site.desk.dead_letters.clone() else { return };
        if self.weather.durable && shown.len() < 500 {
            let missing = self.site.disk.dead.iter().find(|id| !shown.contains(*id)).cloned();
            if let Some(missing) = missing {
                self.fail("dead_letter_hidden", format!("{missing} is in the journal and not in the answer"));
            }
        }
    }
}
