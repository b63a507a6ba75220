//! One machine: a broker's lives, its disk, its terminals, its end of the node socket, its local clients, its clock.

use std::collections::{BTreeMap, BTreeSet};

use agent_relay_broker::core::Broker;
use agent_relay_broker::core::ports::{Config, Effect, EngineCall, Generation, Ms, Secret, Ticket, Workspace};

use super::desk::Desk;
use super::disk::Disk;
use super::link::Link;
use super::sidecar::Sidecars;
use super::terminal::Terminal;
use super::weather::Weather;
use super::world::SELF_NAME;

pub struct Site {
    /// Its number in the engine. Two sites of one number fight for the node's socket.
    pub node: usize,
    /// Lives are numbered over all sites.
    pub life: u32,
    pub born: Ms,
    pub broker: Option<Broker>,
    pub config: Config,
    pub link: Link,
    /// Of this life.
    pub terminals: BTreeMap<Generation, Terminal>,
    pub disk: Disk,
    pub desk: Desk,
    /// What the daemon holds back while the disk refuses records.
    pub withheld: Vec<Effect>,
    /// Engine calls on their way.
    pub calls: BTreeMap<Ticket, EngineCall>,
    /// Agent ids that the broker has been told are bound here, in this life.
    pub bound: BTreeSet<String>,
    /// Highest ack sent per agent id and registration, in this life.
    pub acks: BTreeMap<(String, u32), u64>,
    /// The engine has answered an inventory in this life.
    pub told_inventory: bool,
    pub sidecars: Sidecars,
    pub ticks: usize,
    pub ticks_at_once: usize,
    pub ticked_at: Ms,
    /// Since when an orderly stop runs.
    pub stopping: Option<Ms>,
    /// How far the wall clock is off.
    pub clock_off: i64,
    /// When its broker was told that another one has its node.
    pub superseded: Option<Ms>,
    /// Switched off for good.
    pub retired: bool,
}

impl Site {
    pub fn new(node: usize, node_id: &str, node_name: &str, token: String, weather: &Weather) -> Site {
        let config = Config {
            node_id: node_id.into(),
            node_name: node_name.into(),
            node_token: Secret::new(token),
            token_pinned: weather.token_pinned,
            node_version: "relay-broker/9.1.6".into(),
            broker_version: "9.1.6".into(),
            workspaces: vec![Workspace {
                id: "ws_sim".into(),
                alias: None,
                key: Secret::new("rk_live_sim"),
                self_name: SELF_NAME.into(),
                self_agent_id: "ag_self".into(),
            }],
            home: 0,
            has_default: true,
            base_url: None,
            self_aliases: Vec::new(),
            default_channels: vec!["general".into(), "engineering".into()],
            result_url: "http://127.0.0.1:1/api/agent-result".into(),
            durable: weather.durable,
            persist: weather.persist,
            register_timeout_ms: 10_000,
            delivery_retry_ms: 1_000,
        };
        Site {
            node,
            life: 0,
            born: 0,
            broker: None,
            config,
            link: Link::default(),
            terminals: BTreeMap::new(),
            disk: Disk::default(),
            desk: Desk::default(),
            withheld: Vec::new(),
            calls: BTreeMap::new(),
            bound: BTreeSet::new(),
            acks: BTreeMap::new(),
            told_inventory: false,
            sidecars: Sidecars::default(),
            ticks: 0,
            ticks_at_once: 0,
            ticked_at: 0,
            stopping: None,
            clock_off: 0,
            superseded: None,
            retired: false,
        }
    }

    pub fn is_up(&self) -> bool {
        self.broker.is_some() && self.stopping.is_none()
    }
}
