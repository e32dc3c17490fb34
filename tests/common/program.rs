//! Runs the real program, as a person or a script runs it.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use super::skip;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lock-server");

/// The program, in an environment without variables that it reads.
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
        "LOCK_SERVER_KEYS",
        "LOCK_SERVER_FENCES",
        "LOCK_SERVER_LOG",
        "LOCK_SERVER_TOKEN",
        "LOCK_SERVER_TOKEN_FILE",
        "RUST_LOG",
        "XDG_RUNTIME_DIR",
        "NOTIFY_SOCKET",
        "LISTEN_PID",
    ] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null())
}

/// The programs that `.ci/run` installs. In CI a test that needs a missing one fails.
const INSTALLED_BY_CI: [&str; 14] = [
    "curl",
    "groff",
    "ip",
    "jq",
    "etcd",
    "nginx",
    "haproxy",
    "openssl",
    "zsh",
    "fish",
    "prometheus",
    "promtool",
    "chromium",
    "chromedriver",
];

/// The path of a program. `None`, with a printed reason, if it is not installed.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian's nginx is outside the users' PATH.
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = folders
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    if found.is_none() {
        let is_needed = env::var_os("CI").is_some() && INSTALLED_BY_CI.contains(&program);
        assert!(!is_needed, "{program} is not installed, and CI needs it");
        skip(&format!("{program} is not installed"));
    }
    found
}

/// `unshare` with these options. `None`, with a printed reason, if this machine allows no namespaces.
pub fn unshared(options: &[&str]) -> Option<Command> {
    let unshare = || {
        let mut unshare = Command::new("unshare");
        clean(&mut unshare).args(options);
        unshare
    };
    let tried = unshare().arg("true").stderr(Stdio::null()).status();
    if tried.is_ok_and(|status| status.success()) {
        return Some(unshare());
    }
    skip(&format!("unshare {options:?} is not allowed"));
    None
}

/// The exit code as a shell has it: 128 plus the signal's number if a signal ended the program.
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
    /// Runs the command. Both streams are pipes and are read to their ends, as by `$(…)`.
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

/// Runs `lock-server` with the words of this line.
pub fn typed(line: &str) -> Outcome {
    Outcome::of(&mut program(line.split_ascii_whitespace()))
}
