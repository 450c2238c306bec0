//! Routes of a daemon that is being replaced: BIRD's number is 12, Calico's own 80.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{Desired, KernelEvent, Route, RouteKey};
use culvert_agent::reconcile::{Actual, Removal, diff};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use crate::netns::{OURS, hop, in_namespace, ip, key, link, of_ours, onlink, underlay, unicast};

/// All that happened until the mark, an address on `lo`.
async fn events_so_far(events: &mut Receiver<KernelEvent>) -> Vec<KernelEvent> {
    ip("addr add 127.1.0.1/32 dev lo");
    let mut all = Vec::new();
    loop {
        let event = timeout(Duration::from_secs(30), events.recv())
            .await
            .unwrap()
            .unwrap();
        if matches!(&event, KernelEvent::Address(address) if address.net.to_string() == "127.1.0.1/32") {
            return all;
        }
        all.push(event);
    }
}

fn foreign(routes: &str) -> BTreeSet<String> {
    let of_others = routes
        .lines()
        .filter(|line| !line.contains("proto 201") && !line.contains("proto kernel"));
    of_others.map(|line| line.trim().to_owned()).collect()
}

/// Makes routes of the two daemons, and gives what is wanted in their places.
fn occupied(u0: u32) -> Vec<Route> {
    let daemons = ["bird", "80"];
    let mut wanted: Vec<Route> = Vec::new();
    for n in 0..300 {
        let prefix = format!("10.65.{}.{}/26", n / 4, n % 4 * 64);
        let daemon = daemons[n % 2];
        match n % 5 {
            // Another next hop, the same one under another number, and one that is a blackhole from now on.
            0 | 1 => {
                ip(&format!(
                    "route add {prefix} via 172.18.0.8 dev u0 proto {daemon}"
                ));
                wanted.push(onlink(&prefix, "172.30.0.12", u0));
            }
            2 => {
                ip(&format!(
                    "route add {prefix} via 172.18.0.9 dev u0 proto {daemon}"
                ));
                wanted.push(unicast(&prefix, vec![hop("172.18.0.9", u0)]));
            }
            3 => {
                ip(&format!("route add blackhole {prefix} proto {daemon}"));
                wanted.push(Route::blackhole(key(&prefix), OURS.protocol));
            }
            _ => {
                ip(&format!(
                    "route add {prefix} via 172.18.0.8 dev u0 proto {daemon}"
                ));
                wanted.push(Route::blackhole(key(&prefix), OURS.protocol));
            }
        }
    }
    wanted
}

/// The keys of the routes that were replaced; no route may have come or gone.
fn only_replaced(seen: &[KernelEvent]) -> BTreeSet<RouteKey> {
    let replaced = seen.iter().filter_map(|event| match event {
        KernelEvent::RouteReplaced(route) => Some(route.key),
        KernelEvent::RouteGone(_) | KernelEvent::Route(_) | KernelEvent::Overrun => {
            panic!("not in place: {event:?}")
        }
        _ => None,
    });
    replaced.collect()
}

#[test]
fn routes_of_bird_and_calico_are_taken_over_without_being_absent_and_the_others_stay() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let u0 = link(&netlink, "u0").await.index;
        let wanted = occupied(u0);
        // On none of our keys: another prefix, a longer one inside, another metric, another table.
        ip("route add 10.66.0.0/26 via 172.18.0.8 dev u0 proto bird");
        ip("route add 10.65.0.9/32 via 172.18.0.8 dev u0 proto bird");
        ip("route add blackhole 10.67.0.0/26 proto 80");
        ip("route add 10.65.0.0/26 via 172.18.0.8 dev u0 proto bird metric 50");
        ip("route add 10.65.0.0/26 via 172.18.0.8 dev u0 proto bird table 90");
        let keys: BTreeSet<RouteKey> = wanted.iter().map(|route| route.key).collect();
        let desired = Desired {
            routes: wanted.iter().map(|route| (route.key, route.clone())).collect(),
            ..Desired::default()
        };

        let mut events = Netlink::open().unwrap().events().unwrap();
        let actual = Actual::new(netlink.dump().await.unwrap());
        let changes = diff(&desired, &actual, &OURS, Removal::Now);
        for result in netlink.apply(&changes).await {
            result.unwrap();
        }

        let seen = events_so_far(&mut events).await;
        assert_eq!(only_replaced(&seen), keys);
        let after = netlink.dump().await.unwrap();
        assert_eq!(
            of_ours(&after),
            desired.routes.values().cloned().collect::<Vec<_>>()
        );
        assert_eq!(diff(&desired, &Actual::new(after), &OURS, Removal::Now), []);
        assert_eq!(
            foreign(&ip("route show table main")),
            BTreeSet::from(
                [
                    "10.66.0.0/26 via 172.18.0.8 dev u0 proto bird",
                    "10.65.0.9 via 172.18.0.8 dev u0 proto bird",
                    "blackhole 10.67.0.0/26 proto 80",
                    "10.65.0.0/26 via 172.18.0.8 dev u0 proto bird metric 50",
                ]
                .map(str::to_owned)
            )
        );
        assert_eq!(
            ip("route show table 90").trim(),
            "10.65.0.0/26 via 172.18.0.8 dev u0 proto bird"
        );
    });
}

#[test]
fn a_route_given_back_to_bird_is_not_absent_either_and_is_not_ours_to_remove() {
    in_namespace(async || {
        underlay();
        let netlink = Netlink::open().unwrap();
        let u0 = link(&netlink, "u0").await.index;
        let ours = onlink("10.65.17.64/26", "172.30.0.12", u0);
        let desired = Desired {
            routes: [(ours.key, ours)].into(),
            ..Desired::default()
        };
        let nothing_known = Actual::new(netlink.dump().await.unwrap());
        for result in netlink
            .apply(&diff(&desired, &nothing_known, &OURS, Removal::Now))
            .await
        {
            result.unwrap();
        }
        let mut events = Netlink::open().unwrap().events().unwrap();
        let stale = Actual::new(netlink.dump().await.unwrap());
        ip("route replace 10.65.17.64/26 via 172.18.0.8 dev u0 proto bird");

        // Removed by one that has not heard of it: the kernel finds none of that protocol.
        let deletions = diff(&Desired::default(), &stale, &OURS, Removal::Now);
        assert_eq!(deletions.len(), 1);
        for result in netlink.apply(&deletions).await {
            result.unwrap();
        }
        let seen = events_so_far(&mut events).await;
        let gone = |event: &KernelEvent| matches!(event, KernelEvent::RouteGone(_));
        assert!(!seen.iter().any(gone), "{seen:?}");
        assert_eq!(
            ip("route show 10.65.17.64/26").trim(),
            "10.65.17.64/26 via 172.18.0.8 dev u0 proto bird"
        );
    });
}
