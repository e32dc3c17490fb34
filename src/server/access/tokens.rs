//! The tokens that a server knows: its file, and whose token a request carries.

use std::fs::{File, Metadata};
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::libc;
use nix::unistd::geteuid;
use parking_lot::RwLock;
use subtle::ConstantTimeEq;

use super::attempts::WrongTokens;
use crate::error::Error;
use crate::token::{Role, Token, parse_file, read_text};

/// The most tokens of a file: each request is compared with all of them.
const MOST: usize = 100;

/// The buffer for user and password of Basic, in bytes. Larger than a name and a token of 256 bytes.
const LONGEST_BASIC: usize = 512;

/// The tokens of a running server.
pub(crate) struct Tokens {
    path: PathBuf,
    known: RwLock<KnownTokens>,
    wrong: WrongTokens,
}

/// The tokens of a file.
pub(crate) struct KnownTokens(Vec<(Role, Token)>);

/// The token that a request carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// No token.
    Nothing,
    /// An unknown token. `is_one_of_many`: its address has sent many of them.
    Wrong {
        is_one_of_many: bool,
    },
    Known(Role),
}

impl KnownTokens {
    /// Reads a token file.
    ///
    /// [`Error::InvalidOption`], which names the file and the line, but never a token.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = open(path).and_then(|file| {
            let text = read_text(file).map_err(|error| format!("cannot read it: {error}"))?;
            KnownTokens::parse(&text)
        });
        read.map_err(|reason| Error::InvalidOption {
            option: "token_file",
            reason: format!("{path:?}: {reason}"),
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut known: Vec<(Role, Token)> = Vec::new();
        for (line, role, token) in parse_file(text)? {
            let role = role.ok_or_else(|| {
                format!(
                    "line {line}: the role is missing; give read, lock or admin before the token"
                )
            })?;
            if known.iter().any(|(_, other)| *other == token) {
                return Err(format!("line {line}: an earlier line has the same token"));
            }
            known.push((role, token));
        }
        if known.len() > MOST {
            return Err(format!("there are more than {MOST} tokens in it"));
        }
        let known = KnownTokens(known);
        match known.that_locks() {
            Some(_) => Ok(known),
            None => {
                Err("it has no token of the role lock or admin, so nothing could be locked".into())
            }
        }
    }

    /// The first token that may lock.
    pub fn that_locks(&self) -> Option<&Token> {
        let mut known = self.0.iter();
        known
            .find(|(role, _)| *role >= Role::Lock)
            .map(|(_, token)| token)
    }

    /// The role of a token. The comparison takes the same time for all tokens of one length, so the time does not
    /// reveal how much of a token is right.
    fn role_of(&self, token: &[u8]) -> Option<Role> {
        let mut found = None;
        for (role, known) in &self.0 {
            if known.as_str().as_bytes().ct_eq(token).into() {
                found = Some(*role);
            }
        }
        found
    }
}

impl Tokens {
    /// Reads the tokens of a file, for a server that begins.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let known = KnownTokens::read(path)?;
        Ok(Tokens {
            path: path.into(),
            known: RwLock::new(known),
            wrong: WrongTokens::default(),
        })
    }

    /// Reads the file again. A bad file changes nothing.
    pub fn reload(&self) {
        match KnownTokens::read(&self.path) {
            Ok(known) => {
                log::info!(
                    "{:?} was read again, and has {} tokens",
                    self.path,
                    known.0.len()
                );
                *self.known.write() = known;
            }
            Err(error) => log::error!("the tokens stay as they are: {error}"),
        }
    }

    /// The token of a request from `from`, by its `Authorization`.
    pub(super) fn shown(&self, authorization: Option<&str>, from: IpAddr) -> Shown {
        let Some(authorization) = authorization else {
            return Shown::Nothing;
        };
        let known = self.known.read();
        match with_token(authorization, |token| known.role_of(token)) {
            Some(role) => {
                self.wrong.forget(from);
                Shown::Known(role)
            }
            None => Shown::Wrong {
                is_one_of_many: self.wrong.is_one_of_many(from),
            },
        }
    }
}

/// Opens a token file, if no other user can read or change it.
fn open(path: &Path) -> Result<File, String> {
    // A named pipe would block.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = file.map_err(|error| format!("cannot open it: {error}"))?;
    let about = file
        .metadata()
        .map_err(|error| format!("cannot look at it: {error}"))?;
    match exposed(&about, path) {
        None => Ok(file),
        Some(reason) => Err(reason),
    }
}

/// Why other users may know the file's secrets, and how to correct that. `None` if they can't.
fn exposed(about: &Metadata, path: &Path) -> Option<String> {
    let own = geteuid().as_raw();
    if !about.is_file() {
        Some("it is no regular file".into())
    } else if about.uid() != own && about.uid() != 0 {
        let owner = about.uid();
        Some(format!(
            "it belongs to user {owner}, and the server runs as user {own}; chown {own} {path:?}"
        ))
    } else if about.mode() & 0o077 != 0 {
        let mode = about.mode() & 0o777;
        Some(format!(
            "others may use it (mode {mode:03o}); chmod 600 {path:?}"
        ))
    } else {
        None
    }
}

/// Calls `call` with the token of `Bearer TOKEN` (RFC 6750), or with the password of Basic (RFC 7617) of any user.
/// `None` if there is neither. Allocates nothing, because every request is checked here.
fn with_token<T>(authorization: &str, call: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let (scheme, value) = authorization.split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("Bearer") {
        return call(value.as_bytes());
    }
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let mut decoded = [0; LONGEST_BASIC];
    let length = STANDARD.decode_slice(value, &mut decoded).ok()?;
    let decoded = &decoded[..length];
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    call(&decoded[colon + 1..])
}

/// The user name of Basic (RFC 7617), whatever the password is. `None` without one.
pub(super) fn user_of_basic(authorization: &str) -> Option<String> {
    let (scheme, value) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    let decoded = STANDARD.decode(value.trim()).ok()?;
    let user = decoded.split(|byte| *byte == b':').next()?;
    (!user.is_empty()).then(|| String::from_utf8_lossy(user).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_follows_bearer_or_is_the_password_of_basic() {
        let token = |authorization: &str| {
            with_token(authorization, |token| {
                Some(String::from_utf8_lossy(token).into_owned())
            })
        };
        for (authorization, expected) in [
            ("Bearer abcdefgh", Some("abcdefgh")),
            ("bearer  abcdefgh ", Some("abcdefgh")),
            // As `curl -u :TOKEN` and `curl -u me:TOKEN`.
            ("Basic OmFiY2RlZmdo", Some("abcdefgh")),
            ("basic bWU6YWJjZGVmZ2g=", Some("abcdefgh")),
            ("Basic bWU=", None),
            ("Basic :abcdefgh", None),
            ("Basic", None),
            ("abcdefgh", None),
            ("Digest abcdefgh", None),
        ] {
            assert_eq!(token(authorization).as_deref(), expected, "{authorization}");
        }
        let long = format!("Basic {}", "YWFh".repeat(200));
        assert_eq!(token(&long), None);
    }

    #[test]
    fn basic_names_the_user() {
        for (authorization, expected) in [
            ("basic bWU6YWJjZGVmZ2g=", Some("me")),
            ("Basic OmFiY2RlZmdo", None),
            ("Basic :", None),
            ("Bearer abcdefgh", None),
        ] {
            assert_eq!(
                user_of_basic(authorization).as_deref(),
                expected,
                "{authorization}"
            );
        }
    }

    #[test]
    fn a_file_needs_a_role_for_each_token_and_one_token_that_locks() {
        let known = KnownTokens::parse("read readreadread\nadmin adminadmin\nlock locklock\n");
        let known = known.unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!(known.that_locks().map(Token::as_str), Some("adminadmin"));
        assert_eq!(known.role_of(b"locklock"), Some(Role::Lock));
        assert_eq!(known.role_of(b"locklocK"), None);
        assert_eq!(known.role_of(b"locklock1"), None);
        let many: String = (0..=MOST).map(|n| format!("lock locklock{n}\n")).collect();
        for (text, wrong) in [
            ("", "no token of the role lock or admin"),
            ("read readreadread", "no token of the role lock or admin"),
            ("secretsecret", "line 1: the role is missing"),
            (
                "lock secretsecret\n\nread secretsecret",
                "line 3: an earlier line",
            ),
            (&many, "more than 100"),
        ] {
            let reason = KnownTokens::parse(text).err().expect("it is bad");
            assert!(
                reason.contains(wrong) && !reason.contains("secret"),
                "{reason}"
            );
        }
    }
}
