use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::{Export, Rejection, import};
use crate::id::{Asn, RouterId};
use crate::rib::decision::Candidate;
use crate::rib::loc::Best;
use crate::wire::message::{AsPath, AsSegment, PathAttributes};

const OURS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 10);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 11));
const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 18, 0, 12));

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

fn learned(internal: bool) -> Best {
    Best::Learned(Candidate {
        peer: PEER,
        router_id: RouterId::new(Ipv4Addr::new(1, 1, 1, 1)).unwrap(),
        internal,
        attributes: Arc::new(received(|_| {})),
    })
}

#[test]
fn a_path_through_our_own_as_is_not_used() {
    // RFC 4271 §9.1.2 (test).
    let looped = received(|a| a.as_path = sequence(&[65001, 64512, 65002]));
    assert_eq!(
        import(&looped, asn(64512), OURS),
        Err(Rejection::AsLoop(asn(64512)))
    );
    assert_eq!(import(&looped, asn(64513), OURS), Ok(()));
}

#[test]
fn a_next_hop_is_the_address_of_another_host() {
    // RFC 4271 §5.1.3, §6.3 (test).
    let with = |next_hop: Ipv4Addr| import(&received(|a| a.next_hop = next_hop.into()), asn(64512), OURS);
    for address in [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [127, 0, 0, 1],
        [224, 0, 0, 5],
        [240, 0, 0, 1],
        [255; 4],
    ] {
        let address = Ipv4Addr::from(address);
        assert_eq!(with(address), Err(Rejection::NextHopNotUnicast(address.into())));
    }
    assert_eq!(with(OURS), Err(Rejection::NextHopOurs(OURS.into())));
    for address in [
        [1, 0, 0, 1],
        [126, 0, 0, 1],
        [172, 18, 0, 11],
        [223, 255, 255, 254],
    ] {
        assert_eq!(with(Ipv4Addr::from(address)), Ok(()));
    }
}

#[test]
fn our_own_routes_go_to_internal_peers_with_a_preference_and_to_external_ones_with_our_as() {
    let export = Export::new(asn(64512), OURS);
    let internal = export.route(&Best::Local, PEER, true).unwrap();
    assert_eq!(
        (internal.next_hop, internal.local_pref, &internal.as_path),
        (OURS.into(), Some(100), &AsPath::default())
    );
    let external = export.route(&Best::Local, PEER, false).unwrap();
    assert_eq!(
        (external.next_hop, external.local_pref, &external.as_path),
        (OURS.into(), None, &sequence(&[64512]))
    );
}

#[test]
fn what_an_internal_peer_told_goes_to_no_other_internal_peer() {
    // RFC 4271 §9.2 (test).
    let export = Export::new(asn(64512), OURS);
    assert_eq!(export.route(&learned(true), THIRD, true), None);
    assert!(export.route(&learned(false), THIRD, true).is_some());
    assert!(export.route(&learned(true), THIRD, false).is_some());
    for internal in [true, false] {
        assert_eq!(
            export.route(&learned(internal), PEER, internal),
            None,
            "nor back to where it came from"
        );
    }
}

#[test]
fn a_path_that_leaves_our_as_carries_it_in_front_and_neither_med_nor_preference() {
    // RFC 4271 §5.1.2, §5.1.4, §5.1.5 (test).
    let export = Export::new(asn(64512), OURS);
    let out = export.route(&learned(true), THIRD, false).unwrap();
    assert_eq!(out.as_path, sequence(&[64512, 65001]));
    assert_eq!(
        (out.med, out.local_pref, out.next_hop, &out.communities[..]),
        (None, None, OURS.into(), &[7][..])
    );
}
