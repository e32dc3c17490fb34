//! Against a real etcd.

use super::real_etcd::{new_prefix, shared};
use super::*;

#[test]
fn it_opens_and_commits() {
    let Some(etcd) = shared() else { return };
    let options = options(&etcd.endpoints, &new_prefix());
    let (mut store, found, election) = opened(&options);
    assert!(found.holds.is_empty());
    assert_eq!(election.elected().leader.as_deref(), Some("127.0.0.1:8004"));
    store.commit(&batch(7, [held(7, "K")])).unwrap();
    store.confirm().unwrap();
    store.resign();
    let (_, found, _) = opened(&options);
    assert_eq!(fences(&found), [7]);
}
