//! Answers the questions of [`super::dialogs`] by keys, as a user who started the CLI for unattended work would.
//!
//! A table of keys and pauses; no waiting here, the pump asks at the time it is told. A question that a message itself
//! contains is not a question of the CLI: its answer is off until that text has left the screen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::dialogs::{self, Dialog};

/// A pause, then keys.
type Stroke = (u64, &'static [u8]);

struct Answer {
    strokes: &'static [Stroke],
    /// How often at most, and the pause in between.
    times: u32,
    cooldown: Duration,
}

const DOWN_ENTER: &[Stroke] = &[(100, b"\x1b[B"), (100, b"\r")];
const COOLDOWN: Duration = Duration::from_secs(2);

fn answer(dialog: Dialog, screen: &str) -> Answer {
    let once = |strokes| Answer { strokes, times: 1, cooldown: COOLDOWN };
    let always = |strokes| Answer { strokes, times: u32::MAX, cooldown: COOLDOWN };
    match dialog {
        Dialog::McpApproval => once(&[(100, b"a")]),
        Dialog::BypassPermissions => {
            let lower = screen.to_lowercase();
            let menu = ["accept", "exit", "enter", "confirm"].iter().all(|word| lower.contains(word));
            let strokes: &[Stroke] = if menu { &[(500, b"\x1b[B"), (200, b"\r")] } else { &[(500, b"y\n")] };
            Answer { strokes, times: 5, cooldown: COOLDOWN }
        }
        Dialog::CodexModel => once(DOWN_ENTER),
        Dialog::ExecuteApproval => always(DOWN_ENTER),
        Dialog::GeminiAction => always(&[(100, b"2\n")]),
        Dialog::GeminiUntrusted => once(&[(300, b"/permissions\n")]),
        Dialog::GeminiTrust => once(&[(100, b"\r")]),
        Dialog::ClaudeTrust => once(&[(100, b"\r")]),
    }
}

#[derive(Debug, Default)]
pub struct Responder {
    given: BTreeMap<Dialog, (u32, Instant)>,
    /// Questions that stand in a message of ours.
    quoted: BTreeSet<Dialog>,
    strokes: VecDeque<(Instant, &'static [u8])>,
    /// The answer of which no key is pressed yet, and what `given` said before it.
    begun: Option<(Dialog, Option<(u32, Instant)>)>,
    /// A question on the screen whose pause is not over.
    again: Option<Instant>,
}

impl Responder {
    /// A message is about to be typed.
    pub fn quote(&mut self, text: &str) {
        self.quoted.extend(dialogs::find_all(text));
    }

    /// The screen has changed, or the time of [`Self::deadline`] has come. `own_text`: a message may still be on its way
    /// to the screen.
    pub fn look(&mut self, screen: &str, own_text: bool, now: Instant) {
        self.again = None;
        let shown = dialogs::find_all(screen);
        if !own_text {
            self.quoted.retain(|dialog| shown.contains(dialog));
        }
        if !self.strokes.is_empty() {
            return;
        }
        for dialog in shown.into_iter().filter(|dialog| !self.quoted.contains(dialog)) {
            let answer = answer(dialog, screen);
            let (times, free) = self.given.get(&dialog).map_or((0, now), |(times, at)| (*times, *at + answer.cooldown));
            if times >= answer.times {
                continue;
            }
            if now < free {
                self.again = Some(self.again.map_or(free, |again| again.min(free)));
                continue;
            }
            self.begun = Some((dialog, self.given.insert(dialog, (times + 1, now))));
            if dialog == Dialog::GeminiUntrusted {
                // It leads to the trust menu, which may have been answered for another folder.
                self.given.remove(&Dialog::GeminiTrust);
            }
            let mut at = now;
            for (pause, keys) in answer.strokes {
                at += Duration::from_millis(*pause);
                self.strokes.push_back((at, keys));
            }
            return;
        }
    }

    /// A human takes over: what is not begun to be answered is left to them. An answer of which a key was pressed is
    /// finished, half of it would leave a menu on another choice.
    pub fn stop(&mut self) {
        self.again = None;
        if let Some((dialog, before)) = self.begun.take() {
            self.strokes.clear();
            match before {
                Some(given) => self.given.insert(dialog, given),
                None => self.given.remove(&dialog),
            };
        }
    }

    /// Whether a question stands open on the screen: typed text would answer it. A question that was answered as often as
    /// it is going to be, and whose text merely remains, is none.
    pub fn is_asked(&self, screen: &str, now: Instant) -> bool {
        let open = |dialog: &Dialog| match self.given.get(dialog) {
            Some((times, at)) => *times < answer(*dialog, screen).times || now < *at + COOLDOWN,
            None => true,
        };
        dialogs::find_all(screen).iter().any(|dialog| !self.quoted.contains(dialog) && open(dialog))
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.strokes.front().map(|(at, _)| *at).or(self.again)
    }

    /// Whether a look is due without a change of the screen.
    pub fn wants_look(&self, now: Instant) -> bool {
        self.strokes.is_empty() && self.again.is_some_and(|at| at <= now)
    }

    /// Keys that are due.
    pub fn next_keys(&mut self, now: Instant) -> Option<&'static [u8]> {
        self.strokes.front().filter(|(at, _)| *at <= now)?;
        self.begun = None;
        self.strokes.pop_front().map(|(_, keys)| keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUST: &str = "Do you trust the files in this folder?\n> 1. Yes, I trust it\n  2. No, exit\n";
    const ACTION: &str = "Action Required\n 1. Allow once\n 2. Allow for this session\n";

    /// All keys with their times (ms) while `screen` is shown for ten seconds.
    fn keys(responder: &mut Responder, screen: &str) -> Vec<(u128, String)> {
        let start = Instant::now();
        let mut pressed = Vec::new();
        responder.look(screen, false, start);
        while let Some(at) = responder.deadline().filter(|at| *at - start < Duration::from_secs(10)) {
            while let Some(keys) = responder.next_keys(at) {
                pressed.push(((at - start).as_millis(), String::from_utf8_lossy(keys).into_owned()));
            }
            responder.look(screen, false, at);
        }
        pressed
    }

    #[test]
    fn questions_are_answered_by_the_table() {
        let press = |screen: &str| keys(&mut Responder::default(), screen);
        assert_eq!(press(TRUST), [(100, "\r".into())]);
        assert_eq!(press("MCP server approval\n[a] Approve all"), [(100, "a".into())]);
        assert_eq!(press("codex has a new model\nTry it\nUse existing"), [(100, "\x1b[B".into()), (200, "\r".into())]);
        let times: Vec<u128> = press(ACTION).into_iter().map(|(at, _)| at).collect();
        assert_eq!(times, [100, 2100, 4100, 6100, 8100]);
        let bypass = press("--dangerously-skip-permissions: proceed? (y/n)");
        assert_eq!(bypass[..2], [(500, "y\n".into()), (2500, "y\n".into())]);
        assert_eq!(bypass.len(), 5);
        let menu = press("Bypass Permissions mode\n1. No, exit\n2. Yes, I accept\nEnter to confirm");
        assert_eq!(menu[..2], [(500, "\x1b[B".into()), (700, "\r".into())]);
        assert_eq!(press("[a] Approve all"), []);
        assert_eq!(press("> "), []);
    }

    #[test]
    fn an_answered_question_whose_text_remains_is_not_open() {
        let (mut responder, start) = (Responder::default(), Instant::now());
        assert!(responder.is_asked(TRUST, start));
        responder.look(TRUST, false, start);
        assert!(responder.is_asked(TRUST, start + COOLDOWN / 2));
        assert!(!responder.is_asked(TRUST, start + COOLDOWN));
        assert!(!responder.is_asked("> ", start));
    }

    #[test]
    fn d13_a_stop_takes_back_an_answer_of_which_no_key_was_pressed() {
        let ms = Duration::from_millis;
        let menu = "codex has a new model\nTry it\nUse existing";
        let (mut responder, start) = (Responder::default(), Instant::now());
        responder.look(menu, false, start);
        responder.stop();
        assert_eq!((responder.deadline(), responder.next_keys(start + ms(500))), (None, None));
        // Asked again afterwards, it is answered in full; once begun, it is finished.
        responder.look(menu, false, start);
        assert_eq!(responder.next_keys(start + ms(100)), Some(&b"\x1b[B"[..]));
        responder.stop();
        assert_eq!(responder.next_keys(start + ms(200)), Some(&b"\r"[..]));
    }

    #[test]
    fn d8_a_question_within_a_message_presses_no_key() {
        let mut responder = Responder::default();
        responder.quote(&format!("Relay message from bob: {TRUST}"));
        responder.look("> ", true, Instant::now());
        assert_eq!(keys(&mut responder, TRUST), []);
        assert!(!responder.is_asked(TRUST, Instant::now()));
        // Once it has left the screen, the CLI's own question counts again.
        responder.look("> ", false, Instant::now());
        assert_eq!(keys(&mut responder, TRUST), [(100, "\r".into())]);
    }
}
