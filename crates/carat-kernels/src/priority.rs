//! Standing back for other programs.

use std::io;

/// Puts the calling thread, and the threads that it makes from then on, behind all others of the machine: they get the
/// processor when nobody else wants it. On macOS and Windows the whole process stands back.
///
/// # Errors
/// What the system says; [`io::ErrorKind::Unsupported`] where it knows no priorities.
pub fn lower_priority() -> io::Result<()> {
    #[cfg(unix)]
    {
        /// The lowest that there is.
        const NICE: libc::c_int = 19;
        // SAFETY: a system call on numbers alone.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }
    #[cfg(windows)]
    {
        use windows_sys::Win32::System::Threading;
        // SAFETY: system calls on the process's own pseudo handle, which need not be closed.
        let is_set = unsafe {
            Threading::SetPriorityClass(Threading::GetCurrentProcess(), Threading::IDLE_PRIORITY_CLASS)
        };
        if is_set != 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }
    #[cfg(not(any(unix, windows)))]
    Err(io::ErrorKind::Unsupported.into())
}
