use culvert_ipam::check::Finding as AddressFinding;
use jiff::Timestamp;

use super::super::Check;
use super::*;
use crate::status::{PeerStatus, PeerType, SessionCounts};

fn address(n: u8) -> IpAddr {
    [172, 18, 0, n].into()
}

fn peer(n: u8, state: &str) -> PeerStatus {
    PeerStatus::example(address(n), state)
}

/// Node `nN`, known by 172.18.0.N, with these peers told of and two in all.
fn seen(n: u8, told: Vec<PeerStatus>) -> NodeSeen {
    let node = format!("n{n}");
    let down = told.len();
    NodeSeen {
        address: Some(address(n)),
        clock: Some(Clock {
            ahead: SignedDuration::ZERO,
            error: SignedDuration::from_millis(5),
        }),
        status: Ok(AgentStatus {
            address: Some(address(n)),
            peers: told,
            sessions: SessionCounts {
                peers: 2,
                established: 2 - down,
            },
            ..AgentStatus::starting(&node)
        }),
        report: Ok(Report {
            node: node.clone(),
            findings: vec![],
            probed: false,
        }),
        node,
    }
}

fn well() -> Cluster {
    Cluster {
        nodes: (1..=3).map(|n| seen(n, vec![])).collect(),
        addresses: Ok(Addresses {
            pools: vec![pool(1000, 100)],
            problems: vec![],
        }),
        services: Ok([(IpAddr::from([10, 96, 0, 1]), "default/kubernetes".to_owned())].into()),
        service_ranges: None,
        listed_within: Duration::from_millis(30),
    }
}

fn pool(total: u128, in_use: u128) -> PoolUse {
    PoolUse {
        name: "default".into(),
        cidr: "10.65.0.0/16".parse().unwrap(),
        usage: Usage {
            total,
            in_use,
            ..Usage::default()
        },
    }
}

/// The one thing that is found: its sentence and first evidence, and the nodes.
fn found(cluster: &Cluster) -> (String, String, String) {
    let report = examine(cluster);
    let [finding] = report.findings.as_slice() else {
        panic!("not one finding: {report:#?}")
    };
    (
        finding.finding.clone(),
        finding.evidence.first().cloned().unwrap_or_default(),
        finding.nodes.join(" "),
    )
}

#[test]
fn in_a_cluster_that_is_well_nothing_is_found() {
    let report = examine(&well());
    assert_eq!((report.findings, report.unchecked), (vec![], vec![]));
    assert_eq!(
        examine(&well()).render(),
        "3 nodes: 3 answered\nNothing is wrong.\n"
    );
}

#[test]
fn an_address_of_two_nodes_is_found_by_what_either_says() {
    let mut cluster = well();
    cluster.nodes[2].address = Some(address(1));
    let (finding, _, nodes) = found(&cluster);
    assert_eq!(
        (finding.as_str(), nodes.as_str()),
        (
            "172.18.0.1 is the advertised address of more than one node",
            "n1 n3"
        )
    );
}

#[test]
fn a_session_that_only_one_end_calls_down_is_found_and_one_that_both_do_is_left_to_the_nodes() {
    let mut cluster = well();
    cluster.nodes[0] = seen(1, vec![peer(2, "Active")]);
    let (finding, evidence, nodes) = found(&cluster);
    assert_eq!(finding, "1 sessions are down at one end only");
    assert_eq!(
        evidence,
        "n1 says Active of its session with n2 (172.18.0.2), and n2 says nothing is wrong with it"
    );
    assert_eq!(nodes, "n1 n2");

    cluster.nodes[1] = seen(2, vec![peer(1, "Connect")]);
    assert_eq!(examine(&cluster).findings, []);
    // Of what n2 has told not all, nothing follows.
    cluster.nodes[1] = seen(2, vec![peer(3, "Connect")]);
    if let Ok(status) = &mut cluster.nodes[1].status {
        status.sessions.established = 0;
    }
    cluster.nodes[2] = seen(3, vec![peer(2, "Connect")]);
    assert_eq!(examine(&cluster).findings, []);
}

#[test]
fn different_versions_are_found_with_their_nodes() {
    let mut cluster = well();
    if let Ok(status) = &mut cluster.nodes[1].status {
        status.version = "0.0.1".into();
    }
    let report = examine(&cluster);
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(
        report.findings[0].evidence,
        ["0.0.1 on n2".to_owned(), format!("{ours} on n1, n3")]
    );
}

#[test]
fn a_clock_is_wrong_only_by_more_than_the_answer_took() {
    let clock = |ahead: i64, error: i64| {
        Some(Clock {
            ahead: SignedDuration::from_millis(ahead),
            error: SignedDuration::from_millis(error),
        })
    };
    let mut cluster = well();
    cluster.nodes[1].clock = clock(-3000, 5);
    let (finding, evidence, nodes) = found(&cluster);
    assert_eq!(
        (finding.as_str(), evidence.as_str(), nodes.as_str()),
        (
            "clocks of nodes differ",
            "n2 is 3000 ms behind most other nodes, give or take 10",
            "n2"
        )
    );
    cluster.nodes[1].clock = clock(-3000, 2000);
    assert_eq!(examine(&cluster).findings, []);
    cluster.nodes[1].clock = clock(2010, 4);
    assert_eq!(found(&cluster).2, "n2");
    // Nobody is right where nobody answers.
    for node in &mut cluster.nodes {
        node.clock = None;
    }
    assert_eq!(examine(&cluster).findings, []);
}

#[test]
fn faults_of_addresses_and_exhausted_pools_are_found() {
    let with = |pools: Vec<PoolUse>, problems: Vec<AddressFinding>| Cluster {
        addresses: Ok(Addresses { pools, problems }),
        ..well()
    };
    for (cluster, expected) in [
        (
            with(vec![pool(64, 64)], vec![]),
            (
                "the pool default is exhausted",
                "0 of 64 addresses of 10.65.0.0/16 are free, 64 in use, 0 released a short while ago",
            ),
        ),
        (
            with(vec![pool(100, 96)], vec![]),
            (
                "the pool default is nearly exhausted",
                "4 of 100 addresses of 10.65.0.0/16 are free, 96 in use, 0 released a short while ago",
            ),
        ),
        (
            with(
                vec![],
                vec![AddressFinding::Overlap {
                    block: "10.65.0.0/26".parse().unwrap(),
                    other: "10.65.0.0/24".parse().unwrap(),
                }],
            ),
            (
                "1 things are wrong with blocks, claims and handles",
                &*AddressFinding::Overlap {
                    block: "10.65.0.0/26".parse().unwrap(),
                    other: "10.65.0.0/24".parse().unwrap(),
                }
                .to_string(),
            ),
        ),
    ] {
        let (finding, evidence, nodes) = found(&cluster);
        assert_eq!(
            (finding.as_str(), evidence.as_str(), nodes.as_str()),
            (expected.0, expected.1, "")
        );
    }
}

#[test]
fn services_in_pools_and_a_slow_server_are_found() {
    for (cluster, expected) in [
        (
            Cluster {
                services: Ok([(IpAddr::from([10, 65, 0, 10]), "kube-system/kube-dns".to_owned())].into()),
                ..well()
            },
            (
                "the pool default overlaps the addresses of services",
                "service kube-system/kube-dns has 10.65.0.10, which is in 10.65.0.0/16",
            ),
        ),
        (
            Cluster {
                listed_within: Duration::from_secs(4),
                ..well()
            },
            (
                "the API server is slow",
                "it took 4000 ms to list the nodes and the pods of the agents, seen from here",
            ),
        ),
    ] {
        let (finding, evidence, nodes) = found(&cluster);
        assert_eq!(
            (finding.as_str(), evidence.as_str(), nodes.as_str()),
            (expected.0, expected.1, "")
        );
    }
}

#[test]
fn what_could_not_be_looked_at_is_said() {
    let cluster = Cluster {
        addresses: Err("403 forbidden".into()),
        ..well()
    };
    let report = examine(&cluster);
    assert_eq!(report.findings, []);
    assert_eq!(
        report.render(),
        "3 nodes: 3 answered\n  NOT LOOKED AT  the addresses of the cluster: 403 forbidden\nNothing is wrong with what \
         was looked at.\n"
    );
}

#[test]
fn a_pool_in_the_range_of_services_is_found_before_a_service_has_an_address_of_it() {
    let with = |range: &str, known_by| Cluster {
        service_ranges: Some(ServiceRanges {
            ranges: vec!["fd00:96::/108".parse().unwrap(), range.parse().unwrap()],
            known_by,
        }),
        ..well()
    };
    for (known_by, words) in [
        (ServiceSource::ServiceCidrs, "the ServiceCIDR objects"),
        (
            ServiceSource::KubeadmConfig,
            "the ConfigMap kubeadm-config in kube-system",
        ),
    ] {
        // Around the pool, and within it.
        for range in ["10.64.0.0/12", "10.65.128.0/20"] {
            let cluster = with(range, known_by);
            let (finding, evidence, nodes) = found(&cluster);
            assert_eq!(finding, "the pool default overlaps the range of services");
            assert_eq!(
                evidence,
                format!("services have addresses of {range}, as {words} say, and the pool has 10.65.0.0/16")
            );
            assert_eq!(nodes, "");
            assert_eq!(examine(&cluster).services_known_by, Some(known_by));
        }
    }
    let apart = with("10.96.0.0/12", ServiceSource::ServiceCidrs);
    assert_eq!(examine(&apart).findings, []);
    // Then nobody needs to know what services there are.
    let unlisted = Cluster {
        services: Err("403 forbidden".into()),
        ..with("10.96.0.0/12", ServiceSource::ServiceCidrs)
    };
    assert_eq!(examine(&unlisted).unchecked, Vec::<String>::new());
    assert_eq!(examine(&well()).services_known_by, Some(ServiceSource::Addresses));
}

#[test]
fn the_same_on_many_nodes_is_one_finding_with_what_most_nodes_have_first() {
    let finding = |check, finding: &str, evidence: &str| Finding {
        check,
        finding: finding.to_owned(),
        evidence: evidence.to_owned(),
        consequence: "c".to_owned(),
        cure: "d".to_owned(),
        fix: None,
    };
    let mut cluster = well();
    for (at, node) in cluster.nodes.iter_mut().enumerate() {
        node.report = Ok(Report {
            node: node.node.clone(),
            probed: false,
            findings: vec![
                finding(Check::Conntrack, "full", &format!("{at} of 9")),
                finding(Check::Agent, "the agent is not ready", "why"),
            ],
        });
    }
    cluster.nodes[1].status = Err("no answer within 5 s".into());
    cluster.nodes[1].report = Err("no answer within 5 s".into());
    cluster.nodes[1].clock = None;
    assert_eq!(
        examine(&cluster).render(),
        "\
3 nodes: 2 answered
  FINDING  agent: the agent is not ready
           on        n1, n3
           evidence  why
           so        c
           mend      d
  FINDING  connection tracking: full
           on        n1, n3
           evidence  n1: 0 of 9
           evidence  n3: 2 of 9
           so        c
           mend      d
  FINDING  agent: the agent does not answer
           on        n2
           evidence  no answer within 5 s
           so        what it would find is not told here; its routes stay in the kernel as they are
           mend      as the reason says; then: kubectl logs of its pod, or systemctl status culvert there
3 findings.
"
    );
}

#[test]
fn of_a_thousand_nodes_with_one_finding_the_first_are_named_with_each_evidence() {
    let finding = |evidence: String| Finding {
        check: Check::Filters,
        finding: "drops".to_owned(),
        evidence,
        consequence: "c".to_owned(),
        cure: "d".to_owned(),
        fix: None,
    };
    let nodes = (1..=1000).map(|n| {
        let node = format!("n{n:04}");
        // Most have the same rule; four have it at other places.
        let evidence = if n > 4 {
            "rule 5".to_owned()
        } else {
            format!("rule 9{n}")
        };
        NodeSeen {
            report: Ok(Report {
                node: node.clone(),
                findings: vec![finding(evidence)],
                probed: false,
            }),
            node,
            address: None,
            clock: None,
            status: Err("not asked".to_owned()),
        }
    });
    let cluster = Cluster {
        nodes: nodes.collect(),
        ..well()
    };
    let report = examine(&cluster);
    let [found] = report.findings.as_slice() else {
        panic!("not one finding: {report:#?}")
    };
    assert_eq!(found.nodes.len(), 1000);
    assert_eq!(
        found.evidence,
        [
            "n0005, n0006, n0007, n0008, n0009, n0010, n0011, n0012, and 988 more: rule 5",
            "n0001: rule 91",
            "n0002: rule 92",
            "others on n0003, n0004",
        ]
    );
    let on = "on        n0001, n0002, n0003, n0004, n0005, n0006, n0007, n0008, and 992 more\n";
    assert!(report.render().contains(on), "{}", report.render());
}

#[test]
fn an_example_of_a_peer_is_one_of_the_mesh() {
    let peer = peer(1, "Idle");
    assert_eq!((peer.r#type, peer.since), (PeerType::Mesh, Timestamp::UNIX_EPOCH));
}
