//! What the control loop does not know of the host, and what is wrong with it.

use std::fs;
use std::path::Path;

use super::{Check, Finding};

/// Where the kernel says how many connections it tracks, and how many it may (nf_conntrack-sysctl.rst).
const CONNTRACK: &str = "/proc/sys/net/netfilter";

/// Where the kernel counts what it drops (snmp_counter.rst).
const NETSTAT: &str = "/proc/net/netstat";

/// Where the runtime looks for network plugins; it takes the first file by name.
const PLUGINS: &str = "/etc/cni/net.d";

/// The table of tracked connections is called full from here, in percent.
const FULL_PERCENT: u64 = 90;

/// What was found on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Connections tracked, and the most that may be; none where the kernel tracks none.
    pub conntrack: Option<(u64, u64)>,
    /// Packets that the reverse-path filter has dropped since the start of this host, on all links.
    pub reverse_path_drops: u64,
    /// The configurations of network plugins, in the order of their names.
    pub plugins: Vec<CniConfiguration>,
}

/// A configuration of a network plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfiguration {
    /// The file's name.
    pub file: String,
    /// Whether it names Culvert's plugin.
    pub is_ours: bool,
}

impl Host {
    /// Reads what can be read; what cannot is left out.
    #[must_use]
    pub fn read() -> Self {
        Self::read_from(Path::new(CONNTRACK), Path::new(NETSTAT), Path::new(PLUGINS))
    }

    fn read_from(conntrack: &Path, netstat: &Path, plugins: &Path) -> Self {
        let number = |name: &str| fs::read_to_string(conntrack.join(name)).ok()?.trim().parse().ok();
        let netstat = fs::read_to_string(netstat).unwrap_or_default();
        Self {
            reverse_path_drops: counter(&netstat, "IPReversePathFilter").unwrap_or(0),
            conntrack: number("nf_conntrack_count").zip(number("nf_conntrack_max")),
            plugins: configurations(plugins),
        }
    }
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
    vec![Finding {
        check: Check::Conntrack,
        finding: "the table of tracked connections is nearly full".to_owned(),
        evidence: format!("{count} of {max} (nf_conntrack_count, nf_conntrack_max)"),
        consequence: "the kernel drops packets of new connections, of pods and of the host".to_owned(),
        cure: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}",
            max.saturating_mul(2)
        ),
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
        assert_eq!(Host::read_from(&proc, &netstat, &net_d), Host::default());
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
        let host = Host::read_from(&proc, &netstat, &net_d);
        assert_eq!((host.conntrack, host.reverse_path_drops), (Some((95, 100)), 7));
        let found = plugin(&host);
        assert_eq!(
            found[0].finding,
            "another network plugin comes before Culvert's: 10-calico.conflist"
        );
        let full = conntrack(&host);
        assert_eq!(full[0].cure, "sysctl -w net.netfilter.nf_conntrack_max=200");
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
