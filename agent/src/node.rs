//! This node: the addresses it is known by, and its Node object.

mod address;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use culvert_bgp::id::Asn;
use ipnet::{Ipv4Net, Ipv6Net};
use tracing::field::display;
use tracing::info;

use crate::api::{Node, Resource, annotation};
use crate::datastore::{self, Datastore, DatastoreError};

pub use address::{AddressError, Candidate, advertised_address, advertised_address_v6, candidates};

/// What a node says of itself to the others, in annotations of its Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// The advertised address.
    pub address: Option<Ipv4Net>,
    /// That of IPv6.
    pub address_v6: Option<Ipv6Net>,
    /// The AS number, where the node was given one of its own.
    pub as_number: Option<Asn>,
    /// The address of its tunnel device.
    pub tunnel_address: Option<Ipv4Addr>,
}

impl Announcement {
    /// The annotations of it that `node` does not have yet.
    fn missing_in(&self, node: &Node) -> BTreeMap<String, Option<String>> {
        let values = [
            (annotation::IPV4_ADDRESS, self.address.map(|a| a.to_string())),
            (annotation::IPV6_ADDRESS, self.address_v6.map(|a| a.to_string())),
            (annotation::AS_NUMBER, self.as_number.map(|a| a.to_string())),
            (
                annotation::IPIP_TUNNEL_ADDRESS,
                self.tunnel_address.map(|a| a.to_string()),
            ),
        ];
        let there = &node.metadata.annotations;
        let missing = values
            .into_iter()
            .filter(|(name, value)| value.is_some() && there.get(*name) != value.as_ref());
        missing.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What becomes of a Node object that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is created: the node is new.
    Create,
    /// It stays away: somebody gave the node up while its agent ran.
    Leave,
}

/// Publishes `announcement` in the Node object of this name, and touches nothing else in it. What is published already is
/// not written again.
///
/// # Errors
/// Those of the datastore; [`DatastoreError::NoNode`] where nobody but the cluster makes Node objects.
pub async fn publish(
    store: &Arc<dyn Datastore>,
    name: &str,
    announcement: &Announcement,
    missing: Missing,
) -> Result<(), DatastoreError> {
    let found: Option<Node> = datastore::get(store.as_ref(), name).await?;
    let node = match found {
        Some(node) => node,
        None if missing == Missing::Leave => return Ok(()),
        None if !store.makes_nodes() => {
            return Err(DatastoreError::NoNode {
                name: name.to_owned(),
            });
        }
        None => {
            let node = Node::named(name);
            match store.create(node.clone().into_object()).await {
                // That somebody else was first is as good.
                Ok(_) | Err(DatastoreError::AlreadyExists { .. }) => node,
                Err(error) => return Err(error),
            }
        }
    };
    let annotations = announcement.missing_in(&node);
    if annotations.is_empty() {
        return Ok(());
    }
    store.annotate(&node.key(), &annotations).await?;
    let (address, address_v6, tunnel) = (
        announcement.address.map(display),
        announcement.address_v6.map(display),
        announcement.tunnel_address.map(display),
    );
    info!(node = name, address, address_v6, tunnel, "node published");
    Ok(())
}
