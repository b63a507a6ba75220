//! What is typed for one message: a hint how to answer, the message line, and nothing that could press a key.
//!
//! The texts are part of the contract with the models that read them and are the same as those of 9.1.6.

use std::time::{Duration, Instant};

use crate::core::ports::Injection;

/// The long hint is repeated only when this much time and this much output lie behind the last one.
const LONG_HINT_EVERY: Duration = Duration::from_secs(300);
const LONG_HINT_BYTES: u64 = 64 << 10;

/// What stands before a message, about how to answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    Long,
    /// Its context is small.
    Short,
    Never,
}

/// How an agent is addressed. Fixed for one life of its process.
#[derive(Debug)]
pub struct Voice {
    /// It has a token of its own and must not register again.
    pub pre_registered: bool,
    /// The value of `RELAY_AGENT_NAME` that it was given.
    pub agent_name: Option<String>,
    pub hint: Hint,
    last_long: Option<(Instant, u64)>,
}

impl Voice {
    pub fn new(pre_registered: bool, agent_name: Option<String>, hint: Hint) -> Voice {
        Voice { pre_registered, agent_name, hint, last_long: None }
    }

    /// The text of a message, without a line feed at its end. `output` = bytes that the CLI has written so far.
    pub fn text(&mut self, injection: &Injection, now: Instant, output: u64) -> String {
        let message = Message::of(injection);
        let long_due = self
            .last_long
            .is_none_or(|(at, bytes)| now - at >= LONG_HINT_EVERY && output.saturating_sub(bytes) >= LONG_HINT_BYTES);
        if self.hint == Hint::Never {
            return message.line;
        }
        if self.hint == Hint::Short || !long_due {
            return format!("{}\n{}", self.short_hint(&message), message.line);
        }
        self.last_long = Some((now, output));
        format!("{}\n{}", self.long_hint(&message), message.line)
    }

    fn name(&self) -> &str {
        self.agent_name.as_deref().unwrap_or("<worker-name>")
    }

    fn short_hint(&self, message: &Message) -> String {
        let register = if self.pre_registered {
            String::new()
        } else {
            format!(
                " If unregistered, call mcp__agent-relay__register_agent(name: \"{}\", type: \"agent\") first.",
                self.name()
            )
        };
        format!(
            "<system-reminder>Reply via Agent Relay MCP: mcp__agent-relay__send_dm/agent-relay.send_dm (to: \"{}\") or \
             mcp__agent-relay__post_message/agent-relay.post_message (channel: \"{}\").{register}</system-reminder>",
            message.reply_to, message.channel
        )
    }

    fn long_hint(&self, message: &Message) -> String {
        let (first, second) = if self.pre_registered {
            (
                "You are pre-registered by the broker under your assigned worker name.".to_string(),
                "Do not call mcp__agent-relay__register_agent unless a send/reply fails with \"Not registered\"."
                    .to_string(),
            )
        } else {
            (
                "This worker was not pre-registered by the broker.".to_string(),
                format!(
                    "Before replying, call mcp__agent-relay__register_agent (name: \"{}\", type: \"agent\").",
                    self.name()
                ),
            )
        };
        let mut lines = vec![
            "<system-reminder>".to_string(),
            "Agent Relay MCP tools are available for replies.".to_string(),
            first,
            second,
            format!(
                "- For direct replies to \"{}\", use mcp__agent-relay__send_dm or agent-relay.send_dm (to: \"{}\").",
                message.sender, message.reply_to
            ),
            format!(
                "- For channel replies, use mcp__agent-relay__post_message or agent-relay.post_message (channel: \"{}\").",
                message.channel
            ),
            "- For thread replies, use mcp__agent-relay__reply_to_thread or agent-relay.reply_to_thread.".to_string(),
            "- To check unread messages/reactions, use mcp__agent-relay__check_inbox or agent-relay.check_inbox."
                .to_string(),
            "- Self-termination is not automatic. Only call remove_agent(name: \"<your-agent-name>\") or output /exit on \
             its own line when explicitly instructed to terminate."
                .to_string(),
        ];
        if let Some(label) = &message.label {
            lines.push(format!(
                "- This message belongs to workspace \"{label}\"; keep replies scoped to that workspace."
            ));
        }
        lines.push("</system-reminder>".to_string());
        lines.join("\n")
    }
}

/// The parts of a message after everything that could press a key was taken out.
struct Message {
    sender: String,
    reply_to: String,
    channel: String,
    label: Option<String>,
    line: String,
}

const PREFIX: &str = "Relay message from ";

impl Message {
    fn of(injection: &Injection) -> Message {
        let one_line = |text: &str| harmless(text).replace(['\n', '\t'], " ");
        let from = one_line(&injection.from);
        let target = one_line(&injection.target);
        let label = injection.workspace.as_deref().map(one_line).filter(|label| !label.trim().is_empty());
        let reply_to = from.strip_prefix("human:").unwrap_or(&from).to_string();
        let sender = if is_broker_name(&reply_to) { "Dashboard".to_string() } else { reply_to.clone() };
        let body = harmless(&injection.body);
        let line = if body.starts_with(PREFIX) {
            body.trim().to_string()
        } else {
            let channel = if target.starts_with('#') { format!(" in {target}") } else { String::new() };
            let id = one_line(&injection.event_id);
            let context = label.as_ref().map_or(id.clone(), |label| format!("{label} / {id}"));
            format!("{PREFIX}{sender}{channel} [{context}]: {body}")
        };
        let channel = channel_of(&target, &line);
        Message { sender, reply_to, channel, label, line }
    }
}

/// `broker-<letters and digits>`: a broker speaking for its dashboard.
fn is_broker_name(name: &str) -> bool {
    name.strip_prefix("broker-").is_some_and(|rest| !rest.is_empty() && rest.chars().all(char::is_alphanumeric))
}

/// The channel that answers go to, without `#`: the target, else the first `[#…]` of the line, else the word after
/// ` in #`, else `general`.
fn channel_of(target: &str, line: &str) -> String {
    let bracketed = || line.split_once("[#").and_then(|(_, rest)| rest.split_once(']')).map(|(name, _)| name);
    let after_in = || line.split_once(" in #").and_then(|(_, rest)| rest.split([' ', '\n', '\t', ':', '[']).next());
    target
        .strip_prefix('#')
        .or_else(bracketed)
        .or_else(after_in)
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .unwrap_or("general")
        .to_string()
}

/// `text` without anything that a terminal takes for a key: CR and CRLF become LF; all other C0 controls but LF and TAB,
/// DEL and the C1 controls go. A sender elsewhere can therefore not press Ctrl-C or end a bracketed paste.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                chars.next_if_eq(&'\n');
                out.push('\n');
            }
            '\n' | '\t' => out.push(c),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

/// What identifies the typed text in the echo: from the prefix through the first 64 characters of the body.
pub fn echo_mark(text: &str) -> String {
    let start = text.find(PREFIX).unwrap_or(0);
    let line = &text[start..];
    let body = line.find(": ").map_or(0, |colon| colon + 2);
    let end = line[body..].char_indices().nth(64).map_or(line.len(), |(offset, _)| body + offset);
    line[..end].to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::node::DeliveryMode;

    fn injection(from: &str, target: &str, body: &str, workspace: Option<&str>) -> Injection {
        Injection {
            delivery_id: "d".into(),
            event_id: "m_1".into(),
            from: from.into(),
            target: target.into(),
            body: body.into(),
            workspace: workspace.map(str::to_string),
            mode: DeliveryMode::Wait,
            exempt: false,
        }
    }

    fn line(from: &str, target: &str, body: &str, workspace: Option<&str>) -> String {
        Message::of(&injection(from, target, body, workspace)).line
    }

    #[test]
    fn message_lines_name_sender_channel_and_context() {
        assert_eq!(line("bob", "#dev", "hi", Some("ws_1")), "Relay message from bob in #dev [ws_1 / m_1]: hi");
        assert_eq!(line("human:Ann", "alice", "hi", None), "Relay message from Ann [m_1]: hi");
        assert_eq!(line("broker-x1", "alice", "hi", None), "Relay message from Dashboard [m_1]: hi");
        assert_eq!(line("broker-", "alice", "hi", None), "Relay message from broker- [m_1]: hi");
        assert_eq!(line("bob", "alice", "Relay message from eve: yo \n", None), "Relay message from eve: yo");
    }

    #[test]
    fn answers_go_to_the_channel_that_the_message_names() {
        for (target, line, want) in [
            ("#dev", "x", "dev"),
            ("alice", "a [#ops] b in #dev", "ops"),
            ("alice", "a in #dev [m_1]", "dev"),
            ("alice", "a", "general"),
        ] {
            assert_eq!(channel_of(target, line), want);
        }
        assert_eq!(Message::of(&injection("broker-x", "a", "b", None)).reply_to, "broker-x");
    }

    #[test]
    fn t1_no_control_byte_survives() {
        let hostile: String = (0u32..0x20).chain(0x7f..0xa0).filter_map(char::from_u32).collect();
        assert_eq!(harmless(&hostile), "\t\n\n");
        assert_eq!(harmless("a\r\nb\rc\x1b[201~d\u{9b}e"), "a\nb\nc[201~de");
        let mut voice = Voice::new(true, None, Hint::Long);
        let text = voice.text(&injection(&hostile, &hostile, &hostile, Some(&hostile)), Instant::now(), 0);
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
        // Sender, target and workspace stay on one line, so that none of them can forge a second message line.
        assert_eq!(line("a\nb", "#c\td", "x", Some("w\nz")), "Relay message from a b in #c d [w z / m_1]: x");
    }

    #[test]
    fn the_long_hint_comes_first_and_rarely() {
        let mut voice = Voice::new(true, Some("alice".into()), Hint::Long);
        let start = Instant::now();
        let message = injection("human:Ann", "#dev", "hi", Some("ws_1"));
        assert_eq!(
            voice.text(&message, start, 0),
            "<system-reminder>\n\
             Agent Relay MCP tools are available for replies.\n\
             You are pre-registered by the broker under your assigned worker name.\n\
             Do not call mcp__agent-relay__register_agent unless a send/reply fails with \"Not registered\".\n\
             - For direct replies to \"Ann\", use mcp__agent-relay__send_dm or agent-relay.send_dm (to: \"Ann\").\n\
             - For channel replies, use mcp__agent-relay__post_message or agent-relay.post_message (channel: \"dev\").\n\
             - For thread replies, use mcp__agent-relay__reply_to_thread or agent-relay.reply_to_thread.\n\
             - To check unread messages/reactions, use mcp__agent-relay__check_inbox or agent-relay.check_inbox.\n\
             - Self-termination is not automatic. Only call remove_agent(name: \"<your-agent-name>\") or output /exit on its own line when explicitly instructed to terminate.\n\
             - This message belongs to workspace \"ws_1\"; keep replies scoped to that workspace.\n\
             </system-reminder>\n\
             Relay message from Ann in #dev [ws_1 / m_1]: hi"
        );
        let short = "<system-reminder>Reply via Agent Relay MCP: mcp__agent-relay__send_dm/agent-relay.send_dm (to: \"Ann\") or mcp__agent-relay__post_message/agent-relay.post_message (channel: \"dev\").</system-reminder>\nRelay message from Ann in #dev [ws_1 / m_1]: hi";
        let later = start + LONG_HINT_EVERY;
        assert_eq!(voice.text(&message, later, LONG_HINT_BYTES - 1), short);
        assert_eq!(voice.text(&message, later - Duration::from_secs(1), LONG_HINT_BYTES), short);
        assert!(voice.text(&message, later, LONG_HINT_BYTES).starts_with("<system-reminder>\nAgent Relay"));
        assert_eq!(voice.text(&message, later, LONG_HINT_BYTES), short);
    }

    #[test]
    fn an_unregistered_agent_is_told_to_register() {
        let mut voice = Voice::new(false, None, Hint::Short);
        let text = voice.text(&injection("bob", "a", "hi", None), Instant::now(), 0);
        assert!(text.contains(" If unregistered, call mcp__agent-relay__register_agent(name: \"<worker-name>\", type: \"agent\") first.</system-reminder>\n"), "{text}");
        let mut voice = Voice::new(false, Some("alice".into()), Hint::Long);
        let text = voice.text(&injection("bob", "a", "hi", None), Instant::now(), 0);
        assert!(text.contains("\nThis worker was not pre-registered by the broker.\nBefore replying, call mcp__agent-relay__register_agent (name: \"alice\", type: \"agent\").\n"), "{text}");
    }

    #[test]
    fn d14_the_echo_is_known_by_prefix_and_first_64_characters() {
        let body = "é".repeat(100);
        let mark = echo_mark(&format!("<hint>\nRelay message from bob [m_1]: {body}"));
        assert_eq!(mark, format!("Relay message from bob [m_1]: {}", "é".repeat(64)));
        assert_eq!(echo_mark("Relay message from bob"), "Relay message from bob");
    }
}
