//! Starts a program as posix_spawn(3) does: the child shares the memory of this process until it executes the program,
//! and the calling thread sleeps until then. A copy of the memory took a third of a millisecond, and as much again in
//! page faults. posix_spawn itself can't run code in the child.

use std::env;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, clone};
use nix::sys::wait::waitpid;
use nix::unistd::{AccessFlags, Pid, access};

/// The stack of the child, without the part that grows with the arguments and the search path.
const STACK: usize = 128 * 1024;

/// Starts a program that is looked up in `PATH`. Its environment is that of this process with these variables added.
///
/// # Safety
/// `prepare` is called in the child, in the memory of this process. It may only call the system and write to the stack:
/// no allocation, no lock, no panic.
pub unsafe fn spawn<V: AsRef<OsStr>>(
    program: &OsStr,
    arguments: &[OsString],
    variables: impl IntoIterator<Item = (&'static str, V)>,
    prepare: impl Fn() -> nix::Result<()>,
) -> io::Result<Pid> {
    let environment = environment(variables)?;
    // SAFETY: the caller's promise.
    let started = unsafe { start(program, arguments, &environment, &prepare) };
    started.or_else(|error| {
        let script = match error.raw_os_error() {
            Some(libc::ENOEXEC) => find(program, env::var_os("PATH")),
            _ => return Err(error),
        };
        // A script whose first line names no interpreter: glibc runs it with sh, musl does not.
        let words: Vec<_> = [script].into_iter().chain(arguments.to_vec()).collect();
        // SAFETY: the caller's promise.
        let started = unsafe { start(OsStr::new("/bin/sh"), &words, &environment, &prepare) };
        started.map_err(|_| error)
    })
}

/// Where musl looks if `PATH` is not set.
const USUAL_PATH: &str = "/usr/local/bin:/bin:/usr/bin";

/// The file that is executed: the named one, or without a slash the first one in `path` that may be executed.
fn find(program: &OsStr, path: Option<OsString>) -> OsString {
    if program.as_bytes().contains(&b'/') {
        return program.into();
    }
    let path = path.unwrap_or_else(|| USUAL_PATH.into());
    let mut files = env::split_paths(&path).map(|folder| folder.join(program));
    let found = files.find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok());
    found.map_or_else(|| program.into(), PathBuf::into_os_string)
}

/// # Safety
/// As for [`spawn`].
unsafe fn start(
    program: &OsStr,
    arguments: &[OsString],
    environment: &[CString],
    prepare: &impl Fn() -> nix::Result<()>,
) -> io::Result<Pid> {
    let program = CString::new(program.as_bytes())?;
    let arguments = arguments.iter().map(|word| CString::new(word.as_bytes()));
    let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
    let words = pointers([&program].into_iter().chain(&arguments));
    let variables = pointers(environment);
    let path = env::var_os("PATH").map_or(0, |path| path.len());
    let mut stack = vec![0; STACK + size_of_val(&*words) + path + program.as_bytes().len()];
    let failed = AtomicI32::new(0);
    let child = || {
        let prepared = prepare();
        if prepared.is_ok() {
            // SAFETY: the words and variables end with a null pointer, and outlive the child's use of them, since this
            // thread waits for it. The call returns only if it fails.
            unsafe { libc::execvpe(program.as_ptr(), words.as_ptr(), variables.as_ptr()) };
        }
        let errno = prepared.err().unwrap_or_else(Errno::last);
        failed.store(errno as i32, Relaxed);
        // SAFETY: ends the child at once, without the exit handlers of this process.
        unsafe { libc::_exit(127) }
    };
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the child has its own stack, and this thread does not go on before the child has left this memory.
    // `prepare` takes nothing that another thread could hold.
    let child = unsafe { clone(Box::new(child), &mut stack, flags, Some(libc::SIGCHLD)) }?;
    match failed.load(Relaxed) {
        0 => Ok(child),
        errno => {
            // The child has ended: reap it.
            let _ = waitpid(child, None);
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

fn environment<V: AsRef<OsStr>>(
    variables: impl IntoIterator<Item = (&'static str, V)>,
) -> io::Result<Vec<CString>> {
    let variables: Vec<_> = variables.into_iter().collect();
    let inherited = env::vars_os().filter(|(name, _)| {
        let is_name = |(ours, _): &(&str, V)| *name == **ours;
        !variables.iter().any(is_name)
    });
    let inherited = inherited.map(|(name, value)| variable(&name, &value));
    let ours = variables.iter();
    let ours = ours.map(|(name, value)| variable(OsStr::new(name), value.as_ref()));
    inherited.chain(ours).collect()
}

fn variable(name: &OsStr, value: &OsStr) -> io::Result<CString> {
    let bytes = [name.as_bytes(), b"=", value.as_bytes()].concat();
    Ok(CString::new(bytes)?)
}

/// A list in the form that `exec` takes.
fn pointers<'s>(strings: impl IntoIterator<Item = &'s CString>) -> Vec<*const c_char> {
    let strings = strings.into_iter().map(|string| string.as_ptr());
    strings.chain([ptr::null()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_path_a_program_is_looked_for_in_the_usual_folders_and_not_in_this_one() {
        let program = find(OsStr::new("sh"), None);
        assert!(program.as_bytes().ends_with(b"bin/sh"), "{program:?}");
        assert_eq!(find(OsStr::new("./sh"), None), "./sh");
    }
}
