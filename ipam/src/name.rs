//! The names of Calico's IPAM objects and handles, and the labels of affinities. Both sides of a shared cluster must find an object under the same name, so that
//! creating it twice fails.

use std::collections::BTreeMap;

use ipnet::IpNet;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;

/// From this length on Calico shortens a name; Kubernetes allows 253.
const TOO_LONG: usize = 253;

/// Digits of the hash that stands for what was cut off.
const HASH_DIGITS: usize = 11;

/// The name of an IPAMBlock: its range with `.`, `:` and `/` as dashes, `10-244-0-0-26`.
#[must_use]
pub fn block(cidr: IpNet) -> String {
    cidr.to_string().replace(['.', ':', '/'], "-")
}

/// The name of a BlockAffinity: `<node>-<block name>`. Where that would be 253 characters or more, the node's part is cut
/// and 11 digits of a hash of the whole are added, as Calico does.
#[must_use]
pub fn affinity(node: &str, cidr: IpNet) -> String {
    let block = block(cidr);
    let name = format!("{node}-{block}");
    if name.len() < TOO_LONG {
        return name;
    }
    let hash = Sha256::digest(format!("{node}+{block}"));
    let digits: String = hash
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .take(HASH_DIGITS)
        .filter_map(|d| char::from_digit(u32::from(d), 16))
        .collect();
    // Two dashes and the hash come on top of the node's part and the block's name.
    let mut room = (TOO_LONG - 1).saturating_sub(block.len() + HASH_DIGITS + 2);
    while !node.is_char_boundary(room) {
        room -= 1;
    }
    let kept = node.get(..room).unwrap_or(node);
    format!("{kept}-{block}-{digits}")
}

/// The name of an IPAMHandle: the handle in lower case.
#[must_use]
pub fn handle(id: &str) -> String {
    id.to_lowercase()
}

/// The handle of a pod's addresses: the network's name (`k8s-pod-network` unless configured) and the container's ID.
#[must_use]
pub fn container_handle(network: &str, container: &str) -> String {
    format!("{network}.{container}")
}

/// The handle that older versions of Calico gave a pod's addresses; released with the container's when a pod is removed.
#[must_use]
pub fn workload_handle(namespace: &str, pod: &str) -> String {
    format!("{namespace}.{pod}")
}

/// The handle of the address of a node's IPIP device.
#[must_use]
pub fn ipip_tunnel_handle(node: &str) -> String {
    format!("ipip-tunnel-addr-{node}")
}

/// Label of an affinity: the node's name, hashed, because names can be longer than labels may be.
pub const HOSTNAME_HASH_LABEL: &str = "projectcalico.org/hostname-hash";
/// Label of an affinity: `host` or `virtual`.
pub const AFFINITY_TYPE_LABEL: &str = "projectcalico.org/affinity-type";
/// Label of an affinity: `4` or `6`.
pub const IP_VERSION_LABEL: &str = "projectcalico.org/ip-version";

/// The labels of an affinity, by which Calico lists those of one host. What lacks them is invisible to it until it upgrades
/// the host at its next start, so that whoever writes an affinity adds them to its metadata.
#[must_use]
pub fn affinity_labels(owner: &str, kind: &str, cidr: IpNet) -> BTreeMap<String, String> {
    let version = match cidr {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    };
    BTreeMap::from([
        (HOSTNAME_HASH_LABEL.to_owned(), hostname_hash(owner)),
        (AFFINITY_TYPE_LABEL.to_owned(), kind.to_owned()),
        (IP_VERSION_LABEL.to_owned(), version.to_owned()),
    ])
}

/// The value of [`HOSTNAME_HASH_LABEL`]: SHA3-256 of the name, in base 32 (RFC 4648 §6) without padding, 52 characters.
#[must_use]
pub fn hostname_hash(name: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = Sha3_256::digest(name);
    let bit = |n: usize| hash.get(n / 8).is_some_and(|byte| byte >> (7 - n % 8) & 1 == 1);
    (0..hash.len() * 8)
        .step_by(5)
        .map(|from| (from..from + 5).fold(0_usize, |digit, n| digit << 1 | usize::from(bit(n))))
        .filter_map(|digit| ALPHABET.get(digit).copied())
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_block_is_named_by_its_range() {
        assert_eq!(block(net("10.244.0.0/26")), "10-244-0-0-26");
        assert_eq!(block(net("fd00:10::40/122")), "fd00-10--40-122");
    }

    #[test]
    fn an_affinity_is_named_by_node_and_block() {
        assert_eq!(
            affinity("node-a.example", net("10.244.0.64/26")),
            "node-a.example-10-244-0-64-26"
        );
    }

    #[test]
    fn a_long_affinity_name_is_cut_and_ends_in_a_hash() {
        let block_name = "10-244-0-64-26";
        let longest = "n".repeat(252 - 1 - block_name.len());
        assert_eq!(affinity(&longest, net("10.244.0.64/26")).len(), 252);
        assert!(affinity(&longest, net("10.244.0.64/26")).ends_with(block_name));

        let node = "n".repeat(longest.len() + 1);
        // printf '%s+%s' "$(printf 'n%.0s' $(seq 238))" 10-244-0-64-26 | sha256sum | cut -c1-11
        let expected = format!(
            "{}-{block_name}-1a3b996f6e6",
            "n".repeat(252 - block_name.len() - 13)
        );
        assert_eq!(affinity(&node, net("10.244.0.64/26")), expected);
    }

    #[test]
    fn two_long_nodes_with_one_beginning_have_two_names() {
        let (a, b) = ("n".repeat(250) + "a", "n".repeat(250) + "b");
        assert_ne!(affinity(&a, net("10.0.0.0/26")), affinity(&b, net("10.0.0.0/26")));
    }

    #[test]
    fn a_node_of_wide_letters_is_cut_between_letters() {
        let name = affinity(&"\u{fc}".repeat(200), net("10.0.0.0/26"));
        assert!(name.len() <= 252, "{name}");
    }

    #[test]
    fn a_handle_is_named_in_lower_case() {
        assert_eq!(handle("k8s-pod-network.ABC"), "k8s-pod-network.abc");
    }

    #[test]
    fn labels_are_those_by_which_calico_lists() {
        // printf node-a | openssl dgst -sha3-256 -binary | base32 | tr -d =
        let hash = "PY3TQE2E3XMTETLM2MJO3UITKPFB27YUJ4T4E5XGPEJON3SM4QAA";
        let labels = affinity_labels("node-a", "host", net("fd00::/122"));
        assert_eq!(labels["projectcalico.org/hostname-hash"], hash);
        assert_eq!(labels["projectcalico.org/affinity-type"], "host");
        assert_eq!(labels["projectcalico.org/ip-version"], "6");
    }
}
