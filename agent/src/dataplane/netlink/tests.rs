use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoIpTunnel, InfoKind, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

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
    let RouteNetlinkMessage::NewRoute(mut message) = message else {
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

/// The bytes of a message about a link.
fn framed_link(message: LinkMessage) -> Vec<u8> {
    let mut framed = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
    framed.finalize();
    let mut bytes = vec![0; framed.buffer_len()];
    framed.serialize(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_link_without_what_is_not_kept_of_it_is_the_same_link_in_a_fraction_of_the_bytes() {
    let read = |bytes: &[u8]| match NetlinkMessage::deserialize(bytes).unwrap().payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
            decode::link(&message).unwrap()
        }
        other => panic!("{other:?}"),
    };
    let mut connection = Connection::open(&Namespace::current().unwrap()).unwrap();
    let tunnel = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpIp)
        .name("tunl0")
        .mtu(1480)
        .set_info_data(InfoData::IpTunnel(vec![InfoIpTunnel::PMtuDisc(false)]))
        .build();
    let mut links = connection.links().await.unwrap();
    assert!(!links.is_empty());
    links.push(tunnel);
    for link in links {
        let whole = framed_link(link);
        let lean = decode::lean_link(&whole).unwrap();
        assert!(lean.len() <= whole.len());
        assert_eq!(read(&lean), read(&whole));
    }
    // What ends in the middle of an attribute is left to the library to refuse.
    let whole = framed_link(LinkMessageBuilder::<LinkUnspec>::new().name("lo").build());
    assert_eq!(decode::lean_link(&whole[..whole.len() - 2]), None);
}
