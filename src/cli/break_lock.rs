//! `break`: ends somebody else's hold of a key, after showing whose hold it is.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use lock_server::{Client, HeldBy, KeyDetail};

use crate::cli::args::{Break, Question};
use crate::cli::ask::{answer, client_options};
use crate::cli::exit::{Failure, UNREACHABLE};
use crate::cli::say;

/// Shows who holds the key, asks whether to break that hold, and breaks it.
pub fn break_lock(args: &Break) -> Result<ExitCode, Failure> {
    let asked = Question::from(args).asked()?;
    let (client, key) = (&asked.client, &asked.key);
    let detail = client.show(key)?;
    let is_meant = |hold: &&HeldBy| {
        args.fence.is_none_or(|fence| hold.fence == fence)
            && args.holder.as_ref().is_none_or(|name| hold.name == *name)
    };
    let meant: Vec<&HeldBy> = detail.held_by.iter().filter(is_meant).collect();
    // Show the hold before asking about it.
    if !(asked.is_quiet && args.yes) {
        show(&detail, &meant);
    }
    if meant.is_empty() {
        asked.say(|| "nothing was broken".into());
        return Ok(answer(false));
    }
    // Before any other reason: it is final.
    check_permission(client)?;
    let hold = match meant.as_slice() {
        [hold] => hold,
        several => {
            return Err(Failure::usage(format!(
                "{} hold {key}; say whose hold to break, with --fence or --holder",
                several.len()
            )));
        }
    };
    if !args.yes && !is_wanted()? {
        asked.say(|| "nothing was broken".into());
        return Ok(answer(false));
    }
    // With the fence of the hold that was shown, so a newer hold is not broken.
    let was_broken = client.break_lock(key, hold.fence)?;
    if !was_broken {
        asked.say(|| "it was over already; nothing was broken".into());
    }
    Ok(answer(was_broken))
}

/// Writes who holds the key, or that no hold is the one in the options, and how many wait.
fn show(detail: &KeyDetail, meant: &[&HeldBy]) {
    let key = &detail.key;
    for hold in meant {
        say(&in_words(key, hold));
    }
    match (meant.len(), detail.holders) {
        (0, 0) => say(&format!("nobody has locked {key}")),
        (0, 1) => {
            detail
                .held_by
                .iter()
                .for_each(|hold| say(&in_words(key, hold)));
            say("that is not the hold that you named");
        }
        (0, holders) => say(&format!(
            "{key} is held by {holders}, and none of their holds is the one that you named"
        )),
        _ => {}
    }
    match detail.waiters {
        0 => {}
        1 => say("1 waits for it"),
        waiters => say(&format!("{waiters} wait for it")),
    }
}

/// One hold, in one line.
fn in_words(key: &str, hold: &HeldBy) -> String {
    // Quoted, since it may contain what a terminal would obey.
    let note = hold.note.as_ref().map(|note| format!(" ({note:?})"));
    format!(
        "{key} is held by {}{} under fence {}, for {:.1} s by now, and {:.1} s more unless it is renewed",
        hold.name,
        note.unwrap_or_default(),
        hold.fence,
        hold.held.as_secs_f64(),
        hold.left.as_secs_f64()
    )
}

/// An error if the server does not allow this client to break a hold.
fn check_permission(client: &Client) -> Result<(), Failure> {
    if client.status()?.may_break {
        return Ok(());
    }
    let takes = match client_options()?.token {
        Some(_) => {
            "a token of the role admin, and the one of a LOCK_SERVER_TOKEN_FILE is the first there that may lock"
        }
        None => {
            "a server with --allow-break, as of lock-server restart --allow-break, which forgets all locks without a --store"
        }
    };
    let message = format!(
        "this server does not let you break it: that takes {takes}; \
         or end it in the holder's name, with unlock, --name and --fence"
    );
    Err(Failure::new(UNREACHABLE, message))
}

/// Asks on the terminal whether to break the hold.
fn is_wanted() -> Result<bool, Failure> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let message = "there is no terminal to ask on; give --yes to break it without a question";
        return Err(Failure::usage(message));
    }
    // If the terminal can't be written to, the read fails, too.
    let _ = write!(io::stderr(), "Break it? [y/N] ");
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    if !line.ends_with('\n') {
        // After Ctrl-D, the next message is to begin on a new line.
        let _ = writeln!(io::stderr());
    }
    let line = line.trim();
    Ok(read.is_ok()
        && ["y", "yes"]
            .iter()
            .any(|yes| line.eq_ignore_ascii_case(yes)))
}
