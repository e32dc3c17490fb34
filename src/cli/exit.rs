//! Why the command failed, and the exit code that says so.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use lock_server::{Error, Refusal, StoreError};

use crate::cli::advice::{explain, explain_store};
use crate::cli::say;

/// The verbs that ask a server: its answer is no. A script may take it for "somebody else has the key", so nothing else
/// ends them with it.
pub const NO: u8 = 1;
/// The verbs that serve, start and stop a server: it does not run, or can't. `store`: the file is no sound store.
pub const FAILED: u8 = 1;
/// The command was called wrongly.
pub const USAGE: u8 = 2;
/// The same for `exec`, whose command may exit with 2: `EX_USAGE` of sysexits.h.
pub const USAGE_OF_EXEC: u8 = 64;
/// No server answered yes or no, or none was reached: `EX_UNAVAILABLE` of sysexits.h.
pub const UNREACHABLE: u8 = 69;
/// The system refused this program something, such as to write its answer: `EX_OSERR` of sysexits.h.
pub const SYSTEM: u8 = 71;
/// `exec`: the key was not obtained, `EX_TEMPFAIL` of sysexits.h.
pub const NOT_OBTAINED: u8 = 75;
/// `exec`: the command was ended because the lease was lost, as timeout(1).
pub const LOST: u8 = 124;
/// `exec`: the command was ended because it took longer than it may. timeout(1) says 124, which is taken here, and
/// 125 is its own failure.
pub const TIMED_OUT: u8 = 123;
/// `exec`: as a shell says it.
pub const NOT_EXECUTABLE: u8 = 126;
/// `exec`: as a shell says it.
pub const NOT_FOUND: u8 = 127;

/// A message for standard error, and an exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A failure with one of the codes above.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// The command was called wrongly.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }

    /// As `from`, for `exec`: its own failure must not be taken for the command's.
    pub fn of_exec(error: &Error) -> Self {
        let code = match error {
            Error::InvalidName { .. } | Error::InvalidOption { .. } => USAGE,
            Error::Refused { reason, .. } => code_of_refusal(*reason),
            _ => UNREACHABLE,
        };
        Failure::new(code, explain(error))
    }

    /// As `system`, for `exec`.
    pub fn system_of_exec(what: impl Display, error: impl Display) -> Self {
        Failure::new(SYSTEM, format!("{what}: {error}"))
    }

    /// The system refused something.
    pub fn system(what: impl Display, error: impl Display) -> Self {
        Failure::new(FAILED, format!("{what}: {error}"))
    }

    /// What failed, for a process that reports it.
    pub fn into_parts(self) -> (u8, String) {
        (self.code, self.message)
    }

    /// Says what failed; after wrong usage of a verb also where its help is.
    pub fn report(self, verb: Option<&str>) -> ExitCode {
        say(self.message.trim_end());
        if self.code != USAGE {
            return ExitCode::from(self.code);
        }
        let of_verb = verb.map(|verb| format!(" {verb}")).unwrap_or_default();
        // Nobody has to listen.
        let _ = writeln!(io::stderr(), "Run lock-server{of_verb} --help for usage.");
        ExitCode::from(match verb {
            Some("exec") => USAGE_OF_EXEC,
            _ => USAGE,
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::InvalidOption { option, reason } => {
                let option = option.replace('_', "-");
                Failure::new(USAGE, format!("bad option --{option}: {reason}"))
            }
            Error::InvalidName { .. } => Failure::new(USAGE, explain(&error)),
            Error::Refused { reason, .. } => {
                Failure::new(code_of_refusal(*reason), explain(&error))
            }
            Error::Unreachable { .. }
            | Error::Interrupted { .. }
            | Error::NotHttp { .. }
            | Error::TlsFailed { .. }
            | Error::NotOfCluster { .. }
            | Error::BadReply { .. } => Failure::new(UNREACHABLE, explain(&error)),
            _ => Failure::new(FAILED, explain(&error)),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Failure::new(FAILED, explain_store(&error))
    }
}

/// The exit code of a question that the server did not answer with yes or no.
fn code_of_refusal(reason: Refusal) -> u8 {
    match reason {
        // What is left to be wrong with a question is a time out of the server's range.
        Refusal::BadRequest => USAGE,
        _ => UNREACHABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_is_refused_is_never_answered_no() {
        for (reason, code) in [
            (Refusal::BadRequest, USAGE),
            (Refusal::Full, UNREACHABLE),
            (Refusal::StoreFull, UNREACHABLE),
            (Refusal::Stopping, UNREACHABLE),
            (Refusal::WrongHost, UNREACHABLE),
            (Refusal::Forbidden, UNREACHABLE),
            (Refusal::Unauthorized, UNREACHABLE),
            (Refusal::WrongRole, UNREACHABLE),
            (Refusal::NoSuchVerb, UNREACHABLE),
            (Refusal::BadMethod, UNREACHABLE),
            (Refusal::Other, UNREACHABLE),
        ] {
            let refused = || Error::Refused {
                question: "LOCK/KEYA/A".into(),
                reason,
                message: String::new(),
            };
            assert_eq!(Failure::from(refused()).code, code, "{reason}");
            assert_eq!(Failure::of_exec(&refused()).code, code, "{reason}");
        }
    }
}
