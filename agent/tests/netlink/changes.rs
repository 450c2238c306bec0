use std::collections::BTreeMap;
use std::fs;

use culvert_agent::dataplane::{Dataplane, DataplaneError, Namespace, Netlink};
use culvert_agent::fib::{Address, Change, Desired, NextHop, Route, RouteKey, Snapshot};
use culvert_agent::reconcile::{Actual, Removal, diff, taken_over_from};
use nix::sched::{CloneFlags, unshare};

use crate::netns::{OURS, hop, in_namespace, ip, key, link, of_ours, onlink, underlay, unicast};

async fn apply(netlink: &Netlink, changes: &[Change]) {
    for (change, result) in changes.iter().zip(netlink.apply(changes).await) {
        assert!(result.is_ok(), "{change:?}: {result:?}");
    }
}

fn desired(routes: &[Route]) -> Desired {
    Desired {
        routes: routes.iter().map(|route| (route.key, route.clone())).collect(),
        ..Desired::default()
    }
}

/// One route of each shape that the agent makes, and some that it might.
fn shapes(link: u32) -> Vec<Route> {
    let private = RouteKey {
        table: 886,
        metric: 512,
        ..key("10.65.20.0/26")
    };
    vec![
        onlink("10.65.17.64/26", "172.30.0.12", link),
        unicast("10.65.18.0/26", vec![hop("172.18.0.12", link)]),
        unicast(
            "10.65.19.1/32",
            vec![NextHop {
                gateway: None,
                ..hop("172.18.0.12", link)
            }],
        ),
        // Weights, one of them onlink, and not in the order in which they sort.
        unicast(
            "10.65.21.0/26",
            vec![
                NextHop {
                    weight: 256,
                    ..hop("172.18.0.14", link)
                },
                NextHop {
                    weight: 3,
                    onlink: true,
                    ..hop("172.30.0.13", link)
                },
            ],
        ),
        Route {
            key: private,
            source: Some("172.18.0.1".parse().unwrap()),
            ..unicast("10.65.20.0/26", vec![hop("172.18.0.12", link)])
        },
        Route {
            mtu: Some(1380),
            ..unicast("0.0.0.0/0", vec![hop("172.18.0.12", link)])
        },
        Route::blackhole(key("10.65.42.0/26"), OURS.protocol),
        // What the kernel does not keep: a next hop of a blackhole, the weight of a lone next hop, a doubled route.
        Route {
            next_hops: vec![hop("172.18.0.12", 0)],
            ..Route::blackhole(key("10.65.43.0/26"), OURS.protocol)
        },
        unicast(
            "10.65.44.0/26",
            vec![NextHop {
                weight: 7,
                ..hop("172.18.0.12", link)
            }],
        ),
    ]
}

#[test]
fn every_shape_of_route_is_reported_as_it_was_asked_for() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let wanted = desired(&shapes(link(&netlink, "u0").await.index));

        let before = netlink.dump().await.unwrap();
        let changes = diff(&wanted, &Actual::new(before), &OURS, Removal::Now);
        assert_eq!(changes.len(), wanted.routes.len());
        apply(&netlink, &changes).await;

        let after = netlink.dump().await.unwrap();
        assert_eq!(
            diff(&wanted, &Actual::new(after.clone()), &OURS, Removal::Now),
            []
        );
        let reported = of_ours(&after)
            .into_iter()
            .map(|route| route.as_reported())
            .collect::<Vec<_>>();
        let mut asked: Vec<_> = wanted.routes.values().map(Route::as_reported).collect();
        asked.sort();
        assert_eq!(reported, asked);
    });
}

#[test]
fn a_route_is_printed_as_ip_route_prints_it() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let changes: Vec<_> = shapes(a).into_iter().map(Change::ReplaceRoute).collect();
        apply(&netlink, &changes).await;
        ip("route add unreachable 10.66.0.0/16 proto static metric 9");
        ip("route add 10.67.0.0/16 via inet6 fe80::1 dev u0 proto bird");

        let snapshot = netlink.dump().await.unwrap();
        let names: BTreeMap<u32, String> = snapshot
            .links
            .iter()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        let mut ours: Vec<String> = snapshot
            .routes
            .iter()
            .filter(|route| route.key.prefix.addr().is_ipv4())
            .map(|route| route.with_names(|link| names.get(&link).cloned()).to_string())
            .collect();
        let mut theirs: Vec<String> = ip("-4 -oneline route show table all")
            .lines()
            .map(|line| {
                line.replace('\\', " ")
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .filter(|line| !line.contains("table local"))
            .collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
    });
}

#[test]
fn a_route_of_another_protocol_is_taken_over_in_place_and_said_to_be() {
    in_namespace(async || {
        underlay();
        ip("route add 10.65.17.64/26 via 172.18.0.9 dev u0 proto bird");
        let netlink = Netlink::open().unwrap();
        let wanted = desired(&[onlink(
            "10.65.17.64/26",
            "172.30.0.12",
            link(&netlink, "u0").await.index,
        )]);
        let actual = Actual::new(netlink.dump().await.unwrap());
        let changes = diff(&wanted, &actual, &OURS, Removal::Now);
        assert_eq!(
            changes
                .iter()
                .map(|change| taken_over_from(change, &actual, &OURS))
                .collect::<Vec<_>>(),
            [Some(12)]
        );
        apply(&netlink, &changes).await;
        assert_eq!(
            ip("route show 10.65.17.64/26").trim(),
            "10.65.17.64/26 via 172.30.0.12 dev u0 proto 201 onlink"
        );
    });
}

#[test]
fn a_deletion_does_not_touch_the_route_of_another_protocol() {
    in_namespace(async || {
        underlay();
        ip("route add 10.65.17.64/26 via 172.18.0.9 dev u0 proto static");
        ip("route add blackhole 10.65.18.0/26 proto 201");
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let ours = Change::DeleteRoute(onlink("10.65.17.64/26", "172.18.0.9", a));
        // Ours, but not of the kind that was to go.
        let other_kind = Change::DeleteRoute(onlink("10.65.18.0/26", "172.18.0.9", a));
        let never_there = Change::DeleteRoute(onlink("10.65.19.0/26", "172.18.0.9", a));
        apply(&netlink, &[ours, other_kind, never_there]).await;
        let routes = ip("route show");
        assert!(
            routes.contains("10.65.17.64/26 via 172.18.0.9 dev u0 proto static"),
            "{routes}"
        );
        assert!(routes.contains("blackhole 10.65.18.0/26 proto 201"), "{routes}");

        let anybody = Route {
            protocol: 0,
            ..onlink("10.65.17.64/26", "172.18.0.9", a)
        };
        let refused = netlink.apply(&[Change::DeleteRoute(anybody)]).await;
        assert!(
            matches!(refused.as_slice(), [Err(DataplaneError::Kernel { .. })]),
            "{refused:?}"
        );
        assert_eq!(ip("route show"), routes);
    });
}

#[test]
fn a_route_that_another_of_its_key_shadows_is_brought_to_the_front() {
    in_namespace(async || {
        underlay();
        ip("route add 10.65.17.64/26 via 172.18.0.12 dev u0 proto 201");
        ip("route prepend 10.65.17.64/26 via 172.18.0.9 dev u0 proto static");
        let netlink = Netlink::open().unwrap();
        let wanted = desired(&[unicast(
            "10.65.17.64/26",
            vec![hop("172.18.0.12", link(&netlink, "u0").await.index)],
        )]);
        let changes = diff(
            &wanted,
            &Actual::new(netlink.dump().await.unwrap()),
            &OURS,
            Removal::Now,
        );
        apply(&netlink, &changes).await;
        assert_eq!(
            ip("route show 10.65.17.64/26").trim(),
            "10.65.17.64/26 via 172.18.0.12 dev u0 proto 201"
        );
        let second = diff(
            &wanted,
            &Actual::new(netlink.dump().await.unwrap()),
            &OURS,
            Removal::Now,
        );
        assert_eq!(second, []);
    });
}

#[test]
fn each_error_of_a_batch_belongs_to_its_route_and_says_which() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let mut wrong = Vec::new();
        let changes: Vec<Change> = (0..700u32)
            .map(|n| {
                let prefix = format!("10.{}.{}.0/26", 64 + n / 256, n % 256);
                wrong.push(n % 7 == 3 || n == 650);
                Change::ReplaceRoute(match n {
                    // Cannot be encoded, so that it never gets to the kernel.
                    650 => unicast(
                        &prefix,
                        vec![
                            NextHop {
                                weight: 300,
                                ..hop("172.18.0.9", a)
                            },
                            hop("172.18.0.8", a),
                        ],
                    ),
                    n if n % 7 == 3 => unicast(&prefix, vec![hop("172.30.0.12", a)]),
                    _ => onlink(&prefix, "172.30.0.12", a),
                })
            })
            .collect();
        let results = netlink.apply(&changes).await;
        assert_eq!(results.iter().map(Result::is_err).collect::<Vec<_>>(), wrong);
        let error = results[3].as_ref().unwrap_err();
        assert_eq!(
            error.to_string(),
            "install the route 10.64.3.0/26 via 172.30.0.12 dev u0 proto 201: \
             Nexthop has invalid gateway: Network is unreachable (os error 101)"
        );
        assert_eq!(error.errno(), Some(101));
        let error = results[650].as_ref().unwrap_err().to_string();
        assert!(
            error.contains("10.66.138.0/26") && error.contains("300") && error.contains("256"),
            "{error}"
        );
        let installed = of_ours(&netlink.dump().await.unwrap()).len();
        assert_eq!(installed, wrong.iter().filter(|wrong| !**wrong).count());
    });
}

#[test]
fn five_thousand_routes_are_written_and_deleted_and_the_rest_stays() {
    in_namespace(async || {
        underlay();
        ip("route add 10.200.0.0/16 via 172.18.0.9 dev u0 proto static");
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let before = netlink.dump().await.unwrap();
        let routes: Vec<Route> = (0..5000u32)
            .map(|n| {
                onlink(
                    &format!("10.{}.{}.{}/26", n / 1024, n / 4 % 256, n % 4 * 64),
                    "172.30.0.12",
                    a,
                )
            })
            .collect();
        let wanted = desired(&routes);
        apply(
            &netlink,
            &diff(&wanted, &Actual::new(before.clone()), &OURS, Removal::Now),
        )
        .await;
        let full = netlink.dump().await.unwrap();
        assert_eq!(
            of_ours(&full),
            wanted.routes.values().cloned().collect::<Vec<_>>()
        );
        assert_eq!(diff(&wanted, &Actual::new(full.clone()), &OURS, Removal::Now), []);

        let nothing = Desired::default();
        assert_eq!(
            diff(&nothing, &Actual::new(full.clone()), &OURS, Removal::Later),
            []
        );
        apply(&netlink, &diff(&nothing, &Actual::new(full), &OURS, Removal::Now)).await;
        assert_eq!(sorted(netlink.dump().await.unwrap()), sorted(before));
    });
}

fn sorted(mut snapshot: Snapshot) -> Vec<Route> {
    snapshot.routes.sort();
    snapshot.routes
}

#[test]
fn changes_between_routes_are_made_in_their_place() {
    in_namespace(async || {
        underlay();
        ip("link set u0 down");
        let netlink = Netlink::open().unwrap();
        let a = link(&netlink, "u0").await.index;
        let extra = Address {
            link: a,
            net: "172.19.0.1/24".parse().unwrap(),
        };
        let early = Change::ReplaceRoute(unicast("10.65.17.0/26", vec![hop("172.18.0.9", a)]));
        let late = Change::ReplaceRoute(unicast("10.65.18.0/26", vec![hop("172.19.0.9", a)]));
        let changes = [
            early.clone(),
            Change::SetLink { link: a, mtu: 1400 },
            Change::AddAddress(extra),
            late,
            early,
        ];
        let results = netlink.apply(&changes).await;
        let ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(ok, [false, true, true, true, true], "{results:?}");
        assert_eq!(link(&netlink, "u0").await.mtu, 1400);

        // Repeated, and undone twice: what is so already is no error.
        let changes = [
            Change::AddAddress(extra),
            Change::DeleteAddress(extra),
            Change::DeleteAddress(extra),
        ];
        apply(&netlink, &changes).await;
        assert!(!netlink.dump().await.unwrap().addresses.contains(&extra));
        apply(&netlink, &[Change::SetLinkDown { link: a }]).await;
        assert!(!link(&netlink, "u0").await.up);
        let error = netlink
            .apply(&[Change::SetLink {
                link: 4711,
                mtu: 1400,
            }])
            .await
            .remove(0)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "set if4711 up with mtu 1400: No such device (os error 19)"
        );
    });
}

#[test]
fn forwarding_is_switched_on_in_this_namespace_alone() {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let outside = fs::read_to_string(path).unwrap();
    in_namespace(async move || {
        fs::write(path, "0").unwrap();
        let netlink = Netlink::open().unwrap();
        let before = netlink.dump().await.unwrap();
        assert!(!before.forwarding);
        let wanted = Desired {
            forwarding: true,
            ..Desired::default()
        };
        apply(
            &netlink,
            &diff(&wanted, &Actual::new(before), &OURS, Removal::Now),
        )
        .await;
        let after = netlink.dump().await.unwrap();
        assert!(after.forwarding);
        assert_eq!(diff(&wanted, &Actual::new(after), &OURS, Removal::Now), []);

        // A thread of another namespace still gets to this one.
        let here = Namespace::current().unwrap();
        let elsewhere = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            fs::write(path, "0").unwrap();
            assert!(!here.is_current());
            (
                here.run(|| fs::read_to_string(path)).unwrap(),
                fs::read_to_string(path).unwrap(),
            )
        });
        assert_eq!(elsewhere.join().unwrap(), ("1\n".into(), "0\n".into()));
    });
    assert_eq!(fs::read_to_string(path).unwrap(), outside);
}
