//! Which addresses have sent many wrong tokens in a row: a bounded table.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many wrong tokens in a row an address may send before its answers are delayed.
const FEW: u32 = 10;

/// How many addresses are remembered. Beyond that, the one that has been quiet for longest is forgotten.
const MOST_ROWS: usize = 1024;

/// How long a row is remembered after its last wrong token.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// Wrong tokens, counted for each network.
#[derive(Default)]
pub(super) struct WrongTokens {
    rows: Mutex<HashMap<Network, Row>>,
    /// How many rows there are: while it is 0, requests with right tokens skip the mutex.
    count: AtomicUsize,
}

/// What counts as one client: an IPv4 address, or an IPv6 network of 64 bits, of which one host may use each address
/// (RFC 6177).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    V4(u32),
    V6(u64),
}

struct Row {
    wrong: u32,
    last: Instant,
}

impl Network {
    fn of(address: IpAddr) -> Self {
        // A socket for both families reports an IPv4 client as ::ffff:10.0.0.7.
        match address.to_canonical() {
            IpAddr::V4(address) => Network::V4(address.to_bits()),
            // The upper half.
            IpAddr::V6(address) => Network::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl WrongTokens {
    /// Counts a wrong token, and returns whether there were more than ten in a row.
    pub fn is_one_of_many(&self, from: IpAddr) -> bool {
        self.is_one_of_many_at(from, Instant::now())
    }

    fn is_one_of_many_at(&self, from: IpAddr, now: Instant) -> bool {
        let network = Network::of(from);
        let mut rows = self.rows.lock();
        if rows.len() >= MOST_ROWS && !rows.contains_key(&network) {
            let quietest = rows.iter().min_by_key(|(_, row)| row.last);
            let quietest = quietest.map(|(network, _)| *network);
            quietest.map(|network| rows.remove(&network));
        }
        let row = rows.entry(network).or_insert(Row {
            wrong: 0,
            last: now,
        });
        if now.duration_since(row.last) > REMEMBERED {
            row.wrong = 0;
        }
        (row.wrong, row.last) = (row.wrong.saturating_add(1), now);
        let is_one_of_many = row.wrong > FEW;
        self.count.store(rows.len(), Relaxed);
        is_one_of_many
    }

    /// Forgets the wrong tokens of an address that sent a right one.
    pub fn forget(&self, from: IpAddr) {
        if self.count.load(Relaxed) > 0 {
            let mut rows = self.rows.lock();
            rows.remove(&Network::of(from));
            self.count.store(rows.len(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn more_than_ten_wrong_tokens_in_a_row_are_many_until_a_right_one_or_ten_quiet_minutes() {
        let (wrong, now) = (WrongTokens::default(), Instant::now());
        let (me, other) = (address("10.0.0.7"), address("10.0.0.8"));
        let ten = |now| {
            for _ in 0..10 {
                assert!(!wrong.is_one_of_many_at(me, now));
            }
            assert!(wrong.is_one_of_many_at(me, now));
        };
        ten(now);
        assert!(!wrong.is_one_of_many_at(other, now));
        wrong.forget(me);
        ten(now);
        assert!(wrong.is_one_of_many_at(me, now + REMEMBERED));
        ten(now + REMEMBERED * 2 + Duration::from_secs(1));
    }

    #[test]
    fn an_ipv6_network_of_64_bits_counts_as_one_client_and_each_ipv4_address_does() {
        let network = |text| Network::of(address(text));
        assert!(network("2001:db8::1") == network("2001:db8::ffff:1:2:3"));
        assert!(network("2001:db8::1") != network("2001:db8:0:1::1"));
        assert!(network("::ffff:10.0.0.7") == network("10.0.0.7"));
        assert!(network("::ffff:10.0.0.7") != network("10.0.0.8"));
    }

    #[test]
    fn the_table_is_bounded_and_the_quietest_address_is_forgotten() {
        let (wrong, now) = (WrongTokens::default(), Instant::now());
        let most = MOST_ROWS as u32;
        for number in 0..most {
            let at = now + Duration::from_millis(number.into());
            wrong.is_one_of_many_at(IpAddr::V4(number.into()), at);
        }
        let later = now + Duration::from_secs(60);
        wrong.is_one_of_many_at(IpAddr::V4(most.into()), later);
        let rows = wrong.rows.lock();
        assert_eq!(rows.len(), MOST_ROWS);
        assert!(!rows.contains_key(&Network::V4(0)));
        assert!(rows.contains_key(&Network::V4(1)) && rows.contains_key(&Network::V4(most)));
    }
}
