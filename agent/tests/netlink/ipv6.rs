//! IPv6: its routes as the kernel has them, its addresses, and the switch of forwarding.

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{Change, Desired, KernelEvent, NextHop, Route, RouteKey};
use culvert_agent::reconcile::{Actual, Observed, Removal, diff};

use crate::events::event;
use crate::netns::{OURS, hop, in_namespace, ip, link, of_ours, unicast};

const FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// A veth pair, up, with `2001:db8::11/64` on the end `u0`.
fn underlay() {
    ip("link add name u0 type veth peer name u1");
    ip("link set u0 up");
    ip("link set u1 up");
    ip("addr add 2001:db8::11/64 dev u0 nodad");
}

fn route(prefix: &str, next_hops: Vec<NextHop>) -> Route {
    let mut route = unicast(prefix, next_hops);
    route.key = RouteKey::main(route.key.prefix);
    route
}

fn onlink(gateway: &str, link: u32) -> NextHop {
    NextHop {
        onlink: true,
        ..hop(gateway, link)
    }
}

/// One route of each shape that the agent makes.
fn shapes(link: u32) -> Vec<Route> {
    let source = Some("2001:db8::11".parse().unwrap());
    let block = |block: &str, next_hops| Route {
        source,
        ..route(block, next_hops)
    };
    vec![
        block("fd00:65::40/122", vec![onlink("2001:db8::12", link)]),
        // A node that no address of the link covers, and one behind a router.
        block("fd00:65::80/122", vec![onlink("2001:db8:1::12", link)]),
        block("fd00:65::c0/122", vec![onlink("fe80::1", link)]),
        block("fd00:65::5/128", vec![onlink("2001:db8::12", link)]),
        Route {
            mtu: Some(1400),
            ..block("fd00:65::100/122", vec![onlink("2001:db8::12", link)])
        },
        block(
            "fd00:65::140/122",
            vec![onlink("2001:db8::12", link), onlink("2001:db8::13", link)],
        ),
        Route::blackhole(RouteKey::main("fd00:65::/122".parse().unwrap()), OURS.protocol),
    ]
}

fn desired(routes: &[Route]) -> Desired {
    Desired {
        routes: routes.iter().map(|route| (route.key, route.clone())).collect(),
        ..Desired::default()
    }
}

async fn bring_about(netlink: &Netlink, wanted: &Desired) -> Vec<Change> {
    let before = Actual::new(netlink.dump().await.unwrap());
    let changes = diff(wanted, &before, &OURS, Removal::Now);
    for (change, result) in changes.iter().zip(netlink.apply(&changes).await) {
        assert!(result.is_ok(), "{change:?}: {result:?}");
    }
    changes
}

#[test]
fn ipv6_routes_are_reported_as_they_were_asked_for_and_replaced_and_removed() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let wanted = desired(&shapes(a));
        assert_eq!(bring_about(&netlink, &wanted).await.len(), wanted.routes.len());
        assert_eq!(bring_about(&netlink, &wanted).await, []);
        let shown = ip("-6 route show fd00:65::40/122");
        for word in [
            "via 2001:db8::12",
            "dev u0",
            "src 2001:db8::11",
            "onlink",
            "proto 201",
        ] {
            assert!(shown.contains(word), "{shown:?} does not say {word:?}");
        }
        assert!(ip("-6 route show fd00:65::/122").starts_with("blackhole "));

        // Each takes the place of one of another shape: a blackhole of a way, a way of a blackhole, two ways of one.
        let turned: Vec<Route> = wanted
            .routes
            .values()
            .rev()
            .zip(wanted.routes.keys())
            .map(|(route, key)| Route {
                key: *key,
                ..route.clone()
            })
            .collect();
        let turned = desired(&turned);
        bring_about(&netlink, &turned).await;
        assert_eq!(bring_about(&netlink, &turned).await, []);

        bring_about(&netlink, &Desired::default()).await;
        assert_eq!(of_ours(&netlink.dump().await.unwrap()), []);
    });
}

#[test]
fn what_is_done_to_ipv6_by_hand_is_seen_and_repaired() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let wanted = desired(&shapes(a));
        let changes = bring_about(&netlink, &wanted).await;
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        for change in &changes {
            let Change::ReplaceRoute(route) = change else {
                unreachable!("{change:?}")
            };
            ip(&format!("-6 route del {} proto 201", route.key.prefix));
            let gone = event(&mut events, |event| matches!(event, KernelEvent::RouteGone(_))).await;
            assert_eq!(actual.observe(&gone), Observed::Changed, "{gone:?}");
            assert_eq!(
                diff(&wanted, &actual, &OURS, Removal::Now),
                std::slice::from_ref(change)
            );
            for result in netlink.apply(std::slice::from_ref(change)).await {
                result.unwrap();
            }
            actual.applied(change);
            // The kernel has it as we have it; what we write ourselves it does not tell us.
            let dumped = Actual::new(netlink.dump().await.unwrap());
            assert_eq!(diff(&wanted, &dumped, &OURS, Removal::Now), []);
        }
    });
}

#[test]
fn an_ipv6_address_that_goes_takes_the_source_off_routes_and_that_is_seen() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let wanted = desired(&shapes(a));
        bring_about(&netlink, &wanted).await;
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        ip("addr del 2001:db8::11/64 dev u0");
        let gone = event(&mut events, |event| matches!(event, KernelEvent::AddressGone(_))).await;
        assert_eq!(actual.observe(&gone), Observed::MustDump);
        ip("addr add 2001:db8::11/64 dev u0 nodad");
        assert_ne!(bring_about(&netlink, &wanted).await, []);
        assert_eq!(bring_about(&netlink, &wanted).await, []);
    });
}

#[test]
fn link_local_addresses_and_the_routes_of_every_link_are_not_kept() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let snapshot = netlink.dump().await.unwrap();
        let shown = |nets: &mut dyn Iterator<Item = ipnet::IpNet>| -> Vec<String> {
            nets.filter(|net| net.addr().is_ipv6())
                .map(|net| net.to_string())
                .collect()
        };
        let addresses = shown(&mut snapshot.addresses.iter().map(|address| address.net));
        assert_eq!(addresses, ["::1/128", "2001:db8::11/64"]);
        let routes = shown(&mut snapshot.routes.iter().map(|route| route.key.prefix));
        assert_eq!(routes, ["2001:db8::/64"]);
    });
}

#[test]
fn forwarding_of_ipv6_is_switched_on_and_repaired() {
    in_namespace(async || {
        underlay();
        std::fs::write(FORWARDING, "0").unwrap();
        let netlink = Netlink::open().unwrap();
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        let wanted = Desired {
            forwarding_v6: true,
            ..Desired::default()
        };
        let changes = diff(&wanted, &actual, &OURS, Removal::Later);
        assert_eq!(changes, [Change::EnableForwardingV6]);
        for result in netlink.apply(&changes).await {
            result.unwrap();
        }
        assert_eq!(std::fs::read_to_string(FORWARDING).unwrap().trim(), "1");
        let is_switch = |event: &KernelEvent| matches!(event, KernelEvent::ForwardingV6(_));
        assert_eq!(
            actual.observe(&event(&mut events, is_switch).await),
            Observed::Changed
        );
        assert_eq!(diff(&wanted, &actual, &OURS, Removal::Later), []);
        std::fs::write(FORWARDING, "0").unwrap();
        let off = event(&mut events, is_switch).await;
        assert_eq!(off, KernelEvent::ForwardingV6(false));
        assert_eq!(actual.observe(&off), Observed::Changed);
        assert_eq!(diff(&wanted, &actual, &OURS, Removal::Later), changes);
        assert!(!netlink.dump().await.unwrap().forwarding_v6);
    });
}

#[test]
fn addresses_that_no_node_can_be_known_by_are_left_out_and_deprecated_ones_are_marked() {
    in_namespace(async || {
        underlay();
        let of_u0 = |key: &str, value: &str| {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/u0/{key}"), value).unwrap();
        };
        let netlink = Netlink::open().unwrap();
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        let of_address = |event: &KernelEvent| {
            matches!(event, KernelEvent::Address(_) | KernelEvent::AddressDeprecated(_))
        };
        // One whose preferred lifetime ends, and that is preferred again.
        for (lifetime, deprecated) in [("0", true), ("forever", false)] {
            ip(&format!(
                "addr change 2001:db8::11/64 dev u0 valid_lft forever preferred_lft {lifetime}"
            ));
            let told = event(&mut events, of_address).await;
            assert_eq!(
                matches!(told, KernelEvent::AddressDeprecated(_)),
                deprecated,
                "{told:?}"
            );
            assert_eq!(actual.observe(&told), Observed::Changed);
            assert_eq!(actual.deprecated().len(), usize::from(deprecated));
            let snapshot = netlink.dump().await.unwrap();
            assert_eq!(&snapshot.deprecated, actual.deprecated());
            assert_eq!(Actual::new(snapshot).links().count(), actual.links().count());
        }
        // One that may be another host's too, for as long as the kernel asks; and one that the kernel makes up and changes.
        of_u0("dad_transmits", "1000");
        ip("addr add 2001:db8:1::11/64 dev u0");
        of_u0("use_tempaddr", "2");
        ip("addr add 2001:db8:2::11/64 dev u0 nodad mngtmpaddr valid_lft 86400 preferred_lft 43200");
        assert!(ip("-6 addr show dev u0 temporary").contains("2001:db8:2:"));
        assert!(ip("-6 addr show dev u0 tentative").contains("2001:db8:1::11"));
        let snapshot = netlink.dump().await.unwrap();
        let nets = snapshot.addresses.iter().map(|address| address.net);
        let v6: Vec<String> = nets
            .filter(|net| net.addr().is_ipv6() && !net.addr().is_loopback())
            .map(|net| net.to_string())
            .collect();
        assert_eq!(v6, ["2001:db8:2::11/64", "2001:db8::11/64"]);
    });
}

/// Says to all on the link `from` that there is a router (RFC 4861 §4.2), for half an hour.
fn advertise_a_router(from: u32) {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use socket2::{Domain, Protocol, Socket, Type};

    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    // Type and code, a checksum that the kernel fills in, hop limit, flags, lifetime in seconds, and two times unsaid.
    let [high, low] = 1800_u16.to_be_bytes();
    let advertisement = [134, 0, 0, 0, 64, 0, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    let all = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, from);
    assert_eq!(
        socket.send_to(&advertisement, &all.into()).unwrap(),
        advertisement.len()
    );
}

#[test]
fn forwarding_of_ipv6_stays_off_where_the_host_would_lose_its_default_route_by_it() {
    in_namespace(async || {
        underlay();
        std::fs::write(FORWARDING, "0").unwrap();
        let accept = |value: &str| std::fs::write("/proc/sys/net/ipv6/conf/u0/accept_ra", value).unwrap();
        accept("1");
        ip("addr add fe80::1/64 dev u1 nodad");
        let netlink = Netlink::open().unwrap();
        let router = link(&netlink, "u1").await.index;
        let default = || ip("-6 route show default");
        for _ in 0..1000 {
            advertise_a_router(router);
            if default().contains("proto ra") {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(default().contains("proto ra"), "{}", default());

        let enable = async || {
            let results = netlink.apply(&[Change::EnableForwardingV6]).await;
            results.into_iter().next().unwrap()
        };
        let refused = enable().await.unwrap_err().to_string();
        for words in ["u0 has its IPv6 default route", "net.ipv6.conf.u0.accept_ra=2"] {
            assert!(refused.contains(words), "{refused}");
        }
        assert_eq!(std::fs::read_to_string(FORWARDING).unwrap().trim(), "0");
        assert!(default().contains("proto ra"));

        accept("2");
        enable().await.unwrap();
        assert_eq!(std::fs::read_to_string(FORWARDING).unwrap().trim(), "1");
        assert!(default().contains("proto ra"), "it is still there: {}", default());
    });
}
