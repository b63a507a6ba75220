//! The agents' threads: what they are given, what they are told, and what they tell.

use super::{Generation, Ms, Secret, Ticket};
use crate::wire::node::DeliveryMode;

/// What a new agent thread is given.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    pub generation: Generation,
    pub name: String,
    /// The command line as asked for (`cli` or `harnessConfig.command`); split shell-like by the agent room.
    pub cli: String,
    pub args: Vec<String>,
    pub model: Option<String>,
    /// Session of the CLI, when it is known.
    pub session_ref: Option<String>,
    /// Whether the CLI is told to resume it; otherwise the arguments do.
    pub resumes: bool,
    /// Absolute existing directory, or the broker's own when `None`.
    pub cwd: Option<String>,
    pub skip_relay_prompt: bool,
    /// Seconds of silence before `agent_idle`; 0 = never.
    pub idle_threshold_secs: u64,
    /// A message is typed although a human's unsent text stands in the composer.
    pub ignores_drafts: bool,
    /// No terminal: the first message becomes the prompt of the one run of its program.
    pub headless: bool,
    /// No program: its messages go to this server.
    pub app_server: Option<AppServer>,
    /// As its user typed it: no server, session, model or permission is added to its arguments.
    pub bare: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum AgentCommand {
    /// Start the prepared program. `set` overlays the broker's environment, then `remove` is taken out.
    Start {
        set: Variables,
        remove: Vec<String>,
        pre_registered: bool,
    },
    /// Type one message: body, 50 ms, Enter. At most one is in flight per agent: the next follows [`AgentNote::Read`].
    Inject(Injection),
    /// `true`: a human works at the terminal. No question is answered, no Enter repeated, and a message that has not begun
    /// is given back ([`AgentNote::GivenBack`]), as is each later one that is not exempt; one that has begun is finished.
    /// `false`, as at the start: all goes on.
    Hold(bool),
    /// Something that steers waits: a message that has not begun is given back.
    Yield,
    /// Keystrokes, verbatim, in order.
    Type {
        ticket: Ticket,
        bytes: Vec<u8>,
        /// A line of our own: Enter follows after a pause, as after a message.
        enter: bool,
    },
    Resize {
        ticket: Ticket,
        rows: u16,
        cols: u16,
    },
    Snapshot {
        ticket: Ticket,
        format: SnapshotFormat,
    },
    /// End the whole process tree: HUP and CONT, TERM at 1 s, KILL at 2 s. Also ends a thread that has not started its
    /// program. Answered by `Exited`.
    Release,
}

/// Variables of a program's environment. `Debug` shows their names only: among the values are keys and tokens.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Variables(pub Vec<(String, String)>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// One message to be typed. The agent room makes the text (hint, prefix, control bytes stripped).
#[derive(Debug, Clone, PartialEq)]
pub struct Injection {
    pub delivery_id: String,
    pub event_id: String,
    pub from: String,
    /// `#channel` or a name.
    pub target: String,
    pub body: String,
    /// Alias, else id, of the workspace the message belongs to.
    pub workspace: Option<String>,
    pub mode: DeliveryMode,
    /// Passes [`AgentCommand::Hold`]: the initial task, and what an explicit flush found waiting.
    pub exempt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotFormat {
    Plain,
    Ansi,
}

/// A picture of the terminal. `cursor` is 1-based.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub rows: u16,
    pub cols: u16,
    pub cursor: (u16, u16),
    /// Plain text, or base64 of the ANSI picture.
    pub screen: String,
    /// Cumulative bytes of output that the picture includes.
    pub offset: u64,
}

/// What the screen of a CLI says about its taking input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Starting,
    Ready,
    /// It never showed what its family shows; 25 s have passed.
    Unrecognised,
    /// A known question stands open, of this name.
    Blocked(&'static str),
}

/// A server of a CLI that runs already, and one session of it.
#[derive(Debug, Clone, PartialEq)]
pub struct AppServer {
    /// `http` or `https`.
    pub endpoint: String,
    pub session_id: String,
    pub auth: Option<ServerAuth>,
    /// The server's process, as its owner says.
    pub host_pid: Option<u32>,
    pub release: ReleasePolicy,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ServerAuth {
    None,
    Bearer { token: Secret },
    Basic { username: String, password: Secret },
}

/// What becomes of the session at its agent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReleasePolicy {
    #[default]
    Detach,
    Abort,
    Delete,
}

/// What an agent may wish about its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Continuity {
    /// Keep this for a successor.
    Save { summary: String },
    /// Type what the last session of the same name has left.
    Load,
}

/// The end of an agent's output, for whoever asks why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LastWords {
    /// What its terminal showed last, or its last lines: at most [`LAST_WORDS_MAX`] bytes of plain text.
    pub output: String,
    /// The file that has all of it.
    pub log: Option<String>,
}

/// Bytes (hardening R14).
pub const LAST_WORDS_MAX: usize = 2 << 10;

impl LastWords {
    /// Keeps the end of a text, without the blank that surrounds it.
    pub fn of(text: &str, log: Option<String>) -> LastWords {
        let text = text.trim_end();
        let from = (text.len().saturating_sub(LAST_WORDS_MAX)..=text.len()).find(|at| text.is_char_boundary(*at));
        LastWords { output: text[from.unwrap_or(text.len())..].trim_start_matches('\n').to_string(), log }
    }
}

/// What an agent thread tells the core. Per thread the order of the notes is the order of the facts.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentNote {
    /// The program exists and can be executed; nothing runs yet.
    Prepared,
    /// The program cannot be started. The thread has ended; no `Exited` follows.
    Refused {
        error: String,
    },
    /// What the CLI will be started with, as far as it became known only now: told before `Started`, when there is news.
    Outfitted {
        session_id: Option<String>,
        /// The model that takes the place of the one that was asked for.
        model: Option<String>,
    },
    Started {
        pid: u32,
    },
    /// In place of `Started`: an agent without terminal takes its message; no program runs yet, or one of somebody else's.
    Serving {
        pid: Option<u32>,
    },
    /// The server of an agent has taken the message: there is no later proof.
    Accepted {
        delivery_id: String,
    },
    /// Something that its owner should know went wrong; the life goes on, or ends by itself.
    Trouble {
        code: &'static str,
        message: String,
    },
    /// The program of an agent without terminal runs, with this message as its prompt.
    Taken {
        delivery_id: String,
        pid: u32,
    },
    /// One line of such a program, without its end.
    Line {
        /// `stdout` or `stderr`.
        stream: &'static str,
        chunk: String,
        offset: u64,
    },
    /// Such a program has ended well; or why not, also when it could not be started at all.
    Finished {
        delivery_id: String,
        result: Result<(), String>,
    },
    /// What the screen says changes.
    Judged(Verdict),
    /// The terminal shows that the CLI takes input, or 25 s have passed.
    Ready,
    /// Terminal output, cut at UTF-8 boundaries; `offset` = cumulative bytes after this chunk.
    Output {
        chunk: String,
        offset: u64,
    },
    /// There was output, but nobody watches: at most one per 250 ms, instead of `Output`.
    Active,
    /// Body and Enter are written to the terminal, every byte.
    Typed {
        delivery_id: String,
    },
    /// The program has taken every byte of it from the terminal: the kernel says so.
    Read {
        delivery_id: String,
    },
    /// It waits for a human's unsent text to leave the composer. Told once per try.
    Waiting {
        delivery_id: String,
    },
    /// After its Enter the program has shown more than the message itself.
    TurnStarted {
        delivery_id: String,
    },
    /// 5 s after `Typed` the program has not read it, or 5 s after its beginning the terminal takes no more of it. Each told
    /// once; still watched, never typed again.
    Stalled {
        delivery_id: String,
    },
    /// Input was thrown away in the terminal before it was proved: the program may have read it, in part or not at all. No
    /// proof can follow, and it is never typed again.
    Lost {
        delivery_id: String,
    },
    /// The echo was seen, or its window (5 s) is over. Decides events only, never the engine's ack.
    Verified {
        delivery_id: String,
        echo: bool,
    },
    /// No byte of it reached the terminal; it may be injected again.
    InjectFailed {
        delivery_id: String,
        error: String,
    },
    /// A human has taken the terminal before the message had begun: it is the core's again, to be held.
    GivenBack {
        delivery_id: String,
    },
    /// The answer to `Type`: all bytes are in the terminal, or the error.
    TypeDone {
        ticket: Ticket,
        result: Result<usize, String>,
    },
    Resized {
        ticket: Ticket,
        rows: u16,
        cols: u16,
    },
    Pictured {
        ticket: Ticket,
        format: SnapshotFormat,
        snapshot: Snapshot,
    },
    /// No output for `idle_secs`: the agent's threshold, with no message under way; or [`LONG_SILENCE_SECS`], in any case.
    Idle {
        idle_secs: u64,
        since_unix: Ms,
    },
    /// The CLI says how much of its context window is left, another percentage than before.
    ContextLeft {
        pct: u8,
    },
    /// The agent has printed a wish about its session.
    Continuity(Continuity),
    /// The CLI ends (`pty_closed`, `child_exited`) or asks to (`agent_requested`).
    Ending {
        reason: &'static str,
    },
    /// What is left of its output; told before `Exited` when something ran.
    LastWords(LastWords),
    /// The process is reaped and its tree is gone. The last note of a generation.
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
}
