//! Adj-RIB-In: what one peer has announced, as it announced it (RFC 4271 §3.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::Prefix;
use crate::wire::message::{AsSegment, Family, Nlri, PathAttributes};

/// So many paths to one destination are taken from one peer. RFC 7911 §7: more of them cost memory and time.
pub const MAX_PATHS: usize = 64;

/// One route of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    attributes: Arc<PathAttributes>,
    /// Of a session that is gone, and not announced again yet (RFC 4724 §4.2).
    stale: bool,
    /// Not announced again yet since the peer began to tell all its routes once more (RFC 7313 §4).
    unrefreshed: bool,
}

/// The routes of one family.
#[derive(Clone, Debug, Default)]
struct Table {
    routes: BTreeMap<Nlri, Route>,
    stale: usize,
    /// Octets of attributes beyond [`USUAL`] each.
    excess: usize,
}

/// Octets of attributes that a route may have without being counted: 200,000 such routes are 50 MiB.
const USUAL: usize = 256;

/// About how many octets of memory a set of attributes takes beyond [`USUAL`]. Routes that share a set count it each:
/// the sum is a bound, and those who share large ones over many routes are few.
fn excess(attributes: &PathAttributes) -> usize {
    let path = attributes.as_path.segments.iter().map(|segment| {
        let (AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers)) = segment;
        32 + 4 * numbers.len()
    });
    let unknown = attributes.unknown.iter().map(|(_, value)| 32 + value.len());
    let octets = path.sum::<usize>()
        + unknown.sum::<usize>()
        + 4 * attributes.communities.len()
        + 8 * attributes.extended_communities.len()
        + 12 * attributes.large_communities.len()
        + 4 * attributes.cluster_list.len();
    octets.saturating_sub(USUAL)
}

impl Table {
    fn take_where(&mut self, gone: impl Fn(&Route) -> bool) -> Vec<Nlri> {
        let mut taken = Vec::new();
        self.routes.retain(|&nlri, route| {
            let goes = gone(route);
            if goes {
                taken.push(nlri);
                self.stale -= usize::from(route.stale);
                self.excess -= excess(&route.attributes);
            }
            !goes
        });
        taken
    }
}

/// The routes of one peer, whether import accepted them or not.
#[derive(Clone, Debug, Default)]
pub struct AdjRibIn {
    ipv4: Table,
    ipv6: Table,
}

impl AdjRibIn {
    fn table(&self, family: Family) -> &Table {
        if family == Family::IPV4_UNICAST {
            &self.ipv4
        } else {
            &self.ipv6
        }
    }

    fn table_mut(&mut self, family: Family) -> &mut Table {
        if family == Family::IPV4_UNICAST {
            &mut self.ipv4
        } else {
            &mut self.ipv6
        }
    }

    /// Takes an announcement in place of an earlier one (RFC 4271 §9: implicit withdrawal). Says whether the path
    /// differs from what was there.
    pub fn announce(&mut self, nlri: Nlri, attributes: &Arc<PathAttributes>) -> bool {
        let route = Route {
            attributes: Arc::clone(attributes),
            stale: false,
            unrefreshed: false,
        };
        let table = self.table_mut(Family::of(nlri.prefix));
        table.excess += excess(attributes);
        match table.routes.insert(nlri, route) {
            None => true,
            Some(old) => {
                table.stale -= usize::from(old.stale);
                table.excess -= excess(&old.attributes);
                old.attributes != *attributes
            }
        }
    }

    /// Takes a withdrawal. Says whether there was a route.
    pub fn withdraw(&mut self, nlri: Nlri) -> bool {
        let table = self.table_mut(Family::of(nlri.prefix));
        let Some(old) = table.routes.remove(&nlri) else {
            return false;
        };
        table.stale -= usize::from(old.stale);
        table.excess -= excess(&old.attributes);
        true
    }

    /// Puts other attributes on a route, which stays as stale as it is.
    pub fn change(&mut self, nlri: Nlri, attributes: &Arc<PathAttributes>) {
        let table = self.table_mut(Family::of(nlri.prefix));
        if let Some(route) = table.routes.get_mut(&nlri) {
            table.excess += excess(attributes);
            table.excess -= excess(&route.attributes);
            route.attributes = Arc::clone(attributes);
        }
    }

    /// RFC 4724 §4.2: the session is lost, its routes stay for a while.
    pub fn mark_stale(&mut self, family: Family) {
        let table = self.table_mut(family);
        for route in table.routes.values_mut() {
            route.stale = true;
            route.unrefreshed = false;
        }
        table.stale = table.routes.len();
    }

    /// RFC 4724 §4.2: removes what is still stale, and says what that was.
    pub fn sweep_stale(&mut self, family: Family) -> Vec<Nlri> {
        let table = self.table_mut(family);
        if table.stale == 0 {
            return Vec::new();
        }
        table.take_where(|route| route.stale)
    }

    /// RFC 7313 §4: the peer begins to tell all its routes once more.
    pub fn mark_unrefreshed(&mut self, family: Family) {
        for route in self.table_mut(family).routes.values_mut() {
            route.unrefreshed = true;
        }
    }

    /// RFC 7313 §4: removes what the peer has not told again, and says what that was.
    pub fn sweep_unrefreshed(&mut self, family: Family) -> Vec<Nlri> {
        self.table_mut(family).take_where(|route| route.unrefreshed)
    }

    /// Removes all routes of a family, and says what that was.
    pub fn clear(&mut self, family: Family) -> Vec<Nlri> {
        let table = std::mem::take(self.table_mut(family));
        table.routes.into_keys().collect()
    }

    /// Octets of attributes beyond what is usual for a route: a bound of the memory that they take.
    #[must_use]
    pub fn excess(&self) -> usize {
        self.ipv4.excess + self.ipv6.excess
    }

    /// Whether the peer may name another path to a destination: each costs every later decision on it.
    #[must_use]
    pub fn has_room_for(&self, nlri: Nlri) -> bool {
        // Without path identifiers there is one path.
        nlri.path_id == 0
            || self.table(Family::of(nlri.prefix)).routes.contains_key(&nlri)
            || self.paths(nlri.prefix).take(MAX_PATHS).count() < MAX_PATHS
    }

    /// How many routes of a family there are, stale ones included.
    #[must_use]
    pub fn count(&self, family: Family) -> usize {
        self.table(family).routes.len()
    }

    /// How many routes there are, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ipv4.routes.len() + self.ipv6.routes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many of them are stale.
    #[must_use]
    pub fn stale(&self) -> usize {
        self.ipv4.stale + self.ipv6.stale
    }

    /// How many of a family are stale.
    #[must_use]
    pub fn stale_of(&self, family: Family) -> usize {
        self.table(family).stale
    }

    /// The routes, in order of their prefix, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Nlri, &Arc<PathAttributes>)> {
        let tables = self.ipv4.routes.iter().chain(&self.ipv6.routes);
        tables.map(|(&nlri, route)| (nlri, &route.attributes))
    }

    /// The stale routes of a family.
    pub fn iter_stale(&self, family: Family) -> impl Iterator<Item = (Nlri, &Arc<PathAttributes>)> {
        let routes = self.table(family).routes.iter();
        routes
            .filter(|(_, route)| route.stale)
            .map(|(&nlri, route)| (nlri, &route.attributes))
    }

    /// The routes to one destination.
    pub fn paths(&self, prefix: Prefix) -> impl Iterator<Item = (Nlri, &Arc<PathAttributes>)> {
        let (first, last) = (
            Nlri { prefix, path_id: 0 },
            Nlri {
                prefix,
                path_id: u32::MAX,
            },
        );
        let routes = self.table(Family::of(prefix)).routes.range(first..=last);
        routes.map(|(&nlri, route)| (nlri, &route.attributes))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn nlri(path_id: u32) -> Nlri {
        Nlri {
            prefix: Prefix::new("10.65.1.0/26".parse().unwrap()),
            path_id,
        }
    }

    fn attributes(communities: u32) -> Arc<PathAttributes> {
        Arc::new(PathAttributes {
            communities: (0..communities).collect(),
            ..PathAttributes::new(IpAddr::V4(Ipv4Addr::new(172, 18, 0, 11)))
        })
    }

    #[test]
    fn large_attributes_count_as_long_as_their_route_is_there() {
        let mut routes = AdjRibIn::default();
        routes.announce(nlri(1), &attributes(64));
        assert_eq!(routes.excess(), 0, "what is usual does not count");
        routes.announce(nlri(2), &attributes(1064));
        routes.announce(nlri(3), &attributes(64));
        assert_eq!(routes.excess(), 4000);
        routes.change(nlri(3), &attributes(65));
        assert_eq!(routes.excess(), 4004);
        routes.announce(nlri(2), &attributes(164));
        assert_eq!(routes.excess(), 404);
        routes.mark_stale(Family::IPV4_UNICAST);
        routes.announce(nlri(3), &attributes(0));
        assert_eq!(routes.sweep_stale(Family::IPV4_UNICAST), [nlri(1), nlri(2)]);
        assert_eq!(routes.excess(), 0);
    }

    #[test]
    fn a_peer_names_so_many_paths_to_a_destination_and_no_more() {
        let mut routes = AdjRibIn::default();
        for path_id in 1..=64 {
            assert!(routes.has_room_for(nlri(path_id)));
            routes.announce(nlri(path_id), &attributes(0));
        }
        assert!(!routes.has_room_for(nlri(65)));
        assert!(routes.has_room_for(nlri(64)), "another word on one that is there");
    }
}
