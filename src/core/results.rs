//! Results that agents report with a token of their own: `POST /api/agent-result`.

use serde_json::Value;

use super::ports::{ResultReport, Ticket};
use super::{Broker, answers};
use crate::wire::api;
use crate::wire::events::Event;

impl Broker {
    /// The token is the proof of who reports; it dies with its agent.
    pub(super) fn take_result(&mut self, ticket: Ticket, report: ResultReport) {
        let given = report.token.expose();
        let owner = self.roster.iter().find(|agent| agent.result_token.as_ref().is_some_and(|own| own.is(given)));
        let Some(name) = owner.map(|agent| agent.name.clone()).filter(|name| {
            let claimed = report.name.as_deref().map(str::trim).filter(|claimed| !claimed.is_empty());
            claimed.is_none_or(|claimed| claimed == name)
        }) else {
            self.reply(ticket, answers::refused(401, "invalid_result_token"));
            return;
        };
        let result_id = self.ids.fresh("ar_");
        self.event(Event::AgentResult {
            name: name.clone(),
            result_id: result_id.clone(),
            data: report.data,
            is_final: report.is_final,
            metadata: report.metadata.unwrap_or(Value::Null),
        });
        self.reply(ticket, answers::ok(api::result_taken(&name, &result_id)));
    }
}
