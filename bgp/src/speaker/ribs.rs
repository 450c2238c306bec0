//! The routes that all peers share: Loc-RIB, the attributes, and what is told of them.

use std::net::IpAddr;

use super::group::Groups;
use crate::id::Prefix;
use crate::output::{Output, RibChange};
use crate::rib::attributes::AttributeTable;
use crate::rib::decision::Candidate;
use crate::rib::loc::{Change, LocRib};
use crate::transport::Transport;
use crate::wire::message::Nlri;

/// See the module.
#[derive(Debug)]
pub(super) struct Ribs {
    pub(super) loc: LocRib,
    pub(super) attributes: AttributeTable,
    pub(super) groups: Groups,
}

impl Ribs {
    pub(super) fn new(multipath: usize) -> Self {
        Self {
            loc: LocRib::new(multipath.max(1)),
            attributes: AttributeTable::default(),
            groups: Groups::default(),
        }
    }

    /// A path that import let in.
    pub(super) fn insert(&mut self, prefix: Prefix, path: Candidate, transport: &mut Transport) {
        let change = self.loc.insert(prefix, path);
        self.changed(change, transport);
    }

    /// A path of `peer` that is gone, or not let in any more.
    pub(super) fn remove(&mut self, nlri: Nlri, peer: IpAddr, transport: &mut Transport) {
        let change = self.loc.remove(nlri.prefix, peer, nlri.path_id);
        self.changed(change, transport);
    }

    /// Whether this node originates `prefix`.
    pub(super) fn set_local(&mut self, prefix: Prefix, local: bool, transport: &mut Transport) {
        let change = self.loc.set_local(prefix, local);
        self.changed(change, transport);
    }

    fn changed(&mut self, change: Option<Change>, transport: &mut Transport) {
        let Some(change) = change else { return };
        let prefix = change.prefix;
        if let Some(best) = change.next_hops {
            transport.push(Output::RibChange(RibChange { prefix, best }));
        }
        self.groups
            .update(prefix, change.best, &self.loc, &mut self.attributes);
    }
}
