//! What the control loop does not know of the host, and what is wrong with it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};

use super::{Check, Finding, Fix};
use crate::dataplane::{Nftables, iptables};
use crate::ruleset::Ruleset;
use crate::uapi::{self, ClockState};

/// Where the kernel says how many connections it tracks, and how many it may (nf_conntrack-sysctl.rst).
const CONNTRACK: &str = "/proc/sys/net/netfilter";

/// Where the kernel counts what it drops (snmp_counter.rst).
const NETSTAT: &str = "/proc/net/netstat";

/// Where the runtime looks for network plugins; it takes the first file by name.
const PLUGINS: &str = "/etc/cni/net.d";

/// The table of tracked connections is called full from here, in percent.
const FULL_PERCENT: u64 = 90;

/// Whether packets that cross a bridge pass the filter of iptables (nf_conntrack-sysctl.rst; br_netfilter).
const BRIDGE: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A folder that is there while the module of IPIP is.
const IPIP_MODULE: &str = "/sys/module/ipip";

/// The address of the API server's service, which the kubelet gives to each container.
const SERVICE: &str = "KUBERNETES_SERVICE_HOST";

/// How long the counters of packet filters are watched.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// A port to which nothing is sent (RFC 863).
const DISCARD: u16 = 9;

/// What was found on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Connections tracked, and the most that may be; none where the kernel tracks none.
    pub conntrack: Option<(u64, u64)>,
    /// Packets that the reverse-path filter has dropped since the start of this host, on all links.
    pub reverse_path_drops: u64,
    /// The configurations of network plugins, in the order of their names.
    pub plugins: Vec<CniConfiguration>,
    /// The rules of all packet filters but our own, and again a moment later.
    pub rules: (Ruleset, Ruleset),
    /// Packets that cross a bridge pass the filter of iptables.
    pub bridge_calls_iptables: bool,
    /// The kernel has loaded the module of IPIP.
    pub has_ipip: bool,
    /// The largest packet that the kernel believes a way to take, in bytes, by the address of a node.
    pub path_mtu: BTreeMap<Ipv4Addr, u32>,
    /// An address of the range of services, where this is a container of Kubernetes.
    pub service: Option<IpAddr>,
    /// What the kernel knows of its clock.
    pub clock: Option<ClockState>,
}

/// A configuration of a network plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfiguration {
    /// The file's name.
    pub file: String,
    /// Whether it names Culvert's plugin.
    pub is_ours: bool,
}

/// The files that are read.
struct Paths<'a> {
    conntrack: &'a Path,
    netstat: &'a Path,
    plugins: &'a Path,
    bridge: &'a Path,
}

impl Host {
    /// Looks at what can be looked at, for half a second; what cannot is left out. `nodes` are those whose ways are asked
    /// for.
    pub async fn look(nodes: impl IntoIterator<Item = IpAddr>) -> Self {
        let before = rules().await;
        tokio::time::sleep(BETWEEN_LOOKS).await;
        Self {
            rules: (before, rules().await),
            path_mtu: nodes.into_iter().filter_map(path_mtu).collect(),
            has_ipip: Path::new(IPIP_MODULE).exists(),
            service: std::env::var(SERVICE).ok().and_then(|text| text.parse().ok()),
            clock: uapi::clock_state().ok(),
            ..Self::read_from(&Paths {
                conntrack: Path::new(CONNTRACK),
                netstat: Path::new(NETSTAT),
                plugins: Path::new(PLUGINS),
                bridge: Path::new(BRIDGE),
            })
        }
    }

    fn read_from(paths: &Paths<'_>) -> Self {
        let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse().ok();
        let conntrack = |name: &str| number(&paths.conntrack.join(name));
        let netstat = fs::read_to_string(paths.netstat).unwrap_or_default();
        Self {
            reverse_path_drops: counter(&netstat, "IPReversePathFilter").unwrap_or(0),
            conntrack: conntrack("nf_conntrack_count").zip(conntrack("nf_conntrack_max")),
            plugins: configurations(paths.plugins),
            bridge_calls_iptables: number(paths.bridge).unwrap_or(0) != 0,
            ..Self::default()
        }
    }
}

/// The rules of both sides of the kernel that have any.
async fn rules() -> Ruleset {
    let mut chains = iptables().unwrap_or_default();
    if let Ok(mut nftables) = Nftables::open() {
        chains.extend(nftables.ruleset().await.unwrap_or_default());
    }
    Ruleset { chains }
}

/// What the kernel believes the way to a node to take: the least of its links, routes, and what routers have told it. A
/// socket that is connected knows; nothing is sent.
fn path_mtu(node: IpAddr) -> Option<(Ipv4Addr, u32)> {
    let IpAddr::V4(node) = node else { return None };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((node, DISCARD)).ok()?;
    let mtu = getsockopt(&socket, sockopt::IpMtu).ok()?;
    Some((node, u32::try_from(mtu).ok()?))
}

/// A counter of /proc/net/netstat: there is a line with the names of a group, and one with their values below it.
fn counter(netstat: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = netstat.lines().collect();
    let groups = lines.chunks_exact(2);
    let mut found = groups.filter_map(|group| {
        let [names, values] = group else { return None };
        let at = names.split_whitespace().position(|known| known == name)?;
        values.split_whitespace().nth(at)?.parse().ok()
    });
    found.next()
}

/// libcni: `.conf`, `.conflist` and `.json` count, in the order of their names.
fn configurations(folder: &Path) -> Vec<CniConfiguration> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.filter_map(|entry| {
        let path = entry.path();
        let kind = path.extension()?.to_str()?;
        if !["conf", "conflist", "json"].contains(&kind) {
            return None;
        }
        let text = fs::read_to_string(&path).ok()?;
        Some(CniConfiguration {
            file: path.file_name()?.to_string_lossy().into_owned(),
            is_ours: text.contains("\"culvert-cni\""),
        })
    });
    let mut all: Vec<CniConfiguration> = named.collect();
    all.sort_by(|a, b| a.file.cmp(&b.file));
    all
}

/// Another plugin is before ours. Where ours is not installed at all, this node gets its pods some other way.
pub(super) fn plugin(host: &Host) -> Vec<Finding> {
    let (Some(first), Some(ours)) = (
        host.plugins.first(),
        host.plugins.iter().find(|configuration| configuration.is_ours),
    ) else {
        return Vec::new();
    };
    if first.is_ours {
        return Vec::new();
    }
    vec![Finding {
        check: Check::Plugin,
        fix: None,
        finding: format!("another network plugin comes before Culvert's: {}", first.file),
        evidence: format!("in {PLUGINS} {} sorts before {}", first.file, ours.file),
        consequence: "new pods get their addresses from that one, and Culvert routes none of them".to_owned(),
        cure: format!(
            "put the other plugin aside: mv {PLUGINS}/{file} {PLUGINS}/{file}.disabled",
            file = first.file
        ),
    }]
}

/// The kernel drops the first packet of a connection that it cannot track.
pub(super) fn conntrack(host: &Host) -> Vec<Finding> {
    let Some((count, max)) = host.conntrack else {
        return Vec::new();
    };
    // In 128 bits nothing overflows.
    let is_full = max > 0 && u128::from(count) * 100 >= u128::from(max) * u128::from(FULL_PERCENT);
    if !is_full {
        return Vec::new();
    }
    let fix = Fix::sysctl(&["net", "netfilter", "nf_conntrack_max"], max.saturating_mul(2));
    vec![Finding {
        check: Check::Conntrack,
        finding: "the table of tracked connections is nearly full".to_owned(),
        evidence: format!("{count} of {max} (nf_conntrack_count, nf_conntrack_max)"),
        consequence: "the kernel drops packets of new connections, of pods and of the host".to_owned(),
        cure: fix.command(),
        fix: Some(fix),
    }]
}

/// Leases, certificates and logs go by the clock; a machine without Kubernetes has neither of the first two.
pub(super) fn clock(host: &Host) -> Vec<Finding> {
    let Some(clock) = host
        .clock
        .filter(|clock| host.service.is_some() && !clock.synchronized)
    else {
        return Vec::new();
    };
    vec![Finding {
        check: Check::Clock,
        fix: None,
        finding: "nobody keeps the clock of this host in step".to_owned(),
        evidence: format!(
            "the kernel says that it is not synchronized, and may be wrong by {} s or more (adjtimex)",
            clock.most_error / 1_000_000
        ),
        consequence:
            "certificates may look expired or not yet valid, and events of this node are dated wrongly"
                .to_owned(),
        cure: "start chronyd or systemd-timesyncd on the host: timedatectl set-ntp true".to_owned(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_read_in_the_order_of_the_runtime() {
        let folder = tempfile::tempdir().unwrap();
        let (proc, net_d) = (folder.path().join("proc"), folder.path().join("net.d"));
        fs::create_dir_all(&proc).unwrap();
        fs::create_dir_all(&net_d).unwrap();
        let netstat = folder.path().join("netstat");
        let bridge = folder.path().join("bridge");
        let paths = Paths {
            conntrack: &proc,
            netstat: &netstat,
            plugins: &net_d,
            bridge: &bridge,
        };
        assert_eq!(Host::read_from(&paths), Host::default());
        fs::write(&bridge, "1\n").unwrap();
        let counters =
            "TcpExt: SyncookiesSent IPReversePathFilter\nTcpExt: 1 7\nIpExt: InNoRoutes\nIpExt: 3\n";
        fs::write(&netstat, counters).unwrap();
        fs::write(proc.join("nf_conntrack_count"), "95\n").unwrap();
        fs::write(proc.join("nf_conntrack_max"), "100\n").unwrap();
        fs::write(
            net_d.join("20-culvert.conflist"),
            r#"{"plugins": [{"type": "culvert-cni"}]}"#,
        )
        .unwrap();
        fs::write(
            net_d.join("10-calico.conflist"),
            r#"{"plugins": [{"type": "calico"}]}"#,
        )
        .unwrap();
        fs::write(net_d.join("00-calico.conflist.bak"), "").unwrap();
        let host = Host::read_from(&paths);
        assert_eq!((host.conntrack, host.reverse_path_drops), (Some((95, 100)), 7));
        assert!(host.bridge_calls_iptables);
        let found = plugin(&host);
        assert_eq!(
            found[0].finding,
            "another network plugin comes before Culvert's: 10-calico.conflist"
        );
        let full = conntrack(&host);
        assert_eq!(full[0].cure, "sysctl -w net.netfilter.nf_conntrack_max=200");
    }

    #[test]
    fn a_clock_that_nobody_keeps_is_found_where_kubernetes_is() {
        let state = |synchronized| {
            Some(ClockState {
                synchronized,
                most_error: 16_000_000,
            })
        };
        let mut host = Host {
            clock: state(false),
            service: Some("10.96.0.1".parse().unwrap()),
            ..Host::default()
        };
        assert!(
            clock(&host)[0].evidence.contains("wrong by 16 s"),
            "{:#?}",
            clock(&host)
        );
        host.service = None;
        assert_eq!(clock(&host), vec![]);
        host.service = Some("10.96.0.1".parse().unwrap());
        host.clock = state(true);
        assert_eq!(clock(&host), vec![]);
    }

    #[test]
    fn room_in_the_table_and_our_plugin_in_front_are_well() {
        let ours = CniConfiguration {
            file: "10-culvert.conflist".to_owned(),
            is_ours: true,
        };
        let other = CniConfiguration {
            file: "99-loopback.conf".to_owned(),
            is_ours: false,
        };
        let host = Host {
            conntrack: Some((89, 100)),
            plugins: vec![ours, other.clone()],
            ..Host::default()
        };
        assert_eq!((plugin(&host), conntrack(&host)), (vec![], vec![]));
        let without_ours = Host {
            plugins: vec![other],
            conntrack: Some((0, 0)),
            ..Host::default()
        };
        assert_eq!(
            (plugin(&without_ours), conntrack(&without_ours)),
            (vec![], vec![])
        );
    }
}
