//! The guide: one page for each subject. Start with [`rust`] for a program, [`exec`] for a script, [`wire`] for any
//! other language, and [`safety`] before you rely on a lock.
//!
//! - [`safety`]: what a lease promises and what it does not, fences, recipes that lose no write
//! - [`exec`]: a command that runs while a key is held: crontab, exit codes, signals, outages
//! - [`command`]: every other verb of `lock-server`, the options of the server, exit codes, logs
//! - [`wire`]: the protocol: names, limits, errors, each verb with its replies
//! - [`rust`]: a tour of the client, the guard and the server
//! - [`in_tests`]: a server for tests, in a process or in threads
//! - [`in_async_code`]: blocking calls beside an async runtime, and waits that are called off
//! - [`after_a_fork`]: what a client, a guard and a server are in a forked process
//! - [`slots`]: readers and writers, and at most N at a time
//! - [`looking`]: the status page, lists, events, metrics, alerts, and breaking a lock
//! - [`access`]: the guard against web pages, tokens, TLS
//! - [`operations`]: systemd, containers, proxies, limits, sizing, upgrades
//! - [`store`]: locks that outlive the server, in a file
//! - [`cluster`]: several servers that share their locks through etcd
//! - [`performance`]: how fast it is in memory, with a file and with etcd, where the time goes, how cost grows
//! - [`moving_from_perl`]: for programs that use Perl's Lock::Server
//! - [`architecture`]: for maintainers: the rooms, the way of a question, the threads

/// Pages, each with the links of all of them. A page defines its own links for readers of the repository, as paths of
/// files. Of two definitions the first counts, and those here come first.
macro_rules! pages {
    ($($page:ident $file:literal $($plot:literal)?)*) => { $(
        #[doc = "[access]: crate::guide::access"]
        #[doc = "[after a fork]: crate::guide::after_a_fork"]
        #[doc = "[architecture]: crate::guide::architecture"]
        #[doc = "[cluster]: crate::guide::cluster"]
        #[doc = "[command]: crate::guide::command"]
        #[doc = "[exec]: crate::guide::exec"]
        #[doc = "[in async code]: crate::guide::in_async_code"]
        #[doc = "[in tests]: crate::guide::in_tests"]
        #[doc = "[looking]: crate::guide::looking"]
        #[doc = "[moving from Perl]: crate::guide::moving_from_perl"]
        #[doc = "[operations]: crate::guide::operations"]
        #[doc = "[performance]: crate::guide::performance"]
        // rustdoc copies no image: the page itself has an empty one, and the plot follows the page.
        #[doc = "[plot]: data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"]
        #[doc = "[rust]: crate::guide::rust"]
        #[doc = "[safety]: crate::guide::safety"]
        #[doc = "[slots]: crate::guide::slots"]
        #[doc = "[store]: crate::guide::store"]
        #[doc = "[wire]: crate::guide::wire"]
        #[doc = "[`CancelToken`]: crate::CancelToken"]
        #[doc = "[`Client`]: crate::Client"]
        #[doc = "[`Client::break_lock`]: crate::Client::break_lock"]
        #[doc = "[`ClientOptions`]: crate::ClientOptions"]
        #[doc = "[`Error`]: crate::Error"]
        #[doc = "[`Guard`]: crate::Guard"]
        #[doc = "[`Holder`]: crate::Holder"]
        #[doc = "[`Lease`]: crate::Lease"]
        #[doc = "[`LockOptions`]: crate::LockOptions"]
        #[doc = "[`Options`]: crate::Options"]
        #[doc = "[`Refusal`]: crate::Refusal"]
        #[doc = "[`Server`]: crate::Server"]
        #[doc = ""]
        #[doc = include_str!($file)]
        $(#[doc = ""]
        #[doc = include_str!($plot)])?
        pub mod $page {}
    )* };
}

pages! {
    safety "guide/safety.md"
    exec "guide/exec.md"
    command "guide/command.md"
    wire "guide/wire.md"
    rust "guide/rust.md"
    in_tests "guide/in_tests.md"
    in_async_code "guide/in_async_code.md"
    after_a_fork "guide/after_a_fork.md"
    slots "guide/slots.md"
    looking "guide/looking.md"
    access "guide/access.md"
    operations "guide/operations.md"
    store "guide/store.md"
    cluster "guide/cluster.md"
    performance "guide/performance.md" "guide/performance.svg"
    moving_from_perl "guide/moving_from_perl.md"
    architecture "guide/architecture.md"
}
