//! A child process: its output line by line, its end, its signals. It does not outlive its owner.

use std::io::{BufRead, BufReader, PipeWriter, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::until::{look, until};

type Text = Arc<Mutex<String>>;

/// The letter for the state of a process or thread, from its `stat` file.
pub fn state(stat: &Path) -> Option<char> {
    std::fs::read_to_string(stat).ok()?.rsplit(')').next()?.trim_start().chars().next()
}

/// Gone, or an orphan that the first process of this PID namespace has not reaped.
pub fn has_ended(pid: u32) -> Option<()> {
    matches!(state(Path::new(&format!("/proc/{pid}/stat"))), None | Some('Z')).then_some(())
}

pub struct Process {
    child: Child,
    out: Text,
    err: Text,
    ended: Option<ExitStatus>,
}

/// Collects a stream to its end, so that the writer never blocks.
fn collect(stream: impl Read + Send + 'static) -> Text {
    let text = Text::default();
    let into = text.clone();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
            line.clear();
        }
    });
    text
}

impl Process {
    pub fn start(mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        let (out, err) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
        Process { child, out, err, ended: None }
    }

    /// Its stderr is this and is not collected.
    pub fn start_saying_to(stderr: PipeWriter, mut command: Command) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the binary starts");
        Process { out: collect(child.stdout.take().unwrap()), err: Text::default(), child, ended: None }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn out(&self) -> String {
        self.out.lock().unwrap().clone()
    }

    pub fn err(&self) -> String {
        self.err.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits for the end; exit code and how long it took.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> (Option<i32>, Duration) {
        let began = Instant::now();
        let status = look(limit, || self.ended());
        let Some(status) = status else { panic!("still running after {limit:?}\n{}", self.seen()) };
        let took = began.elapsed();
        // The collectors see the end of the streams a moment later.
        let alone = |text: &Text| Arc::strong_count(text) == 1;
        look(Duration::from_secs(2), || (alone(&self.out) && alone(&self.err)).then_some(()));
        (status.code(), took)
    }

    /// The first line on stdout that contains `mark`, from there on.
    #[track_caller]
    pub fn announced(&mut self, mark: &str, limit: Duration) -> String {
        let found = look(limit, || {
            let ended = self.ended().is_some();
            let out = self.out();
            let line = out.lines().find(|line| line.contains(mark)).filter(|_| out.ends_with('\n'));
            line.map(|line| Some(line[line.find(mark).unwrap() + mark.len()..].to_string())).or(ended.then_some(None))
        });
        match found.flatten() {
            Some(rest) => rest,
            None => panic!("no line with {mark:?} on stdout\n{}", self.seen()),
        }
    }

    /// Waits for a text on stderr.
    #[track_caller]
    pub fn says(&self, text: &str, limit: Duration) {
        until(limit, &format!("{text:?} on stderr"), || self.seen(), || self.err().contains(text).then_some(()));
    }

    pub fn seen(&self) -> String {
        let err = self.err();
        let lines: Vec<&str> = err.lines().collect();
        format!("-- stdout:\n{}-- stderr (end):\n{}\n", self.out(), lines[lines.len().saturating_sub(60)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
