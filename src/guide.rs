//! The guide: what to know where a lock server's user does something out of the ordinary.
//!
//! - [`slots`]: readers and writers, and at most so many at a time
//! - [`in_tests`]: a server for tests, in a process or in threads, and how the program under test finds it
//! - [`wire`]: what goes over HTTP: questions, parameters, answers, and what a client may ask again
//! - [`looking`]: who holds what, who waits for it, and how the server does: status, metrics, alerts
//! - [`access`]: who may ask: web pages, tokens, and what they do not protect from
//! - [`store`]: locks that outlive the server: what is promised, what it costs, the file
//! - [`in_async_code`]: blocking calls beside an async runtime, and waits that are called off
//! - [`architecture`]: for maintainers: the rooms, the way of a question, the threads
//! - [`operations`]: a server as a service, in a container and behind nginx, HAProxy and Caddy
//! - [`after_a_fork`]: what a client, a guard and a server are in a forked process

// A page defines its links for readers of the repository, as paths of files. Of two definitions the first counts,
// and those here come first.

pub mod slots {
    #![doc = "[`LockOptions`]: crate::LockOptions"]
    #![doc = "[`Holder`]: crate::Holder"]
    #![doc = ""]
    #![doc = include_str!("guide/slots.md")]
}

pub mod in_tests {
    #![doc = "[after a fork]: super::after_a_fork"]
    #![doc = "[`CancelToken`]: crate::CancelToken"]
    #![doc = "[`Client`]: crate::Client"]
    #![doc = "[`Options`]: crate::Options"]
    #![doc = "[`Server`]: crate::Server"]
    #![doc = ""]
    #![doc = include_str!("guide/in_tests.md")]
}

pub mod in_async_code {
    #![doc = "[in tests]: super::in_tests"]
    #![doc = "[`CancelToken`]: crate::CancelToken"]
    #![doc = "[`Client`]: crate::Client"]
    #![doc = "[`Guard`]: crate::Guard"]
    #![doc = ""]
    #![doc = include_str!("guide/in_async_code.md")]
}

pub mod wire {
    #![doc = include_str!("guide/wire.md")]
}

pub mod looking {
    #![doc = "[`Client::break_lock`]: crate::Client::break_lock"]
    #![doc = "[`Lease::fence`]: crate::Lease::fence"]
    #![doc = ""]
    #![doc = include_str!("guide/looking.md")]
}

pub mod access {
    #![doc = "[`Client::from_env`]: crate::Client::from_env"]
    #![doc = "[`ClientOptions::token`]: crate::ClientOptions::token"]
    #![doc = "[`Options::token_file`]: crate::Options::token_file"]
    #![doc = "[`Server::client`]: crate::Server::client"]
    #![doc = "[`Server::start`]: crate::Server::start"]
    #![doc = ""]
    #![doc = include_str!("guide/access.md")]
}

pub mod store {
    #![doc = include_str!("guide/store.md")]
}

pub mod cluster {
    #![doc = include_str!("guide/cluster.md")]
}

pub mod after_a_fork {
    #![doc = "[in tests]: super::in_tests"]
    #![doc = "[`Client`]: crate::Client"]
    #![doc = "[`Guard`]: crate::Guard"]
    #![doc = "[`Lease`]: crate::Lease"]
    #![doc = "[`Server`]: crate::Server"]
    #![doc = ""]
    #![doc = include_str!("guide/after_a_fork.md")]
}

pub mod operations {
    #![doc = include_str!("guide/operations.md")]
}

pub mod architecture {
    #![doc = include_str!("guide/architecture.md")]
}
