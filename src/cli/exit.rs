//! The failures of the command, and all exit codes.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use lock_server::{Error, Refusal, StoreError};

use crate::cli::advice::{explain, explain_store};
use crate::cli::say;

/// The verbs that ask a server: its answer is no. They use it for nothing else, since a script may take it for
/// "somebody else has the key".
pub const NO: u8 = 1;
/// The verbs that serve, start and stop a server: it does not run, or can't. `store`: the file is not a sound store.
pub const FAILED: u8 = 1;
/// The command was called wrongly.
pub const USAGE: u8 = 2;
/// Wrong usage of `exec`, whose command may itself exit with 2: `EX_USAGE` of sysexits.h.
pub const USAGE_OF_EXEC: u8 = 64;
/// No server was reached, or none answered yes or no: `EX_UNAVAILABLE` of sysexits.h.
pub const UNREACHABLE: u8 = 69;
/// The system refused something to this program, such as writing its answer: `EX_OSERR` of sysexits.h.
pub const SYSTEM: u8 = 71;
/// `exec`: the key was not obtained: `EX_TEMPFAIL` of sysexits.h.
pub const NOT_OBTAINED: u8 = 75;
/// `exec`: the command was ended because the lease was lost. The same code as timeout(1).
pub const LOST: u8 = 124;
/// `exec`: the command was ended because it took longer than `--timeout`. timeout(1) uses 124, which means a lost lease
/// here, and 125 for its own failures.
pub const TIMED_OUT: u8 = 123;
/// `exec`: the code that a shell uses for it.
pub const NOT_EXECUTABLE: u8 = 126;
/// `exec`: the code that a shell uses for it.
pub const NOT_FOUND: u8 = 127;

/// A message for standard error, and an exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A failure with one of the exit codes above.
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

    /// As `from`, for `exec`: its own failures have codes that differ from the command's.
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

    /// The same failure, and what follows from it.
    pub fn and(self, what: impl Display) -> Self {
        Failure {
            message: format!("{}; {what}", self.message),
            ..self
        }
    }

    /// A failure of the system.
    pub fn system(what: impl Display, error: impl Display) -> Self {
        Failure::new(FAILED, format!("{what}: {error}"))
    }

    /// The exit code and the message, for another process to report.
    pub fn into_parts(self) -> (u8, String) {
        (self.code, self.message)
    }

    /// Writes the message to standard error, and after wrong usage of a verb also how to get its help. Returns the exit
    /// code.
    pub fn report(self, verb: Option<&str>) -> ExitCode {
        say(self.message.trim_end());
        if self.code != USAGE {
            return ExitCode::from(self.code);
        }
        let of_verb = verb.map(|verb| format!(" {verb}")).unwrap_or_default();
        // It does not matter whether anybody reads it.
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
                let option = match *option {
                    "allowed_hosts" => "allow-host".into(),
                    option => option.replace('_', "-"),
                };
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
        // The parser has checked everything else, so a time is out of the server's range.
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
