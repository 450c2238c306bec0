//! Several next hops for one destination (equal-cost multipath), with shares that are equal by node.

use std::borrow::Borrow;

use super::ways::Way;
use crate::fib::NextHop;

/// The most that the kernel takes as the weight of a next hop: one octet, from zero (linux/rtnetlink.h, `rtnh_hops`).
const MAX_WEIGHT: u64 = 256;

/// The next hops of all `ways`, in order. Each way gets the same share, however many next hops it has itself: the host may
/// have several gateways to one node and one to another. What two ways have in common gets both shares.
pub(super) fn equal_shares<W: Borrow<Way>>(ways: &[W]) -> Vec<NextHop> {
    if let [way] = ways {
        let mut only = way.borrow().next_hops.clone();
        only.sort_unstable();
        only.dedup();
        return only;
    }
    let total = |way: &Way| way.next_hops.iter().map(|hop| u64::from(hop.weight)).sum::<u64>();
    let whole = ways
        .iter()
        .map(|way| total(way.borrow()).max(1))
        .fold(1, least_common_multiple);
    let mut shares: Vec<(NextHop, u64)> = Vec::new();
    for way in ways.iter().map(Borrow::borrow) {
        let factor = whole / total(way).max(1);
        for hop in &way.next_hops {
            let share = u64::from(hop.weight).saturating_mul(factor);
            let bare = NextHop { weight: 1, ..*hop };
            match shares.iter_mut().find(|(other, _)| *other == bare) {
                Some((_, sum)) => *sum = sum.saturating_add(share),
                None => shares.push((bare, share)),
            }
        }
    }
    let divisor = shares
        .iter()
        .map(|(_, share)| *share)
        .fold(0, greatest_common_divisor);
    let most = shares.iter().map(|(_, share)| *share).max().unwrap_or(1);
    // What is beyond the kernel's octet is scaled down, and nothing vanishes by that.
    let unit = divisor.max(most.div_ceil(MAX_WEIGHT)).max(1);
    let mut hops: Vec<NextHop> = shares
        .into_iter()
        .map(|(hop, share)| NextHop {
            weight: u16::try_from((share / unit).clamp(1, MAX_WEIGHT)).unwrap_or(1),
            ..hop
        })
        .collect();
    hops.sort_unstable();
    hops
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// That of two numbers from 1; of numbers so large that it does not fit, the greater.
fn least_common_multiple(a: u64, b: u64) -> u64 {
    (a / greatest_common_divisor(a, b).max(1))
        .checked_mul(b)
        .unwrap_or(a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A way through these hosts of the subnet, with these weights.
    fn way(hops: &[(u8, u16)]) -> Way {
        let hop = |(host, weight): &(u8, u16)| NextHop {
            gateway: Some([172, 18, 0, *host].into()),
            link: 2,
            onlink: true,
            weight: *weight,
        };
        Way {
            next_hops: hops.iter().map(hop).collect(),
            ..Way::default()
        }
    }

    #[test]
    fn every_node_gets_the_same_share() {
        for (ways, expected) in [
            (&[way(&[(1, 1)])][..], &[(1, 1)][..]),
            (&[way(&[(2, 1)]), way(&[(1, 1)])], &[(1, 1), (2, 1)]),
            // Two gateways to one node, one to the other.
            (
                &[way(&[(1, 1), (2, 1)]), way(&[(3, 1)])],
                &[(1, 1), (2, 1), (3, 2)],
            ),
            (
                &[way(&[(1, 3), (2, 1)]), way(&[(3, 1)])],
                &[(1, 3), (2, 1), (3, 4)],
            ),
            // Two nodes behind one gateway, one behind another.
            (
                &[way(&[(1, 1)]), way(&[(1, 1)]), way(&[(2, 1)])],
                &[(1, 2), (2, 1)],
            ),
            // The same for all comes out as one each.
            (&[way(&[(1, 7)]), way(&[(2, 5)])], &[(1, 1), (2, 1)]),
            // One way of the host's own with weights is left as it is.
            (&[way(&[(1, 2), (2, 4)])], &[(1, 2), (2, 4)]),
            // More than the kernel takes.
            (
                &[way(&[(1, 256), (2, 1)]), way(&[(3, 256), (4, 3)])],
                &[(1, 256), (2, 1), (3, 254), (4, 2)],
            ),
        ] {
            let ways: Vec<&Way> = ways.iter().collect();
            assert_eq!(equal_shares(&ways), way(expected).next_hops);
        }
    }

    #[test]
    fn the_order_of_the_ways_makes_no_difference() {
        let ways = [way(&[(1, 1), (2, 3)]), way(&[(3, 1)]), way(&[(2, 2)])];
        let all: Vec<&Way> = ways.iter().collect();
        let reversed: Vec<&Way> = ways.iter().rev().collect();
        assert_eq!(equal_shares(&all), equal_shares(&reversed));
    }
}
