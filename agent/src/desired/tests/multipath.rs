//! Several best next hops for one destination.

use super::*;

/// One block behind all of these next hops.
fn through(hops: &[&str]) -> Learned {
    let hops = hops.iter().map(|address| {
        let address = address.parse().unwrap();
        BgpNextHop {
            address,
            peer: address,
        }
    });
    Learned::from([(
        Prefix::new("10.65.17.64/26".parse().unwrap()),
        hops.collect::<Vec<_>>(),
    )])
}

#[test]
fn each_of_several_next_hops_gets_the_same_share_and_their_order_makes_no_difference() {
    for hops in [["172.18.0.12", "172.19.0.13"], ["172.19.0.13", "172.18.0.12"]] {
        for (mode, expected) in [
            (
                "Always",
                "10.65.17.64/26 proto 86 nexthop via 172.18.0.12 dev tunl0 weight 1 onlink \
                 nexthop via 172.19.0.13 dev tunl0 weight 1 onlink",
            ),
            (
                "CrossSubnet",
                "10.65.17.64/26 proto 86 src 172.18.0.11 nexthop via 172.18.0.12 dev eth0 weight 1 onlink \
                 nexthop via 172.19.0.13 dev tunl0 weight 1 onlink",
            ),
            (
                "Never",
                "10.65.17.64/26 proto 86 src 172.18.0.11 nexthop via 172.18.0.1 dev eth0 weight 1 onlink \
                 nexthop via 172.18.0.12 dev eth0 weight 1 onlink",
            ),
        ] {
            let plan = plan_of(&cluster(&format!("ipipMode: {mode}")), &through(&hops), kernel());
            assert_eq!(printed(&plan)[0], expected, "{mode}");
        }
    }
}

#[test]
fn of_next_hops_that_are_rejected_in_part_the_good_ones_stay() {
    for wrong in ["172.18.0.99", "10.65.42.7"] {
        let both = through(&["172.18.0.12", wrong]);
        let plan = plan_of(&cluster("ipipMode: Always"), &both, kernel());
        assert_eq!(
            printed(&plan)[0],
            "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 86 onlink"
        );
        assert_eq!(plan.rejected.len(), 1);
    }
}

#[test]
fn a_next_hop_that_is_out_of_reach_for_the_moment_does_not_hold_the_others_back() {
    let mut no_default = kernel();
    no_default.routes.truncate(1);
    let both = through(&["172.18.0.12", "172.19.0.13"]);
    let plan = plan_of(&cluster("ipipMode: Never"), &both, no_default);
    assert_eq!(
        printed(&plan)[0],
        "10.65.17.64/26 via 172.18.0.12 dev eth0 proto 86 src 172.18.0.11 onlink"
    );
    assert_eq!(plan.desired.held.len(), 0);
}

#[test]
fn while_the_nic_of_the_advertised_address_is_down_what_goes_through_the_tunnel_stays() {
    let mut down = kernel();
    down.links[0].up = false;
    // The kernel has removed the routes of the link.
    down.routes.clear();
    let both = through(&["172.18.0.12", "172.19.0.13"]);
    let plan = plan_of(&cluster("ipipMode: CrossSubnet"), &both, down.clone());
    assert_eq!(
        printed(&plan)[0],
        "10.65.17.64/26 via 172.19.0.13 dev tunl0 proto 86 onlink"
    );
    let plan = plan_of(
        &cluster("ipipMode: CrossSubnet"),
        &through(&["172.18.0.12"]),
        down,
    );
    assert_eq!(plan.desired.held.len(), 1, "alone it is left as it is");
    assert_eq!(plan.desired.routes.len(), 1);
}
