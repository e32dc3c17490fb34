//! The real program, as a person or a script calls it.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use super::skip;

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

/// What `.ci/run` installs: in CI a test that needs one of them fails where it is not there.
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

/// The path of a program. `None` where it is not installed, and that is said.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian's nginx is in no user's PATH.
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

/// `unshare` with these options, if this machine lets it make namespaces.
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
