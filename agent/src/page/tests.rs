//! What the page draws, what happened lately, and what a browser lets the page do.

use culvert_bgp::id::{NextHop, Prefix};

use super::*;
use crate::desired::{self, Learned};
use crate::fib::Snapshot;
use crate::fixtures::{ETH0, address, affinity, link, node, pool, route, settings, tunnel};
use crate::inquiry::Undone;
use crate::page::recent::EventKind;
use crate::reconcile::Actual;
use crate::status::{DatastoreStatus, PeerStatus, PeerType};

const OWN: &str = "10.122.42.0/26";
const OTHER: &str = "10.122.17.64/26";
const ORPHAN: &str = "10.122.200.0/26";

fn peer(state: &str, reason: Option<&str>) -> PeerStatus {
    PeerStatus {
        address: [192, 168, 3, 110].into(),
        node: Some("node0".into()),
        r#type: PeerType::Mesh,
        state: state.into(),
        since: Timestamp::UNIX_EPOCH,
        reason: reason.map(str::to_owned),
        failures: 0,
        failed: None,
        prefixes_received: 0,
        prefixes_sent: 0,
        established_count: 0,
        stale: false,
        outer_source: None,
    }
}

fn running(peers: Vec<PeerStatus>) -> AgentStatus {
    AgentStatus {
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        peers,
        ..AgentStatus::starting("node1")
    }
}

fn world() -> Cluster {
    let mut cluster = Cluster::default();
    for object in [
        node("node0", "192.168.3.110/24"),
        node("node1", "192.168.3.111/24"),
        pool("pods", "cidr: 10.122.0.0/16, ipipMode: Always"),
        affinity("node0", OTHER),
        affinity("node1", OWN),
        affinity("gone", ORPHAN),
    ] {
        cluster.upsert(&object);
    }
    cluster
}

/// The view of node1, whose kernel has these routes; why a route is refused, if it is.
fn seen(kernel: &[Route], refused: Option<&str>) -> View {
    let cluster = world();
    let actual = Actual::new(Snapshot {
        links: vec![link(ETH0, "eth0"), tunnel()],
        addresses: vec![address(ETH0, "192.168.3.111/24")],
        routes: kernel.to_vec(),
        forwarding: true,
        ..Snapshot::default()
    });
    let peer = "192.168.3.110".parse().unwrap();
    let hop = NextHop { address: peer, peer };
    let learned: Learned = [(Prefix::new(OTHER.parse().unwrap()), vec![hop])].into();
    let settings = settings("node1", "192.168.3.111");
    let known = desired::Known {
        cluster: &cluster,
        learned: &learned,
        actual: &actual,
        converged: true,
    };
    let plan = desired::plan(&settings, known);
    let known = Known {
        settings: &settings,
        cluster: &cluster,
        plan: &plan,
        actual: &actual,
        status: &running(Vec::new()),
        undone: Undone::default(),
        refused: &|_| refused.map(str::to_owned),
    };
    view(&known, &Recent::default(), Timestamp::UNIX_EPOCH)
}

#[test]
fn blocks_are_told_by_pool_with_their_owners_and_an_owner_that_is_gone_is_marked() {
    let view = seen(&[], None);
    let [pool] = view.pools.as_slice() else {
        panic!("{:?}", view.pools)
    };
    assert_eq!((pool.name.as_str(), pool.block_size), ("pods", 26));
    let blocks: Vec<_> = pool
        .blocks
        .iter()
        .map(|block| (block.cidr.to_string(), block.node.as_str(), block.is_orphan))
        .collect();
    assert_eq!(
        blocks,
        [
            (OTHER.to_owned(), "node0", false),
            (OWN.to_owned(), "node1", false),
            (ORPHAN.to_owned(), "gone", true),
        ]
    );
    assert_eq!(view.nodes.len(), 2);
    assert_eq!(view.blocks_left_out, 0);
}

#[test]
fn a_route_is_told_as_it_should_be_and_as_it_is_and_a_wrong_one_comes_first() {
    let nothing = seen(&[], None);
    assert!(nothing.routes.len() >= 2, "{:?}", nothing.routes);
    assert!(nothing.routes.iter().all(|route| route.actual.is_none()));
    let told = nothing
        .routes
        .iter()
        .find(|route| route.destination.to_string() == OTHER);
    let told = told.unwrap();
    assert_eq!(told.node.as_deref(), Some("node0"));
    assert_eq!(told.problem.as_deref(), Some("it is not in the kernel"));
    let other = route(OTHER, Some("192.168.3.110"), crate::fixtures::TUNL0, 86);
    let view = seen(&[other], None);
    let last = view.routes.last().unwrap();
    assert_eq!(last.destination.to_string(), OTHER);
    assert_eq!(last.actual.as_ref(), Some(&last.expected));
    assert_eq!(last.problem, None);
    assert!(view.routes[0].problem.is_some());
}

#[test]
fn the_kernels_own_words_say_why_a_route_is_not_there() {
    let view = seen(&[], Some("network is unreachable"));
    assert_eq!(view.routes[0].problem.as_deref(), Some("network is unreachable"));
}

fn events(steps: &[AgentStatus]) -> Vec<(EventKind, String)> {
    let mut recent = Recent::default();
    let mut before = AgentStatus::starting("node1");
    for after in steps {
        recent.note(&before, after, Timestamp::UNIX_EPOCH);
        before = after.clone();
    }
    let events = recent.events().into_iter();
    events.map(|event| (event.kind, event.what)).collect()
}

#[test]
fn a_session_that_comes_up_and_is_lost_is_two_events_the_latest_first() {
    let steps = [
        running(vec![peer("Established", None)]),
        running(vec![peer("Established", None)]),
        running(vec![peer("Idle", Some("hold timer expired"))]),
    ];
    assert_eq!(
        events(&steps)[..2],
        [
            (
                EventKind::Trouble,
                "session with node0 (192.168.3.110) was lost: hold timer expired".to_owned()
            ),
            (
                EventKind::Relief,
                "session with node0 (192.168.3.110) is Established".to_owned()
            ),
        ]
    );
}

#[test]
fn a_problem_is_told_when_it_begins_and_when_it_is_over() {
    let mut wrong = running(Vec::new());
    wrong.datastore.problem = Some("away".to_owned());
    assert_eq!(
        events(&[running(Vec::new()), wrong.clone(), wrong, running(Vec::new())])[..2],
        [
            (EventKind::Relief, "over: datastore: away".to_owned()),
            (EventKind::Trouble, "datastore: away".to_owned()),
        ]
    );
}

#[test]
fn a_problem_that_grows_is_not_another() {
    let refused = |packets: u8| {
        let mut status = running(Vec::new());
        status.firewall.refused = vec![format!("{packets} tunnelled packets from 203.0.113.9")];
        status
    };
    let told = events(&[running(Vec::new()), refused(12), refused(30), running(Vec::new())]);
    assert_eq!(
        told[..2],
        [
            (
                EventKind::Relief,
                "over: refused 30 tunnelled packets from 203.0.113.9".to_owned()
            ),
            (
                EventKind::Trouble,
                "refused 12 tunnelled packets from 203.0.113.9".to_owned()
            ),
        ]
    );
}

#[test]
fn of_a_thousand_sessions_at_once_one_event_is_made_and_the_list_is_bounded() {
    let many = |state: &str| {
        let one = |nth: u16| PeerStatus {
            address: IpAddr::from([10, 0, nth.to_be_bytes()[0], nth.to_be_bytes()[1]]),
            ..peer(state, None)
        };
        running((0..1000).map(one).collect())
    };
    let steps: Vec<_> = (0..300)
        .map(|nth| many(if nth % 2 == 0 { "Established" } else { "Idle" }))
        .collect();
    let events = events(&steps);
    assert_eq!(events.len(), 100);
    assert_eq!(
        events[0],
        (EventKind::Trouble, "1000 sessions were lost".to_owned())
    );
}

#[test]
fn what_is_wrong_names_each_peer_without_a_session_and_nothing_of_an_agent_that_is_well() {
    let well = running(vec![peer("Established", None)]);
    assert_eq!(recent::problems(&well).len(), 0);
    let ill = running(vec![peer("Active", Some("connection refused"))]);
    let problems: Vec<_> = recent::problems(&ill).into_iter().collect();
    assert_eq!(
        problems,
        ["no session with node0 (192.168.3.110): connection refused"]
    );
}

/// All of the page's protection against names that are no names rests on this.
#[test]
fn the_page_is_one_file_that_makes_no_markup_of_what_it_is_told() {
    for tag in ["<script", "</script>", "<style", "</style>"] {
        assert_eq!(PAGE.matches(tag).count(), 1, "{tag}");
    }
    for forbidden in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        " style=",
        "src=",
        "@import",
        "url(",
    ] {
        assert!(!PAGE.contains(forbidden), "{forbidden}");
    }
    let addresses: Vec<&str> = PAGE
        .split("http")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    assert_eq!(addresses, ["://www.w3.org/2000/svg"], "only the name of SVG");
}

#[test]
fn the_policy_lets_run_only_what_is_in_the_page() {
    assert_eq!(POLICY.matches("'sha256-").count(), 2, "{}", *POLICY);
    assert!(POLICY.starts_with("default-src 'none'; "), "{}", *POLICY);
    assert!(!POLICY.contains("unsafe"), "{}", *POLICY);
    let empty = STANDARD.encode(Sha256::digest(""));
    assert!(
        !POLICY.contains(&empty),
        "script and style were found: {}",
        *POLICY
    );
}
