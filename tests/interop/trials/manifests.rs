//! The agent's side of the terms: resources of Calico, as an operator writes them.

use harness::pair;

use crate::daemon::{THEIR_COMMUNITY, Terms};

/// The community that our block is advertised with, where routes carry communities.
pub(super) const OUR_COMMUNITY: &str = "64512:100";

/// The cluster: this node, the daemon as another node, and a pool around both blocks. The daemon is a peer of the mesh,
/// unless a BGPPeer says more of it.
pub(crate) fn manifests(terms: &Terms) -> String {
    let (ours, theirs) = (pair::OUR_ADDRESS, pair::THEIR_ADDRESS);
    let asn = terms.our_asn;
    let advertised = if terms.community {
        format!("  prefixAdvertisements:\n  - cidr: 10.65.0.0/16\n    communities: [\"{OUR_COMMUNITY}\"]\n")
    } else {
        String::new()
    };
    let cluster_id = if terms.agent_reflects {
        "  annotations:\n    projectcalico.org/RouteReflectorClusterID: 224.0.0.1\n"
    } else {
        ""
    };
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
{cluster_id}status:
  addresses:
  - type: InternalIP
    address: {ours}
---
apiVersion: v1
kind: Node
metadata:
  name: theirs
  annotations:
    projectcalico.org/IPv4Address: {theirs}/24
{secret}{filter}{peer}",
        secret = secret(terms),
        filter = filter(terms),
        peer = peer(terms),
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
    // A route reflector is out of the mesh.
    let in_mesh = !terms.agent_reflects && terms.our_asn == terms.their_asn;
    if more.is_empty() && !terms.community && in_mesh {
        return String::new();
    }
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: BGPPeer
metadata:
  name: theirs
spec:
  node: ours
  peerIP: {}
  asNumber: {}
{more}",
        terms.their_address(),
        terms.their_asn,
    )
}
