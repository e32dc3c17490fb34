//! The token that a client shows, and the role that a server gives it. Knows no wire and no server.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::Error;

/// The variable of the environment that names a file with the client's token.
pub(crate) const TOKEN_FILE_VARIABLE: &str = "LOCK_SERVER_TOKEN_FILE";

/// The variable of the environment that holds the token itself.
pub(crate) const TOKEN_VARIABLE: &str = "LOCK_SERVER_TOKEN";

/// The lengths that a token may have. A shorter one is easy to guess; a longer one would not fit in a password of Basic
/// as the server reads it.
const LENGTHS: std::ops::RangeInclusive<usize> = 8..=256;

/// The longest file of tokens, in bytes: more than any needs.
const LONGEST_FILE: u64 = 64 * 1024;

/// What a client shows a server that has a [token file](crate::Options::token_file): 8 to 256 of
/// `A-Z a-z 0-9 - . _ ~ + / =`, as RFC 6750 (section 2.1) allows it. `Debug` hides it.
///
/// ```
/// use lock_server::Token;
///
/// let token: Token = "mF_9.B5f-4.1JqM".parse()?;
/// assert_eq!(format!("{token:?}"), "Token(..)");
/// assert!("b\u{e4}d token".parse::<Token>().is_err());
/// # Ok::<(), lock_server::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

/// What a token allows. A greater role also allows everything that a smaller one allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Questions that only look.
    Read,
    /// `Read`, and LOCK, UNLOCK and RENEW.
    Lock,
    /// Everything.
    Admin,
}

impl Token {
    /// The token of the environment: from the file that `LOCK_SERVER_TOKEN_FILE` names, or else from
    /// `LOCK_SERVER_TOKEN`. Of a file, the first token that may lock, or else the first one. `None` if neither variable
    /// is set, or both are empty.
    ///
    /// A line of the file is `TOKEN`, or `ROLE TOKEN` as in a server's [token file](crate::Options::token_file); blank
    /// lines and those that begin with `#` do not count.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with the variable's name if the file can't be read, or if it or the variable holds no
    /// token.
    pub fn from_env() -> Result<Option<Token>, Error> {
        if let Some(path) = env::var_os(TOKEN_FILE_VARIABLE).filter(|path| !path.is_empty()) {
            let token = of_client(Path::new(&path));
            return token
                .map(Some)
                .map_err(|reason| bad(TOKEN_FILE_VARIABLE, format!("{path:?}: {reason}")));
        }
        match env::var(TOKEN_VARIABLE) {
            Ok(text) if !text.is_empty() => match Token::read(&text) {
                Some(token) => Ok(Some(token)),
                None => Err(bad(TOKEN_VARIABLE, no_token())),
            },
            Err(env::VarError::NotUnicode(_)) => Err(bad(TOKEN_VARIABLE, no_token())),
            _ => Ok(None),
        }
    }

    fn read(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        let is_token = LENGTHS.contains(&text.len()) && text.bytes().all(is_allowed);
        is_token.then(|| Token(text.into()))
    }

    /// The token itself, to send it. Never to print it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// [`Error::InvalidOption`] for a text that is no token. The error does not repeat the text.
impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Token::read(text).ok_or_else(|| bad("token", no_token()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Role {
    const ALL: [Role; 3] = [Role::Read, Role::Lock, Role::Admin];

    /// The role's word, as in a token file.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Lock => "lock",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn bad(option: &'static str, reason: String) -> Error {
    Error::InvalidOption { option, reason }
}

fn no_token() -> String {
    let (least, most) = (LENGTHS.start(), LENGTHS.end());
    format!("that is no token; give {least} to {most} of A-Z a-z 0-9 - . _ ~ + / =")
}

/// Parses a file of tokens: for each token the line's number and the role, if the line names one. An error names the
/// line, and never repeats a token.
pub(crate) fn parse_file(text: &str) -> Result<Vec<(usize, Option<Role>, Token)>, String> {
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let number = at + 1;
        let wrong = |what: &str| format!("line {number}: {what}");
        let words: Vec<&str> = line.split_whitespace().collect();
        let (role, token) = match words.as_slice() {
            [] => continue,
            [first, ..] if first.starts_with('#') => continue,
            [token] => (None, token),
            [role, token] => {
                let known = Role::ALL.into_iter().find(|known| known.as_str() == *role);
                let no_role = "the first word is no role; give read, lock or admin";
                (Some(known.ok_or_else(|| wrong(no_role))?), token)
            }
            _ => return Err(wrong("give a role and a token, and nothing else")),
        };
        let token = Token::read(token).ok_or_else(|| wrong(&no_token()))?;
        tokens.push((number, role, token));
    }
    Ok(tokens)
}

/// Reads a file of tokens as text.
pub(crate) fn read_text(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LONGEST_FILE + 1).read_to_string(&mut text)?;
    match text.len() as u64 {
        0..=LONGEST_FILE => Ok(text),
        _ => Err(io::Error::other("it is longer than 64 KiB")),
    }
}

/// The token that a client takes from a file: the first one that may lock, or else the first one.
fn of_client(path: &Path) -> Result<Token, String> {
    let text = File::open(path).and_then(read_text);
    let text = text.map_err(|error| format!("cannot read it: {error}"))?;
    let tokens = parse_file(&text)?;
    let may_lock = tokens
        .iter()
        .find(|(_, role, _)| *role != Some(Role::Read))
        .or(tokens.first());
    let token = may_lock.map(|(_, _, token)| token.clone());
    token.ok_or_else(|| "there is no token in it".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_role_and_a_token_and_an_error_names_the_line_alone() {
        let parsed = parse_file("# ours\n\n  lock abcdefgh\r\nread a.b-c_d~e+f/g==\nABCDEFGH\n");
        let parsed = parsed.expect("it is good");
        let roles: Vec<_> = parsed
            .iter()
            .map(|(line, role, _)| (*line, *role))
            .collect();
        let expected = [(3, Some(Role::Lock)), (4, Some(Role::Read)), (5, None)];
        assert_eq!(roles, expected);
        assert_eq!(parsed[1].2.as_str(), "a.b-c_d~e+f/g==");
        for (line, wrong) in [
            ("Lock secretsecret", "no role"),
            ("secretsecret lock", "no role"),
            ("lock secret", "no token"),
            ("lock", "no token"),
            ("lock secret:secret", "no token"),
            ("lock secretsecret # ours", "nothing else"),
            (&format!("lock {}", "secret".repeat(50)), "no token"),
        ] {
            let said = parse_file(&format!("\n{line}\n")).expect_err(line);
            assert!(
                said.starts_with("line 2: ") && said.contains(wrong),
                "{said}"
            );
            assert!(!said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn nothing_prints_a_token() {
        let token: Token = "secretsecret".parse().expect("it is one");
        assert!(!format!("{token:?} {:?}", Some(&token)).contains("secret"));
        let refused = "secret".parse::<Token>().expect_err("it is short");
        assert!(!format!("{refused:?} {refused}").contains("secret"));
    }
}
