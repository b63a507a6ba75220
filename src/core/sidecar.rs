//! The sidecar: a local program that declares actions and spawners and answers invokes.

use super::Broker;
use super::answers;
use super::ports::{ApiCall, ProcessNote, SidecarGeneration, SidecarNote, Ticket};

impl Broker {
    pub(super) fn on_sidecar(&mut self, _generation: SidecarGeneration, _note: SidecarNote) {}

    pub(super) fn on_supervised(&mut self, _note: ProcessNote) {}

    pub(super) fn on_fleet_call(&mut self, ticket: Ticket, _call: ApiCall) {
        self.reply(ticket, answers::code(501, "frame_failed", "not built yet"));
    }
}
