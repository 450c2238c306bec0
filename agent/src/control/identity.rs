//! How this node is known to the others, found once at the start.

use culvert_bgp::id::{Asn, RouterId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use super::AgentError;
use crate::api::{BgpConfiguration, IpPool, Node, Object, Resource};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::datastore::last_good::LastGoodCopy;
use crate::datastore::{self, Datastore, DatastoreError};
use crate::fib::Snapshot;
use crate::node::{self, Announcement};
use crate::peering::{self, Endpoint, Local, Speaking};

/// How this node is known to the others.
pub(super) struct Identity {
    pub(super) address: Ipv4Net,
    pub(super) router_id: RouterId,
    /// Its AS number.
    pub(super) asn: Asn,
    /// The AS number that the configuration gives it for its own.
    pub(super) own_asn: Option<Asn>,
    /// The port that the configuration gives it.
    pub(super) port: Option<u16>,
    /// Its IPv6 address, where that is used.
    pub(super) address_v6: Option<Ipv6Net>,
    /// Where its speaker listens at first.
    pub(super) endpoint: Endpoint,
}

/// The objects that it rests on.
struct Basis {
    node: Option<Node>,
    pools: Vec<IpPool>,
    bgp: Vec<BgpConfiguration>,
}

impl Basis {
    async fn of_store(store: &dyn Datastore, name: &str) -> Result<Self, DatastoreError> {
        Ok(Self {
            node: datastore::get(store, name).await?,
            pools: datastore::list(store).await?,
            bgp: datastore::list(store).await?,
        })
    }

    fn of_copy(copy: &LastGoodCopy, name: &str) -> Self {
        let mut basis = Self {
            node: None,
            pools: Vec::new(),
            bgp: Vec::new(),
        };
        for object in copy.objects() {
            match object {
                Object::Node(node) if node.metadata.name == name => basis.node = Some(node),
                Object::IpPool(pool) => basis.pools.push(pool),
                Object::BgpConfiguration(bgp) => basis.bgp.push(bgp),
                _ => {}
            }
        }
        basis
    }

    /// A datastore without a pool says nothing: it may just have been emptied, and this node be written anew since.
    fn says_nothing(&self) -> bool {
        self.pools.is_empty()
    }

    /// From the datastore, or from the copy where it is away by the `deadline` or says nothing.
    async fn find(
        store: &dyn Datastore,
        name: &str,
        copy: Option<&LastGoodCopy>,
        deadline: Instant,
    ) -> Result<Self, DatastoreError> {
        let read = Self::of_store(store, name);
        let Some(copy) = copy else {
            return read.await;
        };
        match timeout_at(deadline, read).await {
            Ok(Ok(basis)) if !basis.says_nothing() => Ok(basis),
            Ok(Ok(read)) => {
                let basis = Self::of_copy(copy, name);
                Ok(Self {
                    node: basis.node.or(read.node),
                    ..basis
                })
            }
            Ok(Err(error)) => {
                warn!(%error, "the datastore cannot be read: this node is found in the last good copy");
                Ok(Self::of_copy(copy, name))
            }
            Err(_) => {
                warn!("the datastore does not answer: this node is found in the last good copy");
                Ok(Self::of_copy(copy, name))
            }
        }
    }
}

impl Identity {
    /// What is published of it.
    pub(super) fn announcement(&self) -> Announcement {
        Announcement {
            address: Some(self.address),
            address_v6: self.address_v6,
            as_number: self.own_asn,
            tunnel_address: None,
        }
    }

    /// Finds it; in the copy, where there is one and the datastore cannot be read by the `deadline`.
    pub(super) async fn find(
        config: &Config,
        store: &dyn Datastore,
        kernel: &Snapshot,
        copy: Option<&LastGoodCopy>,
        deadline: Instant,
    ) -> Result<Self, AgentError> {
        let name = config.node_name.as_str();
        let Basis { node, pools, bgp } = Basis::find(store, name, copy, deadline).await?;
        let node = node.unwrap_or_else(|| Node::named(name));
        let uses_v6 = pools.iter().any(|pool| pool.spec.gives_ipv6());
        let pools: Vec<IpNet> = pools.iter().map(|pool| pool.spec.cidr).collect();
        let address = node::advertised_address(config.node.address, &node, kernel, &pools)?;
        // A fault of IPv6 costs IPv6: the loop tells it, and takes the address up as soon as it is known.
        let address_v6 = node::advertised_address_v6(config.node.address_v6, &node, kernel, &pools, uses_v6)
            .inspect_err(|error| error!(%error, "this node has no IPv6 address to be known by"))
            .unwrap_or_default();
        let unicast = !address.addr().is_multicast() && !address.addr().is_broadcast();
        let router_id = RouterId::new(address.addr()).filter(|_| unicast);
        let router_id = router_id.ok_or(AgentError::NotUnicast { address })?;
        let mut cluster = Cluster::default();
        for bgp in bgp {
            cluster.upsert(&bgp.into_object());
        }
        let own_asn = config.node.as_number.and_then(|number| Asn::new(number.get()));
        let published = node.as_number();
        let asn = own_asn
            .or(published)
            .unwrap_or_else(|| cluster.default_as_number());
        let port = config
            .bgp
            .listen_port
            .and_then(|port| u16::try_from(port.get()).ok());
        let speaking = Speaking {
            asn,
            address_v6: address_v6.map(|net| net.addr()),
            port,
            ..Speaking::default()
        };
        let local = Local {
            node: name,
            address: address.addr(),
            speaking: &speaking,
        };
        let endpoint = peering::endpoint(local, &cluster);
        let shown_v6 = address_v6.map(tracing::field::display);
        info!(%address, address_v6 = shown_v6, %asn, port = endpoint.port, "this node");
        Ok(Self {
            address,
            router_id,
            asn,
            own_asn,
            port,
            address_v6,
            endpoint,
        })
    }
}
