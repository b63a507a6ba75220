//! The few C library calls that nothing wraps safely. The only file of the crate in which `unsafe` is allowed.
//!
//! Invariant: every function here is safe to call with any arguments its signature admits; each block says why. The three
//! start-up functions are meant for the first statements of `main`, before the first thread.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Limits the allocator to two arenas: one per core would keep tens of MiB after bursts in many threads.
pub fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, keeps no pointer, and an unknown parameter is answered with 0.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free memory of the heap back to the system. Takes milliseconds with large heaps: for housekeeping, not for every turn.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks each arena itself; it moves no live block.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of the program's own file, code and constants, that the start has mapped in: what is needed again
/// comes back from the page cache by itself, a few microseconds later. A daemon at rest uses a small part of its code.
///
/// Returns the bytes of address space concerned; 0 where the kernel does not show its mappings.
pub fn let_go_of_idle_code() -> usize {
    let Ok(exe) = std::fs::read_link("/proc/self/exe") else { return 0 };
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    clean_mappings(&smaps, &exe.to_string_lossy())
        .into_iter()
        .filter(|range| {
            // SAFETY: the range is a private, read-only mapping of the program file in which no page has been written to.
            // The kernel drops clean pages only and reads them from the file again at the next access.
            let done = unsafe {
                libc::madvise(std::ptr::with_exposed_provenance_mut(range.start), range.len(), libc::MADV_DONTNEED)
            };
            done == 0
        })
        .map(|range| range.len())
        .sum()
}

/// The mappings of `file` in the text of an `smaps` that are private, not writable and without a page of their own.
fn clean_mappings(smaps: &str, file: &str) -> Vec<std::ops::Range<usize>> {
    // A page that was written to is anonymous. "Dirty" says less: a file that was just installed is dirty in the page cache.
    let mut found = Vec::new();
    let mut current: Option<(std::ops::Range<usize>, bool)> = None;
    for line in smaps.lines().chain(["0-0 end"]) {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-').filter(|_| !first.ends_with(':')) {
            if let Some((range, true)) = current.take() {
                found.push(range);
            }
            let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else {
                continue;
            };
            let permissions = words.next().unwrap_or_default();
            let is_ours = words.nth(3).is_some_and(|path| path == file);
            current = Some((start..end, is_ours && matches!(permissions, "r-xp" | "r--p")));
        } else if matches!(first, "Anonymous:" | "Swap:")
            && words.next() != Some("0")
            && let Some((_, clean)) = &mut current
        {
            *clean = false;
        }
    }
    found
}

/// Switches the master side of a pseudo-terminal to packet mode: every read then begins with a byte, 0 in front of data, or
/// flags of what happened to the slave side, alone.
///
/// # Errors
/// The system's: no master side, or a kernel without that mode.
pub fn set_packet_mode(master: BorrowedFd<'_>) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is borrowed, so it is open during the call; the kernel reads one int and keeps no pointer.
    match unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &on) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Makes the program of `command` the leader of a session of its own when it is started.
pub fn lead_session(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec the closure makes system calls only, which are async-signal-safe; it allocates nothing
    // and takes no lock.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            super::descriptors::restore_limit()
        });
    }
}

/// Has the program of `command` terminated when the thread that starts it ends, also by the end of the whole process: what
/// has no terminal hears of that in no other way.
pub fn end_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: one system call between fork and exec, see above.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
                .map_err(std::io::Error::from)
        });
    }
}

/// Makes look-ups of hosts, users and groups use the built-in `files` and `dns` services only.
///
/// A static glibc reads `nsswitch.conf` and loads the modules named there, built for another libc: a look-up then ends the
/// process by SIGFPE or SIGSEGV on many systems. Must run before the first look-up.
pub fn pin_name_service() {
    #[cfg(target_env = "gnu")]
    {
        use std::ffi::{CStr, c_char, c_int};
        unsafe extern "C" {
            fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
        }
        const PINNED: [(&CStr, &CStr); 3] = [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")];
        for (database, services) in PINNED {
            // SAFETY: both pointers are NUL-terminated constants that live as long as the process; glibc copies what it
            // keeps. The signature is the one of glibc's nss.h.
            unsafe {
                __nss_configure_lookup(database.as_ptr(), services.as_ptr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_read_only_mappings_of_the_program_are_let_go() {
        let smaps = "1000-3000 r--p 00000000 08:01 42 /bin/broker\nRss: 8 kB\nPrivate_Dirty:         0 kB\nAnonymous: 0 kB\n\
                     3000-9000 r-xp 00002000 08:01 42 /bin/broker\nPrivate_Dirty:         8 kB\nAnonymous: 0 kB\n\
                     9000-a000 r--p 00008000 08:01 42 /bin/broker\nPrivate_Dirty:         4 kB\nAnonymous: 4 kB\n\
                     a000-b000 rw-p 00009000 08:01 42 /bin/broker\nPrivate_Dirty:         0 kB\n\
                     b000-c000 rw-p 00000000 00:00 0 [heap]\nPrivate_Dirty:         0 kB\n\
                     c000-d000 r-xp 00000000 08:01 43 /lib/other.so\nPrivate_Dirty:         0 kB\n";
        assert_eq!(clean_mappings(smaps, "/bin/broker"), [0x1000..0x3000, 0x3000..0x9000]);
        assert!(clean_mappings("", "/bin/broker").is_empty());
    }

    #[test]
    fn a_session_has_its_leader() {
        let mut command = std::process::Command::new("/bin/sh");
        // Field 6 of its own stat line is the session.
        command.args(["-c", "read -r _ _ _ _ _ session _ < /proc/$$/stat; test $session = $$"]);
        lead_session(&mut command);
        assert!(command.status().expect("a shell").success());
    }

    #[test]
    fn code_that_was_let_go_still_runs() {
        assert!(let_go_of_idle_code() > 0);
        assert_eq!("still here".to_uppercase(), "STILL HERE");
    }

    #[test]
    fn a_tuned_process_still_allocates_and_resolves() {
        tune_allocator();
        pin_name_service();
        let block = vec![7u8; 1 << 20];
        trim_memory();
        assert_eq!(block[1 << 19], 7);
        use std::net::ToSocketAddrs;
        assert!(("localhost", 80).to_socket_addrs().is_ok_and(|mut found| found.next().is_some()));
    }
}
