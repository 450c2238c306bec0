//! Sets of addresses as merged ranges: what is taken, what is reserved.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::pool::number;

/// A set of addresses of both families, as disjoint ranges for quick search.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First and last address, ascending and disjoint.
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Ranges {
    /// The last address of the range that overlaps `net`.
    pub(crate) fn end_of_overlap(&self, net: IpNet) -> Option<u128> {
        self.overlapping(net).map(|(_, end)| end)
    }

    /// The last address of the range that has all of `net`.
    pub(crate) fn end_of_cover(&self, net: IpNet) -> Option<u128> {
        let (first, last) = bounds(net);
        self.overlapping(net)
            .filter(|(begin, end)| *begin <= first && last <= *end)
            .map(|(_, end)| end)
    }

    fn overlapping(&self, net: IpNet) -> Option<(u128, u128)> {
        let ranges = match net {
            IpNet::V4(_) => &self.v4,
            IpNet::V6(_) => &self.v6,
        };
        let (first, last) = bounds(net);
        let nearest = ranges.partition_point(|(_, end)| *end < first);
        ranges.get(nearest).filter(|(begin, _)| *begin <= last).copied()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Whether `net` overlaps one of them.
    #[must_use]
    pub fn overlaps(&self, net: IpNet) -> bool {
        self.end_of_overlap(net).is_some()
    }

    /// Whether all of `net` is in it.
    #[must_use]
    pub fn covers(&self, net: IpNet) -> bool {
        self.end_of_cover(net).is_some()
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.overlaps(IpNet::from(address))
    }

    /// How many addresses of `net` are in it.
    #[must_use]
    pub fn count_in(&self, net: IpNet) -> u128 {
        let ranges = match net {
            IpNet::V4(_) => &self.v4,
            IpNet::V6(_) => &self.v6,
        };
        let (first, last) = bounds(net);
        ranges
            .iter()
            .filter_map(|(begin, end)| {
                let (begin, end) = ((*begin).max(first), (*end).min(last));
                Some(end.checked_sub(begin)?.saturating_add(1))
            })
            .fold(0, u128::saturating_add)
    }
}

impl FromIterator<IpNet> for Ranges {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut all = Self::default();
        for net in nets {
            match net {
                IpNet::V4(_) => all.v4.push(bounds(net)),
                IpNet::V6(_) => all.v6.push(bounds(net)),
            }
        }
        for ranges in [&mut all.v4, &mut all.v6] {
            ranges.sort_unstable();
            ranges.dedup_by(|next, kept| {
                let touches = next.0 <= kept.1.saturating_add(1);
                if touches {
                    kept.1 = kept.1.max(next.1);
                }
                touches
            });
        }
        all
    }
}

/// First and last address of a range, as numbers.
pub(crate) fn bounds(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn neighbours_are_one_range_and_families_are_apart() {
        let ranges = Ranges::from_iter([net("10.0.0.0/25"), net("10.0.0.128/25"), net("fd00::/120")]);
        assert!(ranges.covers(net("10.0.0.0/24")) && !ranges.covers(net("10.0.0.0/23")));
        assert!(ranges.overlaps(net("10.0.0.0/8")) && !ranges.overlaps(net("11.0.0.0/8")));
        assert!(
            ranges.contains("fd00::ff".parse().unwrap()) && !ranges.contains("fd00::100".parse().unwrap())
        );
    }

    #[test]
    fn addresses_are_counted_once_however_often_they_are_named() {
        let ranges = Ranges::from_iter([net("10.0.0.0/30"), net("10.0.0.1/32"), net("10.0.1.0/24")]);
        assert_eq!(ranges.count_in(net("10.0.0.0/24")), 4);
        assert_eq!(ranges.count_in(net("10.0.0.0/16")), 260);
        assert_eq!(ranges.count_in(net("fd00::/64")), 0);
        assert_eq!(Ranges::from_iter([net("::/0")]).count_in(net("::/0")), u128::MAX);
    }
}
