//! Questions that look: which keys are held, who holds or waits for one key, and the state of the server.

use super::{Client, valid};
use crate::error::Error;
use crate::protocol::json::{KeyDetail, LockPage, StatusReport};
use crate::protocol::{Parameter, Request, Verb};

/// Which held keys to list. Every field has a default, as in [`LockOptions`](crate::LockOptions).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// The beginning of the keys, up to 1,024 bytes. Default empty: any key.
    pub prefix: String,

    /// The name of a holder, alone or with others: the whole name, 1 to 1,024 bytes. Default `None`: any holder.
    pub holder: Option<String>,

    /// How many keys a page has, 1 to 1,000. Default `None`: the server's default, 100.
    pub limit: Option<u32>,

    /// Where the page begins: [`LockPage::next`] of the page before. Default `None`: at the first key.
    pub after: Option<String>,
}

impl Client {
    /// A page of the keys that are held, with their holders. The keys that somebody waits for come first, then those
    /// whose lease ends first. [`list_pages`](Self::list_pages) goes through all pages.
    ///
    /// A page of more than 64 MiB is an error: with long names and many holders of each key, ask for fewer keys.
    ///
    /// ```
    /// use lock_server::{ListOptions, Options, Server};
    ///
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// # let client = server.client("CLIENT_A");
    /// let guard = client.guard("deploy/web")?;
    /// let options = ListOptions { prefix: "deploy/".into(), ..ListOptions::default() };
    /// let page = client.list(&options)?;
    /// assert_eq!(page.locks[0].key, "deploy/web");
    /// assert_eq!(page.locks[0].held_by[0].name, "CLIENT_A");
    /// assert_eq!(page.next, None);
    /// # drop(guard);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked); [`Error::InvalidName`] if the prefix or the holder is too long, or the holder
    /// is empty; [`Error::Refused`] with [`Refusal::BadRequest`](crate::Refusal::BadRequest) if `limit` or `after` is
    /// not valid, with [`Refusal::NoSuchVerb`](crate::Refusal::NoSuchVerb) by a server before 0.2.0.
    pub fn list(&self, options: &ListOptions) -> Result<LockPage, Error> {
        let ListOptions {
            prefix,
            holder,
            limit,
            after,
        } = options;
        if !prefix.is_empty() {
            valid("prefix", prefix)?;
        }
        if let Some(holder) = holder {
            valid("holder", holder)?;
        }
        let question = Request::bare(Verb::Locks)
            .with(
                Parameter::Prefix,
                Some(&**prefix).filter(|prefix| !prefix.is_empty()),
            )
            .with(Parameter::Holder, holder.as_deref())
            .with(Parameter::Limit, limit.map(u64::from))
            .with(Parameter::After, after.as_deref());
        self.transport.ask_document(&question)
    }

    /// Iterates over all pages, from the one that the options name. Each page is asked for with [`list`](Self::list)
    /// when it is needed. The iterator ends after an error; to go on, use the `next` of the last page.
    ///
    /// Locks change meanwhile: a key may be on two pages or on none if its lease is renewed or somebody begins to wait
    /// for it.
    ///
    /// ```
    /// # use lock_server::{ListOptions, Options, Server};
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// # let client = server.client("CLIENT_A");
    /// # let lease = client.lock("KEYA")?;
    /// let mut keys = Vec::new();
    /// for page in client.list_pages(ListOptions { limit: Some(1000), ..ListOptions::default() }) {
    ///     keys.extend(page?.locks.into_iter().map(|held| held.key));
    /// }
    /// assert_eq!(keys, ["KEYA"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn list_pages(&self, options: ListOptions) -> LockPages<'_> {
        LockPages {
            client: self,
            rest: Some(options),
        }
    }

    /// One key with all its holders, and all its waiters in the order of the queue; up to 10,000 of each. A free key
    /// has neither.
    ///
    /// ```
    /// # use lock_server::{Options, Server};
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// # let client = server.client("CLIENT_A");
    /// let lease = client.lock("KEYA")?.expect("nobody else has it");
    /// let shown = client.show("KEYA")?;
    /// assert_eq!(shown.held_by[0].fence, lease.fence);
    /// assert!(shown.queue.is_empty());
    /// assert_eq!(client.show("KEYB")?.holders, 0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`is_locked`](Self::is_locked); [`Error::Refused`] with
    /// [`Refusal::NoSuchVerb`](crate::Refusal::NoSuchVerb) by a server before 0.2.0.
    pub fn show(&self, key: &str) -> Result<KeyDetail, Error> {
        let question = Request::new(Verb::Locks, valid("key", key)?, "");
        self.transport.ask_document(&question)
    }

    /// The state of the server: how much it holds, what it has done, its last ten minutes, and whether this client may
    /// break a hold.
    ///
    /// ```
    /// # use lock_server::{Options, Server};
    /// # fn main() -> Result<(), lock_server::Error> {
    /// # let mut server = Server::new(Options { port: 0, ..Options::default() });
    /// # server.start()?;
    /// # let client = server.client("CLIENT_A");
    /// let lease = client.lock("KEYA")?;
    /// let status = client.status()?;
    /// assert_eq!((status.keys, status.totals.granted), (1, 1));
    /// assert!(!status.may_break, "the option allow_break permits it");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn status(&self) -> Result<StatusReport, Error> {
        self.transport.ask_document(&Request::bare(Verb::Status))
    }
}

/// The pages of [`Client::list_pages`].
#[derive(Clone, Debug)]
#[must_use = "it asks for a page when it is iterated over"]
pub struct LockPages<'a> {
    client: &'a Client,
    /// The options of the next page. `None` after the last page.
    rest: Option<ListOptions>,
}

impl Iterator for LockPages<'_> {
    type Item = Result<LockPage, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let options = self.rest.take()?;
        let page = self.client.list(&options);
        let next = page.as_ref().ok().and_then(|page| page.next.clone());
        self.rest = next.map(|next| ListOptions {
            after: Some(next),
            ..options
        });
        Some(page)
    }
}
