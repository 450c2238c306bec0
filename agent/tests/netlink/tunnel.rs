use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{Change, Desired, KernelEvent, Route, Tunnel};
use culvert_agent::reconcile::{Actual, Observed, Removal, diff, taken_over_from};
use tokio::time::timeout;

use crate::netns::{OURS, in_namespace, ip, key, of_ours, onlink, skipped, underlay};

/// Creates `tunl0`; None, and said so, if the kernel has no ipip.
async fn tunnel(netlink: &Netlink) -> Option<()> {
    let create = Change::CreateTunnel { name: "tunl0".into() };
    match netlink.apply(&[create]).await.remove(0) {
        Ok(()) => Some(()),
        Err(why) if why.errno() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {
            skipped(&why.to_string());
            None
        }
        Err(why) => panic!("{why}"),
    }
}

fn wanted(address: [u8; 4], index: Option<u32>) -> Desired {
    let tunnel = Tunnel {
        name: "tunl0".into(),
        mtu: 1480,
        address: Some(Ipv4Addr::from(address)),
        path_mtu_discovery: None,
    };
    let mut routes = vec![Route::blackhole(key("10.65.42.0/26"), OURS.protocol)];
    if let Some(index) = index {
        routes.push(onlink("10.65.17.64/26", "172.18.0.12", index));
        routes.push(onlink("10.65.18.64/26", "192.168.7.13", index));
    }
    Desired {
        routes: routes.into_iter().map(|route| (route.key, route)).collect(),
        tunnel: Some(tunnel),
        forwarding: true,
        ..Desired::default()
    }
}

/// Dumps, takes the difference and applies it, until there is none: the number of rounds that changed something.
async fn converge(netlink: &Netlink, address: [u8; 4]) -> usize {
    for round in 0..4 {
        let actual = Actual::new(netlink.dump().await.unwrap());
        let desired = wanted(address, actual.link_named("tunl0").map(|link| link.index));
        let changes = diff(&desired, &actual, &OURS, Removal::Now);
        if changes.is_empty() {
            return round;
        }
        for (change, result) in changes.iter().zip(netlink.apply(&changes).await) {
            result.unwrap_or_else(|why| panic!("{change:?}: {why}"));
        }
    }
    panic!("four rounds, and there is still a difference");
}

#[test]
fn a_kernel_without_ipip_is_told_in_words() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let create = Change::CreateTunnel { name: "tunl0".into() };
        match netlink.apply(&[create]).await.remove(0) {
            Ok(()) => skipped("this kernel has ipip"),
            Err(why) => {
                let words = why.to_string();
                assert!(
                    words.contains("tunl0") && words.contains("modprobe ipip"),
                    "{words}"
                );
            }
        }
    });
}

#[test]
fn the_tunnel_comes_up_with_its_address_and_its_routes() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        // Again: it is there.
        tunnel(&netlink).await.unwrap();
        assert_eq!(converge(&netlink, [10, 65, 42, 0]).await, 1);
        let shown = ip("-o addr show tunl0");
        assert!(shown.contains("inet 10.65.42.0/32"), "{shown}");
        let shown = ip("-o link show tunl0");
        assert!(shown.contains("mtu 1480") && shown.contains("UP"), "{shown}");
        let routes = ip("route show");
        for line in [
            "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 201 onlink",
            "10.65.18.64/26 via 192.168.7.13 dev tunl0 proto 201 onlink",
            "blackhole 10.65.42.0/26 proto 201",
        ] {
            assert!(
                routes.lines().any(|shown| shown.trim() == line),
                "{line} is not in\n{routes}"
            );
        }
    });
}

#[test]
fn the_tunnel_has_one_address_and_changing_it_keeps_the_routes() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        converge(&netlink, [10, 65, 42, 0]).await;
        ip("addr add 10.99.0.1/24 dev tunl0");
        let before = of_ours(&netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        assert_eq!(converge(&netlink, [10, 65, 43, 7]).await, 1);
        let shown = ip("-o -4 addr show tunl0");
        assert_eq!(
            (shown.lines().count(), shown.contains("inet 10.65.43.7/32")),
            (1, true),
            "{shown}"
        );
        assert_eq!(of_ours(&netlink.dump().await.unwrap()), before);
        ip("link set lo mtu 60000");
        loop {
            match timeout(Duration::from_secs(30), events.recv())
                .await
                .unwrap()
                .unwrap()
            {
                KernelEvent::RouteGone(route) => assert_ne!(route.protocol, OURS.protocol),
                KernelEvent::Link(link) if link.name == "lo" => break,
                _ => {}
            }
        }
    });
}

#[test]
fn a_tunnel_set_down_by_hand_is_repaired() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        converge(&netlink, [10, 65, 42, 0]).await;
        let whole = of_ours(&netlink.dump().await.unwrap());
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        ip("link set tunl0 down");
        loop {
            let event = timeout(Duration::from_secs(30), events.recv())
                .await
                .unwrap()
                .unwrap();
            if actual.observe(&event) == Observed::MustDump {
                break;
            }
        }
        assert_ne!(
            of_ours(&netlink.dump().await.unwrap()),
            whole,
            "the kernel removes the routes of a link that is down"
        );
        assert_eq!(converge(&netlink, [10, 65, 42, 0]).await, 1);
        assert_eq!(of_ours(&netlink.dump().await.unwrap()), whole);
    });
}

#[test]
fn a_strict_reverse_path_filter_is_loosened_on_the_tunnel_alone() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        let filter = |of: &str| format!("/proc/sys/net/ipv4/conf/{of}/rp_filter");
        let value = |of: &str| fs::read_to_string(filter(of)).unwrap().trim().to_owned();
        let write = |of: &str, value: &str| fs::write(filter(of), value).unwrap();
        write("u0", "1");
        // The greater of the two counts.
        for (all, own, expected) in [
            ("0", "1", "2"),
            ("1", "0", "2"),
            ("1", "1", "2"),
            ("0", "0", "0"),
            ("2", "1", "1"),
        ] {
            write("all", all);
            write("tunl0", own);
            converge(&netlink, [10, 65, 42, 0]).await;
            assert_eq!([value("all"), value("tunl0"), value("u0")], [all, expected, "1"]);
        }

        // By hand, behind our back.
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();
        write("all", "1");
        let event = timeout(Duration::from_secs(30), events.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(event, KernelEvent::ReversePathFilter(None));
        assert_eq!(actual.observe(&event), Observed::MustDump);
    });
}

#[test]
fn a_wrong_next_hop_put_in_by_hand_and_a_route_of_bird_are_put_right() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        converge(&netlink, [10, 65, 42, 0]).await;
        let whole = of_ours(&netlink.dump().await.unwrap());
        ip("route replace 10.65.17.64/26 via 10.65.17.65 dev tunl0 onlink");
        ip("route replace 10.65.18.64/26 via 192.168.7.13 dev tunl0 onlink proto bird");
        let actual = Actual::new(netlink.dump().await.unwrap());
        let desired = wanted([10, 65, 42, 0], actual.link_named("tunl0").map(|link| link.index));
        let changes = diff(&desired, &actual, &OURS, Removal::Now);
        let former: Vec<_> = changes
            .iter()
            .map(|change| taken_over_from(change, &actual, &OURS))
            .collect();
        assert_eq!(former, [Some(3), Some(12)]);
        assert_eq!(converge(&netlink, [10, 65, 42, 0]).await, 1);
        assert_eq!(of_ours(&netlink.dump().await.unwrap()), whole);
    });
}

#[test]
fn a_device_of_the_tunnels_name_and_another_kind_is_left_alone() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        ip("link add name tunl7 type bridge");
        let error = netlink
            .apply(&[Change::CreateTunnel { name: "tunl7".into() }])
            .await
            .remove(0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("tunl7") && error.contains("bridge"), "{error}");
        let error = netlink
            .apply(&[Change::CreateTunnel { name: "tunl8".into() }])
            .await
            .remove(0)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tunl8") && error.contains("another ipip device"),
            "{error}"
        );
    });
}

#[test]
fn path_mtu_discovery_is_written_read_back_and_told() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        if tunnel(&netlink).await.is_none() {
            return;
        }
        ip("link set tunl0 up");
        let mut events = netlink.events().unwrap();
        for on in [true, false, true] {
            let snapshot = netlink.dump().await.unwrap();
            let link = snapshot.links.iter().find(|link| link.name == "tunl0").unwrap();
            assert_eq!(link.path_mtu_discovery, Some(!on));
            let set = |name: &str| Change::SetPathMtuDiscovery {
                link: link.index,
                name: name.into(),
                on,
            };
            netlink.apply(&[set("tunl0")]).await.remove(0).unwrap();
            let shown = ip("-details link show tunl0");
            let word = if on { " pmtudisc " } else { " nopmtudisc " };
            assert!(shown.contains(word), "{shown}");
            let told = async {
                while let Some(event) = events.recv().await {
                    if matches!(event, KernelEvent::Link(told) if told.path_mtu_discovery == Some(on)) {
                        return;
                    }
                }
            };
            timeout(Duration::from_secs(20), told).await.unwrap();
            let refused = netlink
                .apply(&[set("lo")])
                .await
                .remove(0)
                .unwrap_err()
                .to_string();
            assert!(refused.starts_with("change the tunnel lo to "), "{refused}");
        }
    });
}
