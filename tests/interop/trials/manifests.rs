//! The agent's side of the terms: resources of Calico, as an operator writes them.

use std::net::{IpAddr, Ipv4Addr};

use harness::pair;

use crate::daemon::{THEIR_COMMUNITY, Terms};

/// The community that our block is advertised with, where routes carry communities.
pub(super) const OUR_COMMUNITY: &str = "64512:100";

/// The agent's IPv6 block, where the session is one of IPv6.
pub(super) const OUR_BLOCK_6: &str = "fd65:1::/122";

/// A second client of the agent as route reflector, or a second router.
pub(super) const SECOND_CLIENT: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 3);

/// The cluster: this node, the daemon as another node, and a pool around both blocks. The daemon is a peer of the mesh,
/// unless a BGPPeer says more of it.
pub(crate) fn manifests(terms: &Terms) -> String {
    let ours = pair::OUR_ADDRESS;
    let asn = terms.our_asn;
    let advertised = if terms.community {
        format!("  prefixAdvertisements:\n  - cidr: 10.65.0.0/16\n    communities: [\"{OUR_COMMUNITY}\"]\n")
    } else {
        String::new()
    };
    let mut annotations = String::new();
    if terms.agent_reflects {
        annotations += "    projectcalico.org/RouteReflectorClusterID: 224.0.0.1\n";
    }
    if terms.ipv6 {
        annotations += &format!("    projectcalico.org/IPv6Address: {}/64\n", pair::OUR_ADDRESS_6);
    }
    if !annotations.is_empty() {
        annotations.insert_str(0, "  annotations:\n");
    }
    format!(
        "apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: pods
spec:
  cidr: 10.65.0.0/16
  blockSize: 26
  ipipMode: Never
---
apiVersion: crd.projectcalico.org/v1
kind: BGPConfiguration
metadata:
  name: default
spec:
  asNumber: {asn}
{advertised}---
apiVersion: v1
kind: Node
metadata:
  name: ours
{annotations}status:
  addresses:
  - type: InternalIP
    address: {ours}
{node}{ipv6}{secret}{filter}{peer}",
        node = their_node(terms),
        ipv6 = ipv6(terms),
        secret = secret(terms),
        filter = filter(terms),
        peer = peer(terms),
    )
}

/// A router is no node.
fn their_node(terms: &Terms) -> String {
    if terms.is_router {
        return String::new();
    }
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: theirs
  annotations:
    projectcalico.org/IPv4Address: {}/24
    projectcalico.org/IPv6Address: {}/64
",
        pair::THEIR_ADDRESS,
        pair::THEIR_ADDRESS_6,
    )
}

/// A pool of IPv6, and a block in it that is the agent's.
fn ipv6(terms: &Terms) -> String {
    if !terms.ipv6 {
        return String::new();
    }
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: pods-6
spec:
  cidr: fd65::/16
  blockSize: 122
---
apiVersion: crd.projectcalico.org/v1
kind: BlockAffinity
metadata:
  name: ours-fd65-1---122
spec:
  cidr: {OUR_BLOCK_6}
  node: ours
  state: confirmed
  deleted: \"false\"
"
    )
}

fn secret(terms: &Terms) -> String {
    terms
        .our_password
        .or(terms.password)
        .map_or_else(String::new, |password| {
            format!(
                "---
apiVersion: v1
kind: Secret
metadata:
  name: bgp
  namespace: default
stringData:
  theirs: {password}
"
            )
        })
}

fn filter(terms: &Terms) -> String {
    if !terms.rejects_community {
        return String::new();
    }
    let (asn, value) = THEIR_COMMUNITY;
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: BGPFilter
metadata:
  name: without-community
spec:
  importV4:
  - communities:
      values: [\"{asn}:{value}\"]
    action: Reject
"
    )
}

fn peer(terms: &Terms) -> String {
    let mut more = String::new();
    if terms.password.is_some() {
        more += "  password:\n    secretKeyRef:\n      name: bgp\n      key: theirs\n";
    }
    if terms.ttl_security {
        more += "  ttlSecurity: 1\n";
    }
    if terms.rejects_community {
        more += "  filters: [without-community]\n";
    }
    let mut annotations = String::new();
    if terms.add_path {
        annotations += "    culvert/add-path: both\n";
    }
    if let Some(most) = terms.max_prefixes {
        annotations += &format!("    culvert/max-prefixes: \"{most}\"\n");
    }
    if !annotations.is_empty() {
        annotations.insert_str(0, "  annotations:\n");
    }
    // A route reflector is out of the mesh.
    let in_mesh = !terms.agent_reflects && !terms.is_router && terms.our_asn == terms.their_asn;
    if more.is_empty() && annotations.is_empty() && !terms.community && in_mesh {
        return String::new();
    }
    let manifest = |name: &str, address: IpAddr, asn: u32, annotations: &str, more: &str| {
        format!(
            "---
apiVersion: crd.projectcalico.org/v1
kind: BGPPeer
metadata:
  name: {name}
{annotations}spec:
  node: ours
  peerIP: \"{address}\"
  asNumber: {asn}
{more}"
        )
    };
    let theirs = manifest(
        "theirs",
        terms.their_address(),
        terms.their_asn,
        &annotations,
        &more,
    );
    if terms.agent_reflects {
        theirs + &manifest("second", SECOND_CLIENT.into(), terms.our_asn, "", "")
    } else if terms.is_router {
        theirs + &manifest("second", SECOND_CLIENT.into(), terms.their_asn, "", "")
    } else {
        theirs
    }
}
