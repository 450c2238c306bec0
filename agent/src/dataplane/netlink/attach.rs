//! What a pod needs of the kernel: a veth pair, its address, and a way out through `169.254.1.1`.
//!
//! As Calico lays it out: the pod's default gateway is a link-local address that no host has; on the host the pod's
//! address is a /32 on the host end. A permanent neighbour entry in the pod stands in for proxy ARP, which would need
//! a route to `169.254.1.1` on the host; proxy ARP is switched on too, for what clears its neighbour table.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::blocking::{Blocking, Failed, Named, links, named_link};
use super::connection::Request;
use super::{decode, encode};
use crate::dataplane::{DataplaneError, Namespace, Refusal, sysctl};
use crate::fib::{
    Address, Link, MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, SCOPE_LINK, SCOPE_UNIVERSE,
};

/// The gateway of every pod.
pub const POD_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The gateway of every pod that has an address of IPv6: what follows from [`HOST_MAC`] (RFC 4291, appendix A).
pub const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);

/// The hardware address of every host end.
pub const HOST_MAC: MacAddress = MacAddress([0xee; 6]);

// linux/rtnetlink.h: RTPROT_BOOT, which `ip route` does not print.
const PROTOCOL_BOOT: u8 = 3;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(
    /// Its bytes in the order of the wire.
    pub [u8; 6],
);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How a pod is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Name of the host end, `cali…`, up to 15 bytes.
    pub host_name: String,
    /// The pod's network namespace.
    pub pod_netns: PathBuf,
    /// Name of the pod's end, `eth0`.
    pub pod_name: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its address of IPv6, if it is to have one.
    pub address_v6: Option<Ipv6Addr>,
    /// Of both ends, in bytes.
    pub mtu: u32,
}

/// A connected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAttached {
    /// The hardware address of the host end.
    pub host_mac: MacAddress,
    /// The hardware address of the pod's end.
    pub pod_mac: MacAddress,
}

/// Connects a pod to the network namespace of the calling thread. A host end of that name left over from before is
/// removed first, so that it can be repeated; if a step fails, all that was made is removed again.
///
/// The thread enters the pod's namespace for a moment, and must have nothing else to do meanwhile.
///
/// # Errors
/// When a name is taken by another kind of device, the namespace is not there, or the kernel refuses a step.
pub fn attach_pod(pod: &PodLink) -> Result<PodAttached, DataplaneError> {
    let pod_netns = Namespace::open(&pod.pod_netns).map_err(|source| {
        DataplaneError::new(
            format!("open the network namespace {}", pod.pod_netns.display()),
            source,
        )
    })?;
    let mut host = connect()?;
    let mut inside = pod_netns.visit(connect).map_err(entering)??;
    let ends = create(pod, &pod_netns, &mut host)?;
    let attached = wire(pod, &ends, &pod_netns, &mut host, &mut inside);
    if attached.is_err() {
        // Takes the pod's end, its address and all routes along. The first error is the one to tell.
        let _ = delete_veth(&mut host, &pod.host_name);
    }
    attached
}

/// Removes the host end `host_name`, and in `pod_netns`, if that is given and there, the end `pod_name`. What is gone
/// already is no error. The thread enters the pod's namespace for a moment.
///
/// # Errors
/// When a name belongs to another kind of device, or the kernel refuses.
pub fn detach_pod(host_name: &str, pod_netns: Option<&Path>, pod_name: &str) -> Result<(), DataplaneError> {
    delete_veth(&mut connect()?, host_name)?;
    let Some(path) = pod_netns else { return Ok(()) };
    match Namespace::open(path) {
        Ok(netns) => {
            let mut inside = netns.visit(connect).map_err(entering)??;
            delete_veth(&mut inside, pod_name).map(drop)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DataplaneError::new(
            format!("open the network namespace {}", path.display()),
            source,
        )),
    }
}

/// The two ends of a pair.
struct Ends {
    host: Link,
    host_mac: MacAddress,
    /// The pod's, by what is known of it on the host.
    pod: Link,
}

/// Makes the pair, in the place of one that was left over.
fn create(pod: &PodLink, pod_netns: &Namespace, host: &mut Blocking) -> Result<Ends, DataplaneError> {
    let made = match make(pod, pod_netns, host) {
        Err(Failed { place: 0, error })
            if error.errno() == Some(Errno::EEXIST as i32) && delete_veth(host, &pod.host_name)? =>
        {
            make(pod, pod_netns, host)
        }
        made => made,
    };
    let failed = match made {
        Ok(Some(ends)) => return Ok(ends),
        Ok(None) => Failed {
            place: 1,
            error: unknown(&pod.host_name),
        },
        Err(failed) => failed,
    };
    if failed.place > 0 {
        let _ = delete_veth(host, &pod.host_name);
    }
    Err(failed.error)
}

/// Makes the pair, and looks at what was made; none when that does not tell enough.
fn make(pod: &PodLink, pod_netns: &Namespace, host: &mut Blocking) -> Result<Option<Ends>, Failed> {
    let creation = format!("create the veth pair {} and {}", pod.host_name, pod.pod_name);
    let look = format!("find the link {}", pod.host_name);
    let answers = host.transact(vec![
        (creation, veth(pod, pod_netns)),
        (look, named_link(&pod.host_name)),
    ])?;
    Ok(links(answers).find_map(|message| {
        let peer = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(index) => Some(*index),
            _ => None,
        })?;
        let host = decode::link(&message)?;
        let pod = Link {
            index: peer,
            name: pod.pod_name.clone(),
            ..host.clone()
        };
        Some(Ends {
            host,
            host_mac: hardware_address(&message)?,
            pod,
        })
    }))
}

/// What was made must be there.
fn unknown(name: &str) -> DataplaneError {
    DataplaneError::refused(
        format!("find the link {name}"),
        Refusal {
            errno: Errno::ENODEV as i32,
            words: String::new(),
        },
    )
}

/// The pod's side first: with its routes it is complete before the first packet can reach it by the host's.
fn wire(
    pod: &PodLink,
    ends: &Ends,
    pod_netns: &Namespace,
    host: &mut Blocking,
    inside: &mut Blocking,
) -> Result<PodAttached, DataplaneError> {
    sysctl::enable_forwarding()?;
    if pod.address_v6.is_some() {
        prepare_v6(pod, ends, pod_netns, host)?;
    }
    let answers = inside.transact(inside_requests(pod, ends)?);
    let found = links(answers.map_err(|failed| failed.error)?).find_map(|link| hardware_address(&link));
    let pod_mac = found.ok_or_else(|| unknown(&pod.pod_name))?;
    let done = host.transact(host_requests(pod, ends)?);
    done.map_err(|failed| failed.error)?;
    Ok(PodAttached {
        host_mac: ends.host_mac,
        pod_mac,
    })
}

/// The addresses that a pod gets.
fn addresses(pod: &PodLink) -> impl Iterator<Item = IpAddr> {
    let wanted = [Some(IpAddr::V4(pod.address)), pod.address_v6.map(IpAddr::V6)];
    wanted.into_iter().flatten()
}

/// What is to be done in the pod; at last its end is looked at.
fn inside_requests(pod: &PodLink, ends: &Ends) -> Result<Vec<Named>, DataplaneError> {
    let link = &ends.pod;
    let up = encode::set_link(link.index, pod.mtu);
    let mut requests = vec![(format!("set {} in the pod up", link.name), up)];
    for address in addresses(pod) {
        let (gateway, everywhere) = match address {
            IpAddr::V4(_) => (IpAddr::V4(POD_GATEWAY), IpNet::V4(Ipv4Net::default())),
            IpAddr::V6(_) => (IpAddr::V6(POD_GATEWAY_V6), IpNet::V6(Ipv6Net::default())),
        };
        let own = Address {
            link: link.index,
            net: IpNet::from(address),
        };
        let operation = format!("give {} in the pod the address {address}", link.name);
        requests.push((operation, encode::add_own_address(&own)));
        // Before the first route, so that the first packet finds it.
        let operation = format!("tell the pod that {gateway} is at {}", ends.host_mac);
        requests.push((operation, neighbour(link.index, gateway, ends.host_mac)));
        requests.push(install(&route(IpNet::from(gateway), None, link), link)?);
        requests.push(install(&route(everywhere, Some(gateway), link), link)?);
    }
    let look = format!("find the link {}", link.name);
    requests.push((look, named_link(&link.name)));
    Ok(requests)
}

/// What is to be done on the host once both ends are up: its switches, and the way to the pod.
fn host_requests(pod: &PodLink, ends: &Ends) -> Result<Vec<Named>, DataplaneError> {
    let link = &ends.host;
    let mut requests = vec![
        (
            format!("set proxy_arp, rp_filter and forwarding of {} to 1", link.name),
            encode::set_pod_switches(link.index),
        ),
        (
            format!("set proxy_delay of {} to 0", link.name),
            encode::answer_at_once(link.index),
        ),
    ];
    for address in addresses(pod) {
        requests.push(install(&route(IpNet::from(address), None, link), link)?);
    }
    Ok(requests)
}

/// [`POD_GATEWAY_V6`] as the address of a link.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(POD_GATEWAY_V6, 64);

/// What both ends need for IPv6 before they are up; then the host's is set up.
fn prepare_v6(
    pod: &PodLink,
    ends: &Ends,
    pod_netns: &Namespace,
    host: &mut Blocking,
) -> Result<(), DataplaneError> {
    switches_v6(&pod.host_name)?;
    // Many runtimes switch IPv6 off in what they make; no address that is given here needs to be probed for.
    let inside = || {
        sysctl::set_link_v6(&pod.pod_name, "disable_ipv6", "0")?;
        sysctl::set_link_v6(&pod.pod_name, "accept_dad", "0")
    };
    pod_netns.visit(inside).map_err(entering)??;
    let gateway = Address {
        link: ends.host.index,
        net: IpNet::V6(LINK_LOCAL),
    };
    let done = host.transact(vec![
        (
            format!("give {} the address {LINK_LOCAL}", pod.host_name),
            // Before it is up, when it would make the same by itself and probe for it.
            encode::add_own_address(&gateway),
        ),
        (
            format!("set {} up", pod.host_name),
            encode::set_link(ends.host.index, pod.mtu),
        ),
    ]);
    done.map(drop).map_err(|failed| failed.error)
}

/// Those of the host end. That the host forwards IPv6 at all is the agent's to see to, which knows what it may cost.
fn switches_v6(host_name: &str) -> Result<(), DataplaneError> {
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("accept_dad", "0"),
        // A pod is no router.
        ("accept_ra", "0"),
        ("proxy_ndp", "1"),
        ("forwarding", "1"),
    ] {
        sysctl::set_link_v6(host_name, key, value)?;
    }
    Ok(())
}

/// The pair, the pod's end of which is made in the pod's namespace at once: its name need not be free on the host. The
/// host's is up from the beginning, but for IPv6, for which there are switches to be set first.
fn veth(pod: &PodLink, pod_netns: &Namespace) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pod.pod_name.as_str())
        .mtu(pod.mtu)
        .setns_by_fd(pod_netns.file().as_raw_fd())
        .build();
    let host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(pod.host_name.as_str())
        .mtu(pod.mtu)
        .address(HOST_MAC.0.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let host = if pod.address_v6.is_some() { host } else { host.up() };
    (
        RouteNetlinkMessage::NewLink(host.build()),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn neighbour(link: u32, gateway: IpAddr, mac: MacAddress) -> Request {
    let (family, destination) = match gateway {
        IpAddr::V4(gateway) => (AddressFamily::Inet, NeighbourAddress::Inet(gateway)),
        IpAddr::V6(gateway) => (AddressFamily::Inet6, NeighbourAddress::Inet6(gateway)),
    };
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(destination));
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    (
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn route(prefix: IpNet, gateway: Option<IpAddr>, link: &Link) -> Route {
    Route {
        key: RouteKey {
            table: MAIN_TABLE,
            prefix,
            metric: 0,
        },
        kind: RouteKind::Unicast,
        next_hops: vec![NextHop {
            gateway,
            link: link.index,
            onlink: false,
            weight: 1,
        }],
        source: None,
        protocol: PROTOCOL_BOOT,
        // IPv6 knows no scopes of routes.
        scope: if gateway.is_none() && prefix.addr().is_ipv4() {
            SCOPE_LINK
        } else {
            SCOPE_UNIVERSE
        },
        mtu: None,
    }
}

fn install(route: &Route, link: &Link) -> Result<Named, DataplaneError> {
    let operation = format!(
        "install the route {}",
        route.with_names(|_| Some(link.name.clone()))
    );
    match encode::replace_route(route) {
        Ok(request) => Ok((operation, request)),
        Err(source) => Err(DataplaneError::new(operation, source)),
    }
}

/// A connection in the namespace of this thread.
fn connect() -> Result<Blocking, DataplaneError> {
    Blocking::open()
        .map_err(|source| DataplaneError::new("open a netlink socket in the network namespace", source))
}

fn entering(source: io::Error) -> DataplaneError {
    DataplaneError::new("enter the network namespace of the pod", source)
}

fn hardware_address(message: &LinkMessage) -> Option<MacAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddress),
        _ => None,
    })
}

/// Deletes the veth of this name, if there is one: whether there was.
fn delete_veth(connection: &mut Blocking, name: &str) -> Result<bool, DataplaneError> {
    let found = connection.link_named(name)?;
    let Some(link) = found.as_ref().and_then(decode::link) else {
        return Ok(false);
    };
    let operation = format!("delete the veth {name}");
    if link.kind.as_deref() != Some("veth") {
        let words = format!(
            "it is of kind {}, and was not made here",
            link.kind.as_deref().unwrap_or("physical")
        );
        return Err(DataplaneError::refused(
            operation,
            Refusal {
                errno: Errno::EEXIST as i32,
                words,
            },
        ));
    }
    let message = LinkUnspec::new_with_index(link.index).build();
    let request = (RouteNetlinkMessage::DelLink(message), 0);
    match connection.transact(vec![(operation, request)]) {
        // Somebody was faster.
        Err(failed) if failed.error.errno() == Some(Errno::ENODEV as i32) => Ok(true),
        done => done.map(|_| true).map_err(|failed| failed.error),
    }
}
