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

/// Gives free memory of the heap back to the system. Takes milliseconds with large heaps: for housekeeping, not for a loop.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim locks each arena itself; it moves no live block.
    unsafe {
        libc::malloc_trim(0);
    }
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
