//! Why an answer is no, and who has the key: in words for standard error, beside the answer on standard output.

use lock_server::{Holder, Refusal};

/// Why a LOCK of a requester was not granted.
pub fn of_lock(key: &str, requester: &str, reason: Refusal, holder: Option<&Holder>) -> String {
    match (reason, holder) {
        // Where the holder has the same name, that is the reason, whatever the word is.
        (_, Some(holder)) if holder.name == requester => of_holder(key, requester, Some(holder)),
        (Refusal::AlreadyWaiting, _) => {
            format!("another lock waits for {key} as {requester}; that is your own name")
        }
        (Refusal::AlreadyHolder, Some(holder)) => format!(
            "{}; {requester} is among them, and that is your own name",
            held_by(key, holder)
        ),
        (_, Some(holder)) => held_by(key, holder),
        (Refusal::Timeout, None) => format!("{key} did not become free in time"),
        (reason, None) => format!("{key} was not locked: {reason}"),
    }
}

/// Why a requester can't unlock or renew a key, or does not hold it, as far as its holder says it.
pub fn of_holder(key: &str, requester: &str, holder: Option<&Holder>) -> String {
    match holder {
        None => format!("nobody has locked {key}"),
        Some(holder) if holder.name == requester => {
            format!("{}; that is your own name", held_by(key, holder))
        }
        Some(holder) => format!(
            "{}; you are {requester}, which --name and LOCK_SERVER_NAME change",
            held_by(key, holder)
        ),
    }
}

/// Who holds the key, for how long, and how many wait for it.
pub fn held_by(key: &str, holder: &Holder) -> String {
    let waiting = match holder.waiters {
        0 => "nobody waits for it".into(),
        1 => "1 waits for it".into(),
        waiters => format!("{waiters} wait for it"),
    };
    format!("{}; {waiting}", holder_of(key, holder))
}

/// Who holds the key, and for how long; of several, the first, and how many others.
pub fn holder_of(key: &str, holder: &Holder) -> String {
    let Holder {
        name,
        expires_in,
        holders,
        note,
        ..
    } = holder;
    let left = expires_in.as_secs_f64();
    // Quoted: it may hold what a terminal would obey.
    let note = note.as_ref().map(|note| format!(" ({note:?})"));
    let note = note.unwrap_or_default();
    let others = match holders - 1 {
        0 => String::new(),
        1 => ", and by 1 other".into(),
        others => format!(", and by {others} others"),
    };
    format!("{key} is held by {name}{note} for {left:.1} s more, unless it is renewed{others}")
}
