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
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::blocking::{Blocking, Named};
use super::connection::Request;
use super::{decode, encode};
use crate::dataplane::{DataplaneError, Namespace, Refusal, sysctl};
use crate::fib::{Address, MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, SCOPE_LINK, SCOPE_UNIVERSE};

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

impl MacAddress {
    /// One that nobody else is likely to have, as the kernel makes them for links that are given none
    /// (linux/etherdevice.h, `eth_random_addr`): of one link, and administered locally.
    fn random() -> Self {
        let mut bytes = [0; 6];
        fastrand::Rng::new().fill(&mut bytes);
        bytes[0] = bytes[0] & !1 | 2;
        Self(bytes)
    }
}

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
    let pod_mac = MacAddress::random();
    create(pod, pod_mac, &pod_netns, &mut host)?;
    if let Err(error) = wire(pod, &pod_netns, &mut host) {
        // Takes the pod's end, its address and all routes along. The first error is the one to tell.
        let _ = delete_veth(&mut host, &pod.host_name);
        return Err(error);
    }
    Ok(PodAttached {
        host_mac: HOST_MAC,
        pod_mac,
    })
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

/// An end of a pair, in its own namespace.
struct End<'a> {
    name: &'a str,
    index: u32,
}

impl<'a> End<'a> {
    /// The link of this name in the namespace of the calling thread. This asks without waiting for the lock under which the
    /// kernel changes links (net/core/dev_ioctl.c, `SIOCGIFINDEX`), for which other pods may be waiting.
    fn find(name: &'a str) -> Result<Self, DataplaneError> {
        match if_nametoindex(name) {
            Ok(index) => Ok(Self { name, index }),
            Err(errno) => Err(DataplaneError::new(format!("find the link {name}"), errno.into())),
        }
    }
}

/// Makes the pair, in the place of one that was left over.
fn create(
    pod: &PodLink,
    pod_mac: MacAddress,
    pod_netns: &Namespace,
    host: &mut Blocking,
) -> Result<(), DataplaneError> {
    let make = |host: &mut Blocking| {
        let creation = format!("create the veth pair {} and {}", pod.host_name, pod.pod_name);
        host.transact(vec![(creation, veth(pod, pod_mac, pod_netns))])
            .map(drop)
    };
    match make(host) {
        Err(error) if error.errno() == Some(Errno::EEXIST as i32) && delete_veth(host, &pod.host_name)? => {
            make(host)
        }
        made => made,
    }
}

/// The pod's side first: with its routes it is complete before the first packet can reach it by the host's.
fn wire(pod: &PodLink, pod_netns: &Namespace, host: &mut Blocking) -> Result<(), DataplaneError> {
    sysctl::enable_forwarding()?;
    let on_host = End::find(&pod.host_name)?;
    if pod.address_v6.is_some() {
        prepare_v6(pod, &on_host, host)?;
    }
    let enter = || {
        if pod.address_v6.is_some() {
            switches_v6_inside(&pod.pod_name)?;
        }
        Ok::<_, DataplaneError>((connect()?, End::find(&pod.pod_name)?))
    };
    let (mut inside, in_pod) = pod_netns.visit(enter).map_err(entering)??;
    inside.transact(inside_requests(pod, &in_pod)?)?;
    host.transact(host_requests(pod, &on_host)?).map(drop)
}

/// The addresses that a pod gets.
fn addresses(pod: &PodLink) -> impl Iterator<Item = IpAddr> {
    let wanted = [Some(IpAddr::V4(pod.address)), pod.address_v6.map(IpAddr::V6)];
    wanted.into_iter().flatten()
}

/// What is to be done in the pod.
fn inside_requests(pod: &PodLink, link: &End<'_>) -> Result<Vec<Named>, DataplaneError> {
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
        let operation = format!("tell the pod that {gateway} is at {HOST_MAC}");
        requests.push((operation, neighbour(link.index, gateway, HOST_MAC)));
        requests.push(install(&route(IpNet::from(gateway), None, link), link)?);
        requests.push(install(&route(everywhere, Some(gateway), link), link)?);
    }
    Ok(requests)
}

/// What is to be done on the host once both ends are up: its switches, and the way to the pod.
fn host_requests(pod: &PodLink, link: &End<'_>) -> Result<Vec<Named>, DataplaneError> {
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

/// What the host's end needs for IPv6 before it is up; then it is set up.
fn prepare_v6(pod: &PodLink, link: &End<'_>, host: &mut Blocking) -> Result<(), DataplaneError> {
    switches_v6(&pod.host_name)?;
    let gateway = Address {
        link: link.index,
        net: IpNet::V6(LINK_LOCAL),
    };
    let requests = vec![
        (
            format!("give {} the address {LINK_LOCAL}", pod.host_name),
            // Before it is up, when it would make the same by itself and probe for it.
            encode::add_own_address(&gateway),
        ),
        (
            format!("set {} up", pod.host_name),
            encode::set_link(link.index, pod.mtu),
        ),
    ];
    host.transact(requests).map(drop)
}

/// Those of the pod's end, set in its namespace.
fn switches_v6_inside(pod_name: &str) -> Result<(), DataplaneError> {
    // Many runtimes switch IPv6 off in what they make; no address that is given here needs to be probed for.
    sysctl::set_link_v6(pod_name, "disable_ipv6", "0")?;
    sysctl::set_link_v6(pod_name, "accept_dad", "0")
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
fn veth(pod: &PodLink, pod_mac: MacAddress, pod_netns: &Namespace) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pod.pod_name.as_str())
        .mtu(pod.mtu)
        .address(pod_mac.0.to_vec())
        .append_extra_attribute(ONE_QUEUE.0)
        .append_extra_attribute(ONE_QUEUE.1)
        .setns_by_fd(pod_netns.file().as_raw_fd())
        .build();
    let host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(pod.host_name.as_str())
        .mtu(pod.mtu)
        .append_extra_attribute(ONE_QUEUE.0)
        .append_extra_attribute(ONE_QUEUE.1)
        .address(HOST_MAC.0.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
    let host = if pod.address_v6.is_some() { host } else { host.up() };
    (
        RouteNetlinkMessage::NewLink(host.build()),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// A queue in each direction. Without being told so the kernel makes one for each processor that there may be, and takes all
/// but one away again before the link is up (drivers/net/veth.c, `veth_get_num_queues` and `veth_init_queues`).
const ONE_QUEUE: (LinkAttribute, LinkAttribute) =
    (LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1));

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

fn route(prefix: IpNet, gateway: Option<IpAddr>, link: &End<'_>) -> Route {
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

fn install(route: &Route, link: &End<'_>) -> Result<Named, DataplaneError> {
    let operation = format!(
        "install the route {}",
        route.with_names(|_| Some(link.name.to_owned()))
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
        Err(error) if error.errno() == Some(Errno::ENODEV as i32) => Ok(true),
        done => done.map(|_| true),
    }
}
