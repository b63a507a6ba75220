//! A terminal of a user: a program in it, what it shows, keys, settings.

use std::io::Read;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filedescriptor::FileDescriptor;
use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, SlavePty, native_pty_system};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Termios};

use crate::until::{LONG, look, until};

/// The settings of a terminal that matter here.
pub type Settings = (u32, u32, u32);

pub struct Terminal {
    pty: Box<dyn MasterPty + Send>,
    master: FileDescriptor,
    /// Held so that the terminal outlives its program, as a user's does.
    _slave: Box<dyn SlavePty + Send>,
    child: Box<dyn Child + Send + Sync>,
    shown: Arc<Mutex<Vec<u8>>>,
    /// While it is locked nobody looks at the terminal.
    eyes: Arc<Mutex<()>>,
    ended: Option<ExitStatus>,
    pub before: Settings,
}

fn settings(of: &Termios) -> Settings {
    (of.local_modes.bits(), of.input_modes.bits(), of.output_modes.bits())
}

impl Terminal {
    /// Runs a command in a new terminal of 24 rows, as the leader of its session.
    pub fn start(command: &Command) -> Terminal {
        let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a terminal");
        let mut builder = CommandBuilder::new(command.get_program());
        builder.args(command.get_args());
        builder.env_clear();
        command.get_envs().for_each(|(name, value)| builder.env(name, value.expect("a value")));
        builder.cwd(command.get_current_dir().expect("a directory"));
        let master = FileDescriptor::dup(&pair.master.as_raw_fd().expect("a descriptor")).expect("a descriptor");
        let before = settings(&modes_of(&master));
        let child = pair.slave.spawn_command(builder).expect("it starts");
        let (shown, eyes) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<()>>::default());
        let (into, open) = (shown.clone(), eyes.clone());
        let mut reader = pair.master.try_clone_reader().expect("a reader");
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                drop(open.lock());
                match reader.read(&mut buffer) {
                    Ok(count) if count > 0 => into.lock().unwrap().extend_from_slice(&buffer[..count]),
                    _ => return,
                }
            }
        });
        Terminal { pty: pair.master, master, _slave: pair.slave, child, shown, eyes, ended: None, before }
    }

    pub fn settings(&self) -> Settings {
        settings(&modes_of(&self.master))
    }

    /// Keys reach the program one by one and are not shown by the terminal.
    pub fn is_raw(&self) -> bool {
        let local = modes_of(&self.master).local_modes;
        !local.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.shown.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    pub fn press(&self, keys: impl AsRef<[u8]>) {
        let mut left = keys.as_ref();
        while !left.is_empty() {
            let written = rustix::io::write(&self.master, left).expect("the terminal takes keys");
            left = &left[written..];
        }
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        self.pty.resize(PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }).expect("a size");
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.process_id().expect("a process id") as i32).expect("a process id")
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Nobody looks until the guard is dropped: what is written backs up.
    pub fn look_away(&self) -> std::sync::MutexGuard<'_, ()> {
        self.eyes.lock().unwrap()
    }

    #[track_caller]
    pub fn until<T>(&self, what: &str, at: impl FnMut() -> Option<T>) -> T {
        until(LONG, what, || self.text(), at)
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        self.until(&format!("{text:?} in the terminal"), || self.text().contains(text).then_some(()));
    }

    pub fn ended(&mut self) -> Option<u32> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended.as_ref().map(ExitStatus::exit_code)
    }

    /// Waits for the end: the exit code.
    #[track_caller]
    pub fn wait(&mut self) -> u32 {
        self.wait_for(LONG)
    }

    #[track_caller]
    pub fn wait_for(&mut self, limit: Duration) -> u32 {
        match look(limit, || self.ended()) {
            Some(code) => code,
            None => panic!("still running after {limit:?}\n{}", self.text()),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn modes_of(master: &FileDescriptor) -> Termios {
    rustix::termios::tcgetattr(master).expect("a terminal has modes")
}
