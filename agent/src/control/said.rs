//! What of the plan is worth a word in the log, and was said already: each thing is said once.

use tracing::{error, info};

use crate::cluster::{Cluster, SharedAddress};
use crate::desired::{Plan, Unpinned};
use crate::reconcile::Actual;

/// What was said of the plans so far.
#[derive(Default)]
pub(super) struct Said {
    unpinned: Vec<Unpinned>,
    /// The plan has forwarding of IPv6 in it.
    forwards_v6: bool,
    shared_addresses: Vec<SharedAddress>,
}

impl Said {
    /// Says what is new since the last time.
    pub(super) fn say_new(&mut self, plan: &Plan, cluster: &Cluster, actual: &Actual) {
        self.say_unpinned(&plan.unpinned);
        self.say_forwarding_v6(plan.desired.forwarding_v6, actual);
        self.say_shared_addresses(cluster.shared_addresses());
    }

    /// Says of each that it keeps encapsulated packets from their source.
    fn say_unpinned(&mut self, now: &[Unpinned]) {
        for new in now.iter().filter(|u| !self.unpinned.contains(u)) {
            error!(problem = %new, "source not pinned");
        }
        self.unpinned = now.to_vec();
    }

    /// Says what it means for the host that IPv6 is forwarded already when that is wanted.
    fn say_forwarding_v6(&mut self, wanted: bool, actual: &Actual) {
        if wanted && !self.forwards_v6 && actual.forwarding_v6() {
            info!(
                "net.ipv6.conf.all.forwarding is 1 already: a link that is to have routes from router advertisements \
                 needs accept_ra=2"
            );
        }
        self.forwards_v6 = wanted;
    }

    /// Says of each node that it is left out, since another has its address.
    fn say_shared_addresses(&mut self, now: Vec<SharedAddress>) {
        for new in now.iter().filter(|s| !self.shared_addresses.contains(s)) {
            let SharedAddress {
                address,
                kept,
                left_out,
            } = new;
            error!(%address, kept, left_out, "two nodes advertise one address; give one of them another");
        }
        self.shared_addresses = now;
    }
}
