//! The real program, as a person or a script calls it.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lock-server");

/// The program, in an environment that says nothing to it.
pub fn program<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(PROGRAM);
    clean(&mut command).args(args);
    command
}

pub fn clean(command: &mut Command) -> &mut Command {
    for variable in [
        "LOCK_SERVER",
        "LOCK_SERVER_NAME",
        "LOCK_SERVER_KEY",
        "LOCK_SERVER_FENCE",
        "LOCK_SERVER_LOG",
        "LOCK_SERVER_TOKEN",
        "LOCK_SERVER_TOKEN_FILE",
        "RUST_LOG",
        "XDG_RUNTIME_DIR",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null())
}

/// How a program ended, as a shell says it: 128 and the number of the signal that ended it.
pub fn shell_code(status: ExitStatus) -> i32 {
    let signal = || 128 + status.signal().expect("it has ended");
    status.code().unwrap_or_else(signal)
}

/// What the program printed, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Both streams are pipes and are read to their ends, as `$(…)` would.
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program starts");
        Outcome {
            code: Some(shell_code(output.status)),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    #[track_caller]
    pub fn expect(&self, code: i32, stdout: &str) {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (Some(code), stdout),
            "{self:?}"
        );
    }

    #[track_caller]
    pub fn expect_stderr(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
        }
    }
}

/// Types a line after `lock-server`.
pub fn typed(line: &str) -> Outcome {
    Outcome::of(&mut program(line.split_ascii_whitespace()))
}
