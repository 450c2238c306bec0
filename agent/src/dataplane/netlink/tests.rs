use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use nix::sys::socket::{setsockopt, sockopt};

use super::connection::{Answer, Connection};
use super::{Dataplane, DataplaneError, Netlink, decode, encode};
use crate::dataplane::Namespace;
use crate::fib::{Change, LOCAL_TABLE, MAIN_TABLE, Route, RouteKey};

fn blackhole(table: u32) -> Route {
    Route::blackhole(
        RouteKey {
            table,
            prefix: "10.65.42.0/26".parse().unwrap(),
            metric: 7,
        },
        86,
    )
}

/// The message that the kernel would send about `route`, give or take `alter`.
fn told(route: &Route, alter: impl FnOnce(&mut RouteMessage)) -> Option<Route> {
    let (message, _) = encode::replace_route(route).unwrap();
    let netlink_packet_route::RouteNetlinkMessage::NewRoute(mut message) = message else {
        unreachable!()
    };
    alter(&mut message);
    decode::route(&message)
}

#[test]
fn routes_that_are_not_kept_are_not_decoded() {
    for table in [MAIN_TABLE, 1, 886] {
        assert_eq!(told(&blackhole(table), |_| {}), Some(blackhole(table)));
    }
    assert_eq!(told(&blackhole(LOCAL_TABLE), |_| {}), None);
    assert_eq!(
        told(&blackhole(MAIN_TABLE), |message| message.header.tos = 4),
        None
    );
    let cloned = |message: &mut RouteMessage| message.header.flags.insert(RouteFlags::Cloned);
    assert_eq!(told(&blackhole(MAIN_TABLE), cloned), None);
    // What a link without carrier adds to its routes is no property of theirs.
    let down = |message: &mut RouteMessage| message.header.flags |= RouteFlags::Linkdown | RouteFlags::Dead;
    assert_eq!(told(&blackhole(MAIN_TABLE), down), Some(blackhole(MAIN_TABLE)));
    // A table above 255 stands in an attribute, whatever the header says.
    let large = |message: &mut RouteMessage| message.attributes.push(RouteAttribute::Table(LOCAL_TABLE));
    assert_eq!(told(&blackhole(MAIN_TABLE), large), None);
}

#[test]
fn a_route_message_is_read_back_as_it_was_written() {
    let (message, flags) = encode::replace_route(&blackhole(1000)).unwrap();
    let mut framed = NetlinkMessage::from(message.clone());
    framed.header.flags = flags;
    framed.finalize();
    let mut bytes = vec![0; framed.buffer_len()];
    framed.serialize(&mut bytes);
    let read = NetlinkMessage::deserialize(&bytes).unwrap();
    assert_eq!(read, framed);
}

fn requests(count: usize) -> Vec<super::Request> {
    (0..count).map(|_| encode::set_link(u32::MAX / 2, 1400)).collect()
}

/// Leaves room for one answer in the receive buffer, or little more.
fn shrink(connection: &Connection) {
    setsockopt(connection.socket(), sockopt::RcvBuf, &1).unwrap();
}

#[tokio::test]
async fn an_answer_that_found_no_room_is_never_taken_for_consent() {
    let mut connection = Connection::open(&Namespace::current().unwrap()).unwrap();
    shrink(&connection);
    // All are refused; most of the refusals, and what is asked last, find no room.
    let answers = connection.transact(requests(200)).await;
    assert_eq!(answers.len(), 200);
    assert!(!answers.contains(&Answer::Done));
    assert!(answers.contains(&Answer::Lost));
    assert!(!connection.is_sound());
    assert!(matches!(connection.links().await, Err(super::Interrupted::Lost)));
    assert_eq!(connection.transact(requests(1)).await, [Answer::Lost]);
}

#[tokio::test]
async fn an_empty_batch_keeps_nobody_waiting() {
    let mut connection = Connection::open(&Namespace::current().unwrap()).unwrap();
    assert_eq!(connection.transact(Vec::new()).await, []);
    assert!(!connection.links().await.unwrap().is_empty());
    assert!(connection.is_sound());
}

#[tokio::test]
async fn a_dead_connection_is_replaced_for_the_next_request() {
    let netlink = Netlink::open().unwrap();
    let nowhere = Change::SetLink {
        link: u32::MAX / 2,
        mtu: 1400,
    };
    shrink(netlink.connection.lock().await.as_ref().unwrap());
    let gone = Change::DeleteRoute(blackhole(MAIN_TABLE - 1));
    let many = vec![gone; 200];
    let results = netlink.apply(&many).await;
    assert!(
        matches!(results.last(), Some(Err(DataplaneError::ConnectionLost { .. }))),
        "{results:?}"
    );

    let results = netlink.apply(std::slice::from_ref(&nowhere)).await;
    assert!(
        matches!(results.as_slice(), [Err(why)] if why.errno() == Some(19)),
        "{results:?}"
    );
    assert!(!netlink.dump().await.unwrap().links.is_empty());
}
