use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::export::Export;
use super::import::{Import, Rejection};
use crate::config::{NextHopMode, PeerConfig, SpeakerConfig};
use crate::id::Prefix;
use crate::id::{Asn, RouterId};
use crate::rib::community::{LLGR_STALE, NO_ADVERTISE, NO_EXPORT};
use crate::rib::decision::{Candidate, Neighbour};
use crate::rib::loc::Best;
use crate::wire::Negotiated;
use crate::wire::message::{AsPath, AsSegment, PathAttributes};

const OURS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 11));
const CLUSTER: Ipv4Addr = Ipv4Addr::new(1, 0, 0, 1);

pub(super) fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

pub(super) fn sequence(numbers: &[u32]) -> AsPath {
    AsPath {
        segments: vec![AsSegment::Sequence(
            numbers.iter().map(|&number| asn(number)).collect(),
        )],
    }
}

pub(super) fn received(edit: impl FnOnce(&mut PathAttributes)) -> PathAttributes {
    let mut attributes = PathAttributes {
        as_path: sequence(&[65001]),
        med: Some(3),
        local_pref: Some(200),
        communities: vec![7],
        ..PathAttributes::new(PEER)
    };
    edit(&mut attributes);
    attributes
}

fn speaker() -> SpeakerConfig {
    SpeakerConfig::new(asn(64512), RouterId::new(OURS).unwrap(), OURS)
}

fn peer(number: u32, edit: impl FnOnce(&mut PeerConfig)) -> PeerConfig {
    let mut config = PeerConfig::new(PEER, asn(number));
    edit(&mut config);
    config
}

fn check(attributes: &PathAttributes, peer: &PeerConfig) -> Result<(), Rejection> {
    Import::new(&speaker(), peer).check(attributes, &BTreeSet::from([CLUSTER]))
}

fn prefix() -> Prefix {
    Prefix::new("10.65.1.0/26".parse().unwrap())
}

fn learned(internal: bool, edit: impl FnOnce(&mut Neighbour, &mut PathAttributes)) -> Candidate {
    let mut from = Neighbour {
        peer: PEER,
        router_id: RouterId::new(Ipv4Addr::new(1, 1, 1, 1)).unwrap(),
        internal,
        reflector_client: None,
    };
    let mut attributes = received(|_| {});
    edit(&mut from, &mut attributes);
    Candidate {
        from: Arc::new(from),
        received_id: 0,
        path_id: 0,
        attributes: Arc::new(attributes),
    }
}

/// What a peer of AS `number` is told of a path.
fn told(number: u32, path: Best<'_>, edit: impl FnOnce(&mut PeerConfig)) -> Option<Arc<PathAttributes>> {
    let negotiated = Negotiated::plain(number == 64512);
    Export::new(&speaker(), &peer(number, edit), negotiated, false).route(prefix(), path)
}

#[test]
fn a_path_through_our_own_as_is_used_only_as_often_as_allowed() {
    // RFC 4271 §9.1.2 (test).
    let looped = received(|a| a.as_path = sequence(&[65001, 64512, 65002, 64512]));
    let allowing = |allowed| peer(65001, |config| config.allowed_own_as = allowed);
    assert_eq!(check(&looped, &allowing(0)), Err(Rejection::AsLoop(asn(64512))));
    assert_eq!(check(&looped, &allowing(1)), Err(Rejection::AsLoop(asn(64512))));
    assert_eq!(check(&looped, &allowing(2)), Ok(()));
    // RFC 7705 §3.1 (test): the AS that we are in towards this peer is ours too.
    let local = peer(65001, |config| config.local_asn = Some(asn(65002)));
    let other = received(|a| a.as_path = sequence(&[65001, 65002]));
    assert_eq!(check(&other, &local), Err(Rejection::AsLoop(asn(65002))));
}

#[test]
fn an_external_peer_puts_its_own_as_in_front() {
    // RFC 4271 §6.3 (test).
    let strange = received(|a| a.as_path = sequence(&[65009, 65001]));
    let (got, want) = (Some(asn(65009)), asn(65001));
    assert_eq!(
        check(&strange, &peer(65001, |_| {})),
        Err(Rejection::FirstAs { got, want })
    );
    assert_eq!(
        check(&strange, &peer(65001, |config| config.enforce_first_as = false)),
        Ok(())
    );
    assert_eq!(
        check(&strange, &peer(64512, |_| {})),
        Ok(()),
        "an internal peer need not"
    );
    let empty = received(|a| a.as_path = AsPath::default());
    let none = check(&empty, &peer(65001, |_| {})).unwrap_err();
    assert_eq!(none.to_string(), "path begins with no AS, the peer is AS 65001");
}

#[test]
fn a_path_is_not_longer_than_any_real_one() {
    let of = |length: usize| received(|a| a.as_path = sequence(&vec![65001; length]));
    assert_eq!(check(&of(255), &peer(65001, |_| {})), Ok(()));
    assert_eq!(
        check(&of(256), &peer(65001, |_| {})),
        Err(Rejection::AsPathTooLong { got: 256 })
    );
}

#[test]
fn a_next_hop_is_the_address_of_another_host() {
    // RFC 4271 §5.1.3, §6.3 (test).
    let with = |next_hop: IpAddr| check(&received(|a| a.next_hop = next_hop), &peer(64512, |_| {}));
    for address in [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.5",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "ff02::1",
    ] {
        let address = address.parse().unwrap();
        assert_eq!(with(address), Err(Rejection::NextHopNotUnicast(address)));
    }
    assert_eq!(with(OURS.into()), Err(Rejection::NextHopOurs(OURS.into())));
    for address in [
        "1.0.0.1",
        "126.0.0.1",
        "172.18.0.11",
        "223.255.255.254",
        "fd00::1",
        "2001:db8::1",
    ] {
        assert_eq!(with(address.parse().unwrap()), Ok(()));
    }
}

#[test]
fn a_reflected_path_that_comes_back_is_not_used() {
    // RFC 4456 §8 (test).
    let ours = RouterId::new(OURS).unwrap();
    let originated = received(|a| a.originator_id = Some(ours));
    let internal = peer(64512, |_| {});
    assert_eq!(
        check(&originated, &internal),
        Err(Rejection::OriginatorOurs(ours))
    );
    let clusters = received(|a| a.cluster_list = vec![Ipv4Addr::new(9, 9, 9, 9), CLUSTER]);
    assert_eq!(check(&clusters, &internal), Err(Rejection::ClusterLoop(CLUSTER)));
}

#[test]
fn an_external_peer_without_a_policy_is_told_and_asked_nothing_where_one_is_needed() {
    // RFC 8212 §2 (test).
    let needs = SpeakerConfig {
        external_needs_policy: true,
        ..speaker()
    };
    let import = |peer: &PeerConfig| Import::new(&needs, peer).check(&received(|_| {}), &BTreeSet::new());
    let export = |peer: &PeerConfig| {
        let negotiated = Negotiated::plain(peer.asn == asn(64512));
        Export::new(&needs, peer, negotiated, false).route(prefix(), Best::Local)
    };
    let (none, both) = (
        peer(65001, |_| {}),
        peer(65001, |config| {
            config.import = Some(Arc::default());
            config.export = Some(Arc::default());
        }),
    );
    assert_eq!((import(&none), export(&none)), (Err(Rejection::NoPolicy), None));
    assert!(import(&both).is_ok() && export(&both).is_some());
    let internal = peer(64512, |_| {});
    assert!(import(&internal).is_ok() && export(&internal).is_some());
}

#[test]
fn our_own_routes_go_to_internal_peers_with_a_preference_and_to_external_ones_with_our_as() {
    let internal = told(64512, Best::Local, |_| {}).unwrap();
    assert_eq!(
        (internal.next_hop, internal.local_pref, &internal.as_path),
        (OURS.into(), Some(100), &AsPath::default())
    );
    let external = told(65001, Best::Local, |_| {}).unwrap();
    assert_eq!(
        (external.next_hop, external.local_pref, &external.as_path),
        (OURS.into(), None, &sequence(&[64512]))
    );
    let local = told(65001, Best::Local, |config| config.local_asn = Some(asn(65000))).unwrap();
    assert_eq!(local.as_path, sequence(&[65000]), "RFC 7705 §3.1 (test)");
}

#[test]
fn what_an_internal_peer_told_goes_to_no_other_internal_peer() {
    // RFC 4271 §9.2 (test).
    let (internal, external) = (learned(true, |_, _| {}), learned(false, |_, _| {}));
    assert_eq!(told(64512, Best::Learned(&internal), |_| {}), None);
    assert!(told(64512, Best::Learned(&external), |_| {}).is_some());
    assert!(told(65001, Best::Learned(&internal), |_| {}).is_some());
}

#[test]
fn a_reflector_tells_clients_all_and_others_what_clients_said() {
    // RFC 4456 §6, §8 (test).
    let client = |config: &mut PeerConfig| config.reflector_client = Some(CLUSTER);
    let from_other = learned(true, |_, _| {});
    let out = told(64512, Best::Learned(&from_other), client).unwrap();
    assert_eq!(out.originator_id, Some(from_other.from.router_id));
    assert_eq!(out.cluster_list, [CLUSTER]);
    assert_eq!(
        out.next_hop, from_other.attributes.next_hop,
        "RFC 4456 §10 (test)"
    );
    assert_eq!(out.local_pref, Some(200));
    let before = RouterId::new(Ipv4Addr::new(7, 7, 7, 7)).unwrap();
    let from_client = learned(true, |from, a| {
        from.reflector_client = Some(CLUSTER);
        a.originator_id = Some(before);
        a.cluster_list = vec![Ipv4Addr::new(2, 2, 2, 2)];
    });
    let out = told(64512, Best::Learned(&from_client), |_| {}).unwrap();
    assert_eq!(
        out.originator_id,
        Some(before),
        "who brought it into the AS stays"
    );
    assert_eq!(out.cluster_list, [CLUSTER, Ipv4Addr::new(2, 2, 2, 2)]);
    let outside = told(65001, Best::Learned(&from_client), |_| {}).unwrap();
    assert_eq!((outside.originator_id, outside.cluster_list.len()), (None, 0));
}

#[test]
fn a_path_that_leaves_our_as_carries_it_in_front_and_neither_med_nor_preference() {
    // RFC 4271 §5.1.2, §5.1.4, §5.1.5 (test).
    let path = learned(true, |_, _| {});
    let out = told(65009, Best::Learned(&path), |_| {}).unwrap();
    assert_eq!(out.as_path, sequence(&[64512, 65001]));
    assert_eq!(
        (out.med, out.local_pref, out.next_hop, &out.communities[..]),
        (None, None, OURS.into(), &[7][..])
    );
}

#[test]
fn the_next_hop_is_ours_or_kept_as_configured() {
    let (external, reflected) = (
        learned(false, |_, _| {}),
        learned(true, |from, _| from.reflector_client = Some(CLUSTER)),
    );
    let hop = |path, mode| {
        let out = told(64512, Best::Learned(path), |config| config.next_hop = mode);
        out.unwrap().next_hop
    };
    assert_eq!(hop(&external, NextHopMode::Auto), OURS);
    assert_eq!(hop(&external, NextHopMode::Keep), PEER);
    assert_eq!(hop(&reflected, NextHopMode::Auto), PEER);
    assert_eq!(hop(&reflected, NextHopMode::Own), OURS);
}

#[test]
fn the_communities_of_all_speakers_are_obeyed() {
    // RFC 1997, RFC 9494 §4.3 (test).
    let with = |community| learned(false, move |_, a| a.communities = vec![community]);
    for (community, internal, external) in [
        (NO_ADVERTISE, false, false),
        (NO_EXPORT, true, false),
        (LLGR_STALE, false, false),
        (7, true, true),
    ] {
        let path = with(community);
        assert_eq!(
            told(64512, Best::Learned(&path), |_| {}).is_some(),
            internal,
            "{community:x}"
        );
        assert_eq!(
            told(65009, Best::Learned(&path), |_| {}).is_some(),
            external,
            "{community:x}"
        );
    }
    let export = Export::new(&speaker(), &peer(64512, |_| {}), Negotiated::plain(true), true);
    assert!(
        export.route(prefix(), Best::Learned(&with(LLGR_STALE))).is_some(),
        "to a peer that knows what it means"
    );
}
