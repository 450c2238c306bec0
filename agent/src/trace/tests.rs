//! What was seen, and the sentence that follows from it.

use super::*;
use crate::doctor::Check;

const SMALL: u16 = 64;
const LARGE: u16 = 1480;
const NODES: [&str; 2] = ["172.18.0.11", "172.18.0.12"];

fn end(number: usize) -> End {
    End {
        address: Ipv4Addr::new(10, 65, u8::try_from(number).unwrap(), 2),
        node: format!("node{}", number + 1),
        node_address: NODES[number].parse().unwrap(),
        link: (number == 0).then(|| "cali1".to_owned()),
        is_node: false,
    }
}

fn way() -> Way {
    Way {
        from: end(0),
        to: end(1),
        tunnelled: true,
        mtu: 1480,
        route: Some("10.65.1.0/26 via 172.18.0.12 dev tunl0 proto culvert onlink".to_owned()),
    }
}

fn sent() -> Sent {
    Sent {
        count: 3,
        small: SMALL,
        large: LARGE,
        refused: None,
        largest: None,
        own: None,
    }
}

/// All that is seen where all is well: by the sender's node, and by the other.
struct World {
    way: Way,
    sent: Sent,
    near: Seen,
    far: Seen,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            way: way(),
            sent: sent(),
            near: Seen {
                route: way().route,
                ..Seen::default()
            },
            far: Seen::default(),
        };
        for (link, outgoing, kind) in [
            ("tunl0", true, Kind::Request),
            ("eth0", true, Kind::Request),
            ("eth0", false, Kind::Answer),
            ("tunl0", false, Kind::Answer),
            ("cali1", true, Kind::Answer),
        ] {
            world.near.sightings.extend(sightings(link, outgoing, kind));
        }
        for (link, outgoing, kind) in [
            ("br0", false, Kind::Request),
            ("eth0", false, Kind::Request),
            ("tunl0", false, Kind::Request),
            ("cali2", true, Kind::Request),
            ("cali2", false, Kind::Answer),
            ("tunl0", true, Kind::Answer),
            ("eth0", true, Kind::Answer),
        ] {
            world.far.sightings.extend(sightings(link, outgoing, kind));
        }
        world
    }

    /// Nothing is seen from here on.
    fn lost(mut self, near: usize, far: usize) -> Self {
        self.near.sightings.truncate(near * 2);
        self.far.sightings.truncate(far * 2);
        self
    }

    fn trace(&self) -> Trace {
        Trace::new(&self.way, self.sent.clone(), &self.near, Ok(&self.far))
    }

    /// Place and cause of the loss.
    fn loss(&self) -> (String, String) {
        let loss = self.trace().loss.unwrap_or_else(|| panic!("{:#?}", self.trace()));
        (loss.place, loss.cause)
    }
}

fn sightings(link: &str, outgoing: bool, kind: Kind) -> [(Sighting, u32); 2] {
    let [first, second] = NODES.map(|node| node.parse().unwrap());
    let there = (kind == Kind::Request, first, second);
    let outer = match there {
        (true, near, far) => (near, far),
        (false, near, far) => (far, near),
    };
    [SMALL, LARGE].map(|size| {
        let sighting = Sighting {
            link: link.to_owned(),
            outgoing,
            outer: (!link.starts_with("cali") && link != "tunl0").then_some(outer),
            kind,
            size,
        };
        (sighting, 3)
    })
}

fn finding(check: Check, words: &str) -> Finding {
    Finding {
        check,
        finding: words.to_owned(),
        evidence: "as it is".to_owned(),
        consequence: String::new(),
        cure: "mend it".to_owned(),
        fix: None,
    }
}

#[test]
fn where_all_is_seen_nothing_is_lost_and_each_place_is_told_once() {
    let trace = World::new().trace();
    assert_eq!(trace.loss, None);
    let places: Vec<(&str, &str, Place)> = trace
        .hops
        .iter()
        .map(|hop| (hop.node.as_str(), hop.link.as_str(), hop.place))
        .collect();
    assert_eq!(
        places,
        [
            ("node1", "tunl0", Place::IntoTunnel),
            ("node1", "eth0", Place::OutOfNic),
            ("node2", "eth0", Place::IntoNic),
            ("node2", "tunl0", Place::OutOfTunnel),
            ("node2", "cali2", Place::ToPod),
            ("node2", "cali2", Place::FromPod),
            ("node2", "tunl0", Place::IntoTunnel),
            ("node2", "eth0", Place::OutOfNic),
            ("node1", "eth0", Place::IntoNic),
            ("node1", "tunl0", Place::OutOfTunnel),
            ("node1", "cali1", Place::ToPod),
        ]
    );
    assert!(
        trace.hops.iter().all(|hop| (hop.small, hop.large) == (3, 3)),
        "{trace:#?}"
    );
    let text = trace.render();
    assert!(
        text.ends_with("All packets arrived, and all answers came back.\n"),
        "{text}"
    );
    assert!(text.contains("172.18.0.12 > 172.18.0.11"), "{text}");
}

/// How many places of the near node and of the far one have seen packets; where that is, and a part of the cause.
const LOSSES: &[(usize, usize, &str, &str)] = &[
    (
        0,
        0,
        "before tunl0 of node1",
        "does not send packets for 10.65.1.2 into tunl0, but by `10.65.1.0/26 via",
    ),
    (
        1,
        0,
        "between tunl0 of node1 and NIC of node1",
        "cannot send them to 172.18.0.12: no way there",
    ),
    (
        2,
        0,
        "between eth0 of node1 and NIC of node2",
        "something between node1 and node2 drops IP protocol 4",
    ),
    (
        2,
        2,
        "between eth0 of node2 and tunl0 of node2",
        "node2 takes the tunnelled packets in and drops them",
    ),
    (
        2,
        3,
        "between tunl0 of node2 and cali… of node2",
        "node2 does not hand packets to 10.65.1.2",
    ),
    (
        2,
        5,
        "between cali2 of node2 and tunl0 of node2",
        "node2 has no route to 10.65.0.2",
    ),
    (
        2,
        6,
        "between tunl0 of node2 and NIC of node2",
        "cannot send them to 172.18.0.11: no way there",
    ),
    (
        2,
        7,
        "between eth0 of node2 and NIC of node1",
        "something between node2 and node1 drops IP protocol 4",
    ),
    (
        3,
        7,
        "between eth0 of node1 and tunl0 of node1",
        "node1 takes the tunnelled packets in and drops them",
    ),
    (
        4,
        7,
        "between tunl0 of node1 and cali1 of node1",
        "node1 does not hand packets to 10.65.0.2",
    ),
];

#[test]
fn the_place_where_packets_vanish_is_told_with_what_is_likely() {
    for (near, far, place, cause) in LOSSES {
        let (found, why) = World::new().lost(*near, *far).loss();
        assert_eq!(found, *place);
        assert!(why.contains(cause), "{near} {far}: {why}");
    }
}

#[test]
fn what_did_not_come_to_one_place_is_not_missed_at_the_next() {
    let text = World::new().lost(2, 7).trace().render();
    let row = |way: &str, node: &str, place: &str| {
        let mut rows = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let begin = format!("{way} {node} ");
        let row = rows.find(|row| row.starts_with(&begin) && row.contains(place));
        row.unwrap_or_else(|| panic!("no {way} {node} {place} in {text}"))
    };
    for (way, node, place, end) in [
        ("there", "node1", "into the tunnel", "3 + 3 3 + 3 - ok"),
        ("there", "node2", "to the pod", "3 + 3 3 + 3 - ok"),
        ("back", "node2", "from the pod", "3 + 3 3 + 3 - ok"),
        (
            "back",
            "node2",
            "out of the NIC",
            "3 + 3 3 + 3 172.18.0.12 > 172.18.0.11 ok",
        ),
        ("back", "node1", "into the NIC", "3 + 3 0 + 0 - MISSING"),
        ("back", "node1", "out of the tunnel", "0 + 0 0 + 0 - -"),
        ("back", "node1", "to the pod", "0 + 0 0 + 0 - -"),
    ] {
        let row = row(way, node, place);
        assert!(row.ends_with(&format!("{place} {end}")), "{row} in {text}");
    }
}

#[test]
fn what_the_first_pod_sends_itself_is_told_and_its_silence_is_no_loss() {
    const OWN: (u16, u16) = (SMALL + 1, LARGE - 1);
    let mut world = World::new();
    world.sent.own = Some(OWN);
    let silent = world.trace();
    assert_eq!((&silent.loss, &silent.silence), (&None, &None));
    let own = silent.own.as_ref().unwrap();
    assert_eq!((own.small, own.large, own.link.as_str()), (0, 0, "cali1"));
    let text = silent.render();
    assert!(
        text.contains("no answer")
            && text.contains("Whether packets of 10.65.0.2 itself come out of its link is not known"),
        "{text}"
    );
    for (link, size, counted) in [
        ("cali1", OWN.0, 3),
        ("cali1", OWN.1, 2),
        // Of the way from there on, and of another pod, nothing of it is taken.
        ("tunl0", OWN.1, 3),
        ("cali9", OWN.1, 3),
    ] {
        let sighting = Sighting {
            link: link.to_owned(),
            outgoing: false,
            outer: None,
            kind: Kind::Answer,
            size,
        };
        world.near.sightings.push((sighting, counted));
    }
    let trace = world.trace();
    let own = trace.own.as_ref().unwrap();
    assert_eq!((own.small, own.large), (3, 2));
    assert_eq!(trace.hops, silent.hops);
    let text = trace.render();
    let first = text.lines().find(|line| line.starts_with("there")).unwrap();
    assert!(
        first.contains("from the pod") && first.ends_with("MISSING") && !text.contains("not known"),
        "{text}"
    );
}

#[test]
fn a_pod_that_does_not_answer_is_no_fault_of_the_way() {
    let world = World::new().lost(2, 4);
    let trace = world.trace();
    assert_eq!(trace.loss, None);
    let silence = trace.silence.clone().unwrap();
    let from = trace.hops.iter().find(|hop| hop.place == Place::FromPod).unwrap();
    assert_eq!(from.link, "cali2");
    assert_eq!(
        silence.finding,
        "all packets reached cali2 of node2, the link to the pod 10.65.1.2; it did not answer"
    );
    let text = trace.render();
    assert!(
        text.contains("The way there is well, of the way back nothing is known: all packets reached")
            && text.contains("no answer")
            && !text.contains("MISSING"),
        "{text}"
    );
    // On one node likewise.
    let mut world = World::new();
    world.way.to.node = "node1".to_owned();
    world.way.to.link = Some("cali2".to_owned());
    world.way.tunnelled = false;
    world.near.sightings = sightings("cali2", true, Kind::Request).into();
    let trace = world.trace();
    assert_eq!(
        (&trace.loss, trace.silence.is_some()),
        (&None, true),
        "{trace:#?}"
    );
}

#[test]
fn on_the_way_to_a_silent_pod_losses_are_found_all_the_same() {
    // Large ones do not come to it.
    let mut world = World::new().lost(2, 4);
    world.far.sightings.retain(|(sighting, _)| sighting.size == SMALL);
    let trace = world.trace();
    assert_eq!(trace.silence, None);
    let loss = trace.loss.unwrap();
    assert_eq!(loss.place, "between eth0 of node1 and eth0 of node2");
    assert_eq!(
        loss.cause,
        "the MTU is too large for the way: packets of 1480 bytes do not pass there (0 of 3), and of those between this and \
         64 nothing is known"
    );
    // One of the small ones is lost.
    let mut world = World::new().lost(2, 4);
    for (_, count) in &mut world.far.sightings {
        *count = 2;
    }
    let trace = world.trace();
    assert_eq!(trace.silence, None);
    assert_eq!(
        trace.loss.unwrap().cause,
        "packets are lost now and then: 2 of 3 arrived there"
    );
}

#[test]
fn what_the_doctor_of_that_node_says_is_the_cause_where_it_fits() {
    let filter = "a packet filter on this host drops tunnelled packets (IP protocol 4) from 172.18.0.11";
    let forwards =
        "a packet filter on this host drops packets between pods that it forwards, to pods of this node";
    for (near, far, check, words, fits) in [
        (2, 2, Check::Filters, filter, true),
        (2, 2, Check::Filters, forwards, false),
        (2, 2, Check::Tunnel, "the tunnel device tunl0 is down", true),
        (2, 3, Check::Filters, forwards, true),
        (
            2,
            3,
            Check::Forwarding,
            "this host does not forward packets",
            true,
        ),
        (
            2,
            3,
            Check::Conntrack,
            "the table of tracked connections is nearly full",
            false,
        ),
        (
            2,
            5,
            Check::Routes,
            "the kernel does not hold, or not for long: 10.65.0.0/26",
            true,
        ),
    ] {
        let mut world = World::new().lost(near, far);
        world.far.findings = vec![finding(check, words)];
        let (_, cause) = world.loss();
        assert_eq!(cause == format!("on node2: {words} (as it is)"), fits, "{cause}");
        // The same at the other node explains nothing here.
        world.near.findings = std::mem::take(&mut world.far.findings);
        assert!(!world.loss().1.contains(words));
    }
}

#[test]
fn a_wrong_outer_address_is_the_cause_before_all_others() {
    let set = |seen: &mut Seen, outer: (&str, &str)| {
        let outer = (outer.0.parse().unwrap(), outer.1.parse().unwrap());
        for (sighting, _) in &mut seen.sightings {
            sighting.outer = sighting.outer.map(|_| outer);
        }
    };
    let mut world = World::new().lost(2, 2);
    set(&mut world.near, ("192.168.0.113", NODES[1]));
    let (_, cause) = world.loss();
    assert!(
        cause.starts_with(
            "wrong outer source: packets leave node1 with 192.168.0.113, which no node advertises"
        ),
        "{cause}"
    );
    let mut world = World::new().lost(2, 0);
    set(&mut world.near, (NODES[0], "10.65.9.9"));
    let (_, cause) = world.loss();
    assert!(
        cause.starts_with("wrong next hop: node1 sends packets for 10.65.1.2 to 10.65.9.9"),
        "{cause}"
    );
    // Where nobody minds, another source loses nothing.
    let mut world = World::new();
    for (sighting, _) in world
        .near
        .sightings
        .iter_mut()
        .filter(|(sighting, _)| sighting.kind == Kind::Request)
    {
        sighting.outer = sighting
            .outer
            .map(|(_, to)| ("192.168.0.113".parse().unwrap(), to));
    }
    assert_eq!(world.trace().loss, None);
}

#[test]
fn large_packets_that_vanish_tell_of_an_mtu() {
    let mut world = World::new();
    world.sent.largest = Some(1400);
    world.far.sightings.retain(|(sighting, _)| sighting.size == SMALL);
    world
        .near
        .sightings
        .retain(|(sighting, _)| sighting.size == SMALL || sighting.kind == Kind::Request);
    let (place, cause) = world.loss();
    assert_eq!(place, "between eth0 of node1 and eth0 of node2");
    assert_eq!(
        cause,
        "the MTU is too large for the way: packets of 1480 bytes do not pass there (0 of 3), and the largest that came \
         through had 1400"
    );
}

#[test]
fn a_few_that_are_lost_are_told_as_such() {
    let mut world = World::new().lost(2, 2);
    for (_, count) in &mut world.far.sightings {
        *count = 2;
    }
    assert_eq!(
        world.loss().1,
        "packets are lost now and then: 2 of 3 arrived there"
    );
}

#[test]
fn without_the_other_agent_its_places_are_left_out_and_the_reason_is_told() {
    let world = World::new();
    let unasked = || Err("connection refused".to_owned());
    let trace = Trace::new(&world.way, sent(), &world.near, unasked());
    assert_eq!((trace.hops.len(), &trace.loss), (5, &None));
    let lost = World::new().lost(2, 0);
    let trace = Trace::new(&lost.way, sent(), &lost.near, unasked());
    let cause = trace.loss.as_ref().unwrap().cause.clone();
    assert_eq!(
        cause,
        "nothing comes back from node2, and its agent could not be asked what it saw: connection refused"
    );
    assert!(
        trace
            .render()
            .contains("Of node2 nothing is known: connection refused\n")
    );
}

#[test]
fn on_one_node_packets_pass_the_links_of_both_pods() {
    let mut world = World::new();
    world.way.to.node = "node1".to_owned();
    world.way.to.link = Some("cali2".to_owned());
    world.way.tunnelled = false;
    world.near.sightings.clear();
    for (link, outgoing, kind) in [
        ("cali2", true, Kind::Request),
        ("cali2", false, Kind::Answer),
        ("cali1", true, Kind::Answer),
    ] {
        world.near.sightings.extend(sightings(link, outgoing, kind));
    }
    let trace = world.trace();
    assert_eq!((trace.hops.len(), &trace.loss), (3, &None), "{trace:#?}");
    assert!(trace.render().contains("on one node"));
}

#[test]
fn of_nodes_the_tunnel_is_the_end_of_the_way() {
    let mut world = World::new();
    for end in [&mut world.way.from, &mut world.way.to] {
        end.is_node = true;
        end.link = None;
    }
    let trace = world.trace();
    assert_eq!((trace.hops.len(), &trace.loss), (8, &None), "{trace:#?}");
}
