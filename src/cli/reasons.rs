//! Why an answer is no, and who has the key, in words for standard error. The answer itself is on standard output.

use lock_server::{Error, Holder, Refusal};

/// Why a LOCK of a requester was not granted.
pub fn of_lock(key: &str, requester: &str, reason: Refusal, holder: Option<&Holder>) -> String {
    match (reason, holder) {
        // If the holder has the requester's name, that is the reason, regardless of the refusal.
        (_, Some(holder)) if holder.name == requester => of_second_lock(key, requester, holder),
        (Refusal::AlreadyWaiting, _) => {
            format!("another lock waits for {key} as {requester}; that is your own name")
        }
        (Refusal::AlreadyHolder, Some(holder)) => of_second_lock(key, requester, holder),
        (_, Some(holder)) => held_by(key, holder),
        (Refusal::Timeout, None) => format!("{key} did not become free in time"),
        (reason, None) => format!("{key} was not locked: {reason}"),
    }
}

/// Why a requester can't unlock or renew a key, or does not hold it, as far as the holder shows it.
pub fn of_holder(key: &str, requester: &str, holder: Option<&Holder>) -> String {
    match holder {
        None => format!("nobody has locked {key}, or the lease has run out"),
        Some(holder) if holder.name == requester => of_own_name(key, requester, holder),
        Some(holder) => format!(
            "{}; you are {requester}, which --name and LOCK_SERVER_NAME change",
            held_by(key, holder)
        ),
    }
}

/// Why a requester that holds the key can't unlock or renew it under this fence.
pub fn of_stale_fence(key: &str, requester: &str, fence: u64, holder: &Holder) -> String {
    let held = of_own_name(key, requester, holder);
    format!("{held}, but not under fence {fence}")
}

/// A message that a requester's hold of the key was broken, and who holds it now.
pub fn of_broken(key: &str, requester: &str, holder: Option<&Holder>) -> String {
    let now = match holder {
        None => "nobody holds it now".into(),
        Some(holder) => held_by(key, holder),
    };
    format!("the hold of {key} by {requester} was broken by an operator; {now}")
}

/// Why a lease is lost.
pub fn of_loss(error: &Error) -> String {
    match error {
        Error::LeaseLost {
            other_server: Some(other_server),
            ..
        } => other_server.to_string(),
        Error::LeaseLost {
            reason: Some(Refusal::Broken),
            ..
        } => "it was broken by an operator".into(),
        _ => "the server says the lease is over".into(),
    }
}

/// A message that a requester itself holds the key, alone or with others.
fn of_own_name(key: &str, requester: &str, holder: &Holder) -> String {
    let among = match holder.name == requester {
        true => String::new(),
        false => format!("{requester} is among them, and "),
    };
    format!("{}; {among}that is your own name", held_by(key, holder))
}

/// As [`of_own_name`], to a requester that asked for the key once more.
fn of_second_lock(key: &str, requester: &str, holder: &Holder) -> String {
    let held = of_own_name(key, requester, holder);
    format!("{held}; lock-server renew keeps it longer")
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

/// Who holds the key, and for how long; of several holders, the first one and the number of the others.
pub fn holder_of(key: &str, holder: &Holder) -> String {
    let Holder {
        name,
        expires_in,
        holders,
        note,
        ..
    } = holder;
    let left = format!(
        "{:.1} s more, unless it is renewed",
        expires_in.as_secs_f64()
    );
    // Quoted, since it may contain what a terminal would obey.
    let note = note.as_ref().map(|note| format!("{note:?}"));
    let others = match holders.saturating_sub(1) {
        0 => {
            let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
            return format!("{key} is held by {name}{note} for {left}");
        }
        1 => "1 other".into(),
        others => format!("{others} others"),
    };
    let note = note.map(|note| format!("{note}, ")).unwrap_or_default();
    format!("{key} is held by {name} ({note}{left}) and {others}")
}
