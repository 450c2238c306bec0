use std::time::Duration;

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{Change, Desired, KernelEvent, Route};
use culvert_agent::reconcile::{Actual, Observed, Removal, diff};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::netns::{OURS, hop, in_namespace, ip, key, link, onlink, underlay, unicast};

const LIMIT: Duration = Duration::from_secs(30);

/// Takes events until one is `wanted`, and gives that.
pub(crate) async fn event(
    events: &mut Receiver<KernelEvent>,
    mut wanted: impl FnMut(&KernelEvent) -> bool,
) -> KernelEvent {
    loop {
        let next = timeout(LIMIT, events.recv())
            .await
            .expect("an event in time")
            .expect("the listener lives");
        if wanted(&next) {
            return next;
        }
        assert_ne!(next, KernelEvent::Overrun, "nothing may be lost here");
    }
}

#[test]
fn what_is_done_by_hand_is_seen() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let mut events = netlink.events().unwrap();
        let route = onlink("10.65.17.64/26", "172.30.0.12", a);

        ip("route add 10.65.17.64/26 via 172.30.0.12 dev u0 proto 201 onlink");
        let is_route = |event: &KernelEvent| {
            matches!(
                event,
                KernelEvent::Route(_) | KernelEvent::RouteReplaced(_) | KernelEvent::RouteGone(_)
            )
        };
        assert_eq!(
            event(&mut events, is_route).await,
            KernelEvent::Route(route.clone())
        );

        ip("route replace 10.65.17.64/26 via 172.30.0.13 dev u0 proto 201 onlink");
        let replaced = onlink("10.65.17.64/26", "172.30.0.13", a);
        assert_eq!(
            event(&mut events, is_route).await,
            KernelEvent::RouteReplaced(replaced.clone())
        );

        // Deleted by another instance of the agent, as it were.
        let other = Netlink::open().unwrap();
        assert!(
            other
                .apply(&[Change::DeleteRoute(replaced.clone())])
                .await
                .iter()
                .all(Result::is_ok)
        );
        assert_eq!(
            event(&mut events, is_route).await,
            KernelEvent::RouteGone(replaced)
        );

        ip("addr add 172.19.0.1/24 dev u0");
        let added = event(&mut events, |event| matches!(event, KernelEvent::Address(_))).await;
        ip("addr del 172.19.0.1/24 dev u0");
        let KernelEvent::AddressGone(gone) =
            event(&mut events, |event| matches!(event, KernelEvent::AddressGone(_))).await
        else {
            unreachable!()
        };
        assert_eq!(added, KernelEvent::Address(gone));
        assert_eq!((gone.link, gone.net.to_string().as_str()), (a, "172.19.0.1/24"));

        ip("link set u1 down");
        event(
            &mut events,
            |event| matches!(event, KernelEvent::Link(link) if link.name == "u1" && !link.up),
        )
        .await;
        ip("link del u0");
        event(&mut events, |event| *event == KernelEvent::LinkGone(a)).await;
    });
}

#[test]
fn forwarding_switched_by_hand_is_seen_and_repaired() {
    in_namespace(async || {
        let switch = "/proc/sys/net/ipv4/ip_forward";
        std::fs::write(switch, "1").unwrap();
        underlay();
        let netlink = Netlink::open().unwrap();
        let mut events = netlink.events().unwrap();
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        // That of one link is not the host's.
        std::fs::write("/proc/sys/net/ipv4/conf/u0/forwarding", "0").unwrap();
        std::fs::write(switch, "0").unwrap();
        let is_switch = |event: &KernelEvent| matches!(event, KernelEvent::Forwarding(_));
        let off = event(&mut events, is_switch).await;
        assert_eq!(off, KernelEvent::Forwarding(false));
        assert_eq!(actual.observe(&off), Observed::Changed);

        let wanted = Desired {
            forwarding: true,
            ..Desired::default()
        };
        let changes = diff(&wanted, &actual, &OURS, Removal::Later);
        assert_eq!(changes, [Change::EnableForwarding]);
        for result in netlink.apply(&changes).await {
            result.unwrap();
        }
        actual.applied(&Change::EnableForwarding);
        let on = event(&mut events, is_switch).await;
        assert_eq!(on, KernelEvent::Forwarding(true));
        assert_eq!(actual.observe(&on), Observed::Unchanged);
        assert_eq!(std::fs::read_to_string(switch).unwrap().trim(), "1");
    });
}

#[test]
fn a_reverse_path_filter_written_by_hand_is_seen() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let u0 = link(&netlink, "u0").await.index;
        let u1 = link(&netlink, "u1").await.index;
        let mut events = netlink.events().unwrap();
        let is_filter = |event: &KernelEvent| matches!(event, KernelEvent::ReversePathFilter(_));
        // Only those of links with an address are ours to care about.
        for (of, told, expected) in [
            ("u0", Some(u0), Observed::MustDump),
            ("u1", Some(u1), Observed::Unchanged),
            ("all", None, Observed::MustDump),
        ] {
            let path = format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
            let present = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, if present.trim() == "1" { "2" } else { "1" }).unwrap();
            let seen = event(&mut events, is_filter).await;
            assert_eq!(seen, KernelEvent::ReversePathFilter(told));
            let mut actual = Actual::new(netlink.dump().await.unwrap());
            assert_eq!(actual.observe(&seen), expected);
        }
    });
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_taken_for_a_link_that_is_gone() {
    in_namespace(async || {
        underlay();
        ip("link add name bridge type bridge");
        ip("link set u1 master bridge");
        let netlink = Netlink::open().unwrap();
        let mut events = netlink.events().unwrap();
        ip("link set u1 nomaster");
        ip("link set lo mtu 60000");
        let b = link(&netlink, "u1").await.index;
        let last = |event: &KernelEvent| {
            assert_ne!(*event, KernelEvent::LinkGone(b));
            matches!(event, KernelEvent::Link(link) if link.name == "lo")
        };
        event(&mut events, last).await;
    });
}

/// Feeds `actual` what has happened until the mark (an address on `lo`) comes by, dumping where it asks for it.
async fn catch_up(netlink: &Netlink, actual: &mut Actual, events: &mut Receiver<KernelEvent>, round: usize) {
    let mark = format!("127.1.0.{}/32", round + 1);
    ip(&format!("addr add {mark} dev lo"));
    let is_mark = |event: &KernelEvent| matches!(event, KernelEvent::Address(address) if address.net.to_string() == mark);
    loop {
        let next = event(events, |_| true).await;
        if actual.observe(&next) == Observed::MustDump {
            *actual = Actual::new(netlink.dump().await.unwrap());
        }
        if is_mark(&next) {
            return;
        }
    }
}

fn known(actual: &Actual) -> (Vec<Route>, Vec<String>) {
    let links = actual.links().map(|link| {
        let addresses: Vec<_> = actual
            .addresses_of(link.index)
            .map(|address| address.net.to_string())
            .collect();
        // Carrier comes and goes with the other end, a moment later.
        format!(
            "{} {} up {} mtu {} {addresses:?}",
            link.index, link.name, link.up, link.mtu
        )
    });
    (actual.routes().cloned().collect(), links.collect())
}

#[test]
fn what_events_and_the_dumps_they_ask_for_tell_is_what_is() {
    in_namespace(async || {
        underlay();
        ip("link add name v0 type veth peer name v1");
        ip("addr add 172.19.0.1/24 dev v0");
        ip("link set v0 up");
        ip("link set v1 up");
        let netlink = Netlink::open().unwrap();
        let mut events = netlink.events().unwrap();
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let steps = [
            "route add 10.1.0.0/16 via 172.18.0.9 dev u0",
            "route append 10.1.0.0/16 via 172.18.0.8 dev u0 proto static",
            "route prepend 10.1.0.0/16 via 172.18.0.7 dev u0 proto bird",
            "route replace 10.1.0.0/16 via 172.18.0.6 dev u0 proto 201",
            "route del 10.1.0.0/16 via 172.18.0.9 dev u0",
            "route add 10.2.0.0/16 via 172.18.0.9 dev u0 metric 5 table 700",
            "route add 10.3.0.0/16 nexthop via 172.18.0.9 dev u0 nexthop via 172.19.0.9 dev v0",
            "route add 10.4.0.0/16 dev v0 src 172.18.0.1",
            "route add 10.5.0.0/16 via 172.18.0.9 dev u0 tos 4",
            // One dead next hop of two, then both; the routes through the link go without a word.
            "link set v0 down",
            "link set v0 up",
            "route add 10.4.0.0/16 dev v0 src 172.18.0.1",
            "link set u0 down",
            "link set u0 up",
            "route add 10.6.0.0/16 via 172.18.0.9 dev u0",
            // The source of a route through another link, and the last address of its own.
            "addr add 172.18.1.1/24 dev u0",
            "addr del 172.18.0.1/24 dev u0",
            "route add 10.7.0.0/16 via 172.18.1.9 dev u0",
            "addr del 172.18.1.1/24 dev u0",
            "link set u0 down",
            "link set u0 name renamed",
            "link set renamed up",
            "route add 10.8.0.0/16 dev renamed",
            "link del renamed",
            "link del v0",
        ];
        for (round, step) in steps.into_iter().enumerate() {
            ip(step);
            catch_up(&netlink, &mut actual, &mut events, round).await;
            let fresh = Actual::new(netlink.dump().await.unwrap());
            assert_eq!(known(&actual), known(&fresh), "after ip {step}");
        }
    });
}

#[test]
fn a_receiver_that_does_not_keep_up_is_told_so_and_goes_on_from_a_dump() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        // Another's changes: its own the listener does not hear.
        let mut events = Netlink::open().unwrap().events().unwrap();
        let route = |n: u32| onlink(&format!("10.{}.{}.0/24", n / 256, n % 256), "172.30.0.12", a);
        let changes: Vec<_> = (0..6000).map(|n| Change::ReplaceRoute(route(n))).collect();
        assert!(netlink.apply(&changes).await.iter().all(Result::is_ok));
        // The listener has its turns, and nobody takes anything from it.
        while events.len() < events.max_capacity() {
            tokio::task::yield_now().await;
        }
        for _ in 0..changes.len() {
            tokio::task::yield_now().await;
        }
        let mut seen = 0;
        event(&mut events, |event| {
            seen += usize::from(matches!(event, KernelEvent::Route(_)));
            *event == KernelEvent::Overrun
        })
        .await;
        assert!(seen < changes.len(), "the channel is bounded");
        let actual = Actual::new(netlink.dump().await.unwrap());
        assert_eq!(
            actual
                .routes()
                .filter(|route| route.protocol == OURS.protocol)
                .count(),
            changes.len()
        );

        // What happens afterwards is told again.
        ip("route add blackhole 10.65.42.0/26 proto 201");
        let blackhole = KernelEvent::Route(Route::blackhole(key("10.65.42.0/26"), OURS.protocol));
        event(&mut events, |event| *event == blackhole).await;
    });
}

#[test]
fn what_the_agent_itself_does_to_routes_is_not_told_and_what_others_do_to_them_is() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let mut events = netlink.events().unwrap();
        let ours = onlink("10.65.17.64/26", "172.30.0.12", a);
        let withdrawn = onlink("10.65.18.64/26", "172.30.0.12", a);
        let changes = [
            Change::ReplaceRoute(ours.clone()),
            Change::ReplaceRoute(withdrawn.clone()),
            Change::DeleteRoute(withdrawn),
            Change::SetLink { link: a, mtu: 1300 },
        ];
        for result in netlink.apply(&changes).await {
            result.unwrap();
        }
        ip("route del 10.65.17.64/26 proto 201");
        let mut told = Vec::new();
        event(&mut events, |event| {
            told.push(event.clone());
            matches!(event, KernelEvent::RouteGone(_))
        })
        .await;
        let of_routes: Vec<_> = told
            .iter()
            .filter(|event| !matches!(event, KernelEvent::Link(_)))
            .collect();
        assert_eq!(of_routes, [&KernelEvent::RouteGone(ours)]);
        assert!(
            told.iter()
                .any(|event| matches!(event, KernelEvent::Link(link) if link.mtu == 1300)),
            "of a link more may have changed than was asked for"
        );
    });
}

#[test]
fn a_change_that_was_applied_is_known_before_its_event() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let mut events = netlink.events().unwrap();
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let first = unicast("10.65.17.0/26", vec![hop("172.18.0.9", a)]);
        let changes = [
            Change::ReplaceRoute(first.clone()),
            Change::ReplaceRoute(Route {
                mtu: Some(1400),
                ..first.clone()
            }),
            Change::ReplaceRoute(unicast("10.65.18.0/26", vec![hop("172.18.0.9", a)])),
            Change::DeleteRoute(unicast("10.65.18.0/26", vec![hop("172.18.0.9", a)])),
            Change::SetLink { link: a, mtu: 1300 },
        ];
        for (change, result) in changes.iter().zip(netlink.apply(&changes).await) {
            result.unwrap();
            actual.applied(change);
        }
        assert_eq!(known(&actual), known(&Actual::new(netlink.dump().await.unwrap())));
        catch_up(&netlink, &mut actual, &mut events, 0).await;
        assert_eq!(known(&actual), known(&Actual::new(netlink.dump().await.unwrap())));
    });
}
