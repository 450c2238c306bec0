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

use super::connection::{Answer, Connection, Request};
use super::{decode, encode, interrupted, judge};
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
/// removed first, so that it can be repeated; if a step fails, all that was made is removed again. Needs a Tokio runtime.
///
/// # Errors
/// When a name is taken by another kind of device, the namespace is not there, or the kernel refuses a step.
pub async fn attach_pod(pod: &PodLink) -> Result<PodAttached, DataplaneError> {
    let host_netns =
        Namespace::current().map_err(|source| DataplaneError::new("open this network namespace", source))?;
    let pod_netns = Namespace::open(&pod.pod_netns).map_err(|source| {
        DataplaneError::new(
            format!("open the network namespace {}", pod.pod_netns.display()),
            source,
        )
    })?;
    let mut host = connect(&host_netns)?;
    let mut inside = connect(&pod_netns)?;
    delete_veth(&mut host, &pod.host_name).await?;
    let attached = wire(pod, &host_netns, &pod_netns, &mut host, &mut inside).await;
    if attached.is_err() {
        // Takes the pod's end, its address and all routes along. The first error is the one to tell.
        let _ = delete_veth(&mut host, &pod.host_name).await;
    }
    attached
}

/// Removes the host end `host_name`, and in `pod_netns`, if that is given and there, the end `pod_name`. What is gone
/// already is no error. Needs a Tokio runtime.
///
/// # Errors
/// When a name belongs to another kind of device, or the kernel refuses.
pub async fn detach_pod(
    host_name: &str,
    pod_netns: Option<&Path>,
    pod_name: &str,
) -> Result<(), DataplaneError> {
    let here =
        Namespace::current().map_err(|source| DataplaneError::new("open this network namespace", source))?;
    delete_veth(&mut connect(&here)?, host_name).await?;
    let Some(path) = pod_netns else { return Ok(()) };
    match Namespace::open(path) {
        Ok(netns) => delete_veth(&mut connect(&netns)?, pod_name).await,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(DataplaneError::new(
            format!("open the network namespace {}", path.display()),
            source,
        )),
    }
}

async fn wire(
    pod: &PodLink,
    host_netns: &Namespace,
    pod_netns: &Namespace,
    host: &mut Connection,
    inside: &mut Connection,
) -> Result<PodAttached, DataplaneError> {
    let creation = format!("create the veth pair {} and {}", pod.host_name, pod.pod_name);
    ask(host, creation, veth(pod, pod_netns)).await?;
    let (host_end, host_mac) = find(host, &pod.host_name).await?;
    let (pod_end, pod_mac) = find(inside, &pod.pod_name).await?;
    host_netns
        .run(|| Ok(switches(&pod.host_name)))
        .map_err(|source| DataplaneError::new("enter the network namespace of the host", source))??;
    if pod.address_v6.is_some() {
        prepare_v6(pod, host_netns, pod_netns)?;
        let gateway = Address {
            link: host_end.index,
            net: IpNet::V6(LINK_LOCAL),
        };
        let operation = format!("give {} the address {LINK_LOCAL}", pod.host_name);
        // Before it is up, when it would make the same by itself and probe for it.
        ask(host, operation, encode::add_own_address(&gateway)).await?;
    }
    ask(
        host,
        format!("set {} up", pod.host_name),
        encode::set_link(host_end.index, pod.mtu),
    )
    .await?;
    ask(
        inside,
        format!("set {} in the pod up", pod.pod_name),
        encode::set_link(pod_end.index, pod.mtu),
    )
    .await?;

    let wanted = [Some(IpAddr::V4(pod.address)), pod.address_v6.map(IpAddr::V6)];
    for address in wanted.into_iter().flatten() {
        let (gateway, everywhere) = match address {
            IpAddr::V4(_) => (IpAddr::V4(POD_GATEWAY), IpNet::V4(Ipv4Net::default())),
            IpAddr::V6(_) => (IpAddr::V6(POD_GATEWAY_V6), IpNet::V6(Ipv6Net::default())),
        };
        let own = Address {
            link: pod_end.index,
            net: IpNet::from(address),
        };
        let operation = format!("give {} in the pod the address {address}", pod.pod_name);
        ask(inside, operation, encode::add_own_address(&own)).await?;
        // Before the first route, so that the first packet finds it.
        let operation = format!("tell the pod that {gateway} is at {host_mac}");
        ask(inside, operation, neighbour(pod_end.index, gateway, host_mac)).await?;
        let to_gateway = route(IpNet::from(gateway), None, &pod_end);
        install(inside, &to_gateway, &pod_end).await?;
        install(inside, &route(everywhere, Some(gateway), &pod_end), &pod_end).await?;
        let to_pod = route(IpNet::from(address), None, &host_end);
        install(host, &to_pod, &host_end).await?;
    }
    Ok(PodAttached { host_mac, pod_mac })
}

/// [`POD_GATEWAY_V6`] as the address of a link.
const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(POD_GATEWAY_V6, 64);

/// What both ends need of the kernel's switches for IPv6, before they are up.
fn prepare_v6(pod: &PodLink, host_netns: &Namespace, pod_netns: &Namespace) -> Result<(), DataplaneError> {
    let entering = |what: &str, source| {
        DataplaneError::new(format!("enter the network namespace of the {what}"), source)
    };
    host_netns
        .run(|| Ok(switches_v6(&pod.host_name)))
        .map_err(|source| entering("host", source))??;
    // Many runtimes switch IPv6 off in what they make; no address that is given here needs to be probed for.
    let inside = || {
        sysctl::set_link_v6(&pod.pod_name, "disable_ipv6", "0")?;
        sysctl::set_link_v6(&pod.pod_name, "accept_dad", "0")
    };
    pod_netns
        .run(|| Ok(inside()))
        .map_err(|source| entering("pod", source))?
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

/// The pair, the pod's end of which is made in the pod's namespace at once: its name need not be free on the host.
fn veth(pod: &PodLink, pod_netns: &Namespace) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pod.pod_name.as_str())
        .mtu(pod.mtu)
        .setns_by_fd(pod_netns.file().as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(pod.host_name.as_str())
        .mtu(pod.mtu)
        .address(HOST_MAC.0.to_vec())
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// What the host end needs of the kernel's switches.
fn switches(host_name: &str) -> Result<(), DataplaneError> {
    sysctl::enable_forwarding()?;
    // Answers for 169.254.1.1, at once: the usual delay is meant for several proxies on one link.
    sysctl::set_link(host_name, "proxy_arp", "1")?;
    sysctl::set_neighbour(host_name, "proxy_delay", "0")?;
    // A pod sends as itself or not at all.
    sysctl::set_link(host_name, "rp_filter", "1")?;
    sysctl::set_link(host_name, "forwarding", "1")
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

async fn install(connection: &mut Connection, route: &Route, link: &Link) -> Result<(), DataplaneError> {
    let operation = format!(
        "install the route {}",
        route.with_names(|_| Some(link.name.clone()))
    );
    match encode::replace_route(route) {
        Ok(request) => ask(connection, operation, request).await,
        Err(source) => Err(DataplaneError::new(operation, source)),
    }
}

async fn ask(connection: &mut Connection, operation: String, request: Request) -> Result<(), DataplaneError> {
    judge(operation, connection.request(request.0, request.1).await)
}

fn connect(netns: &Namespace) -> Result<Connection, DataplaneError> {
    Connection::open(netns)
        .map_err(|source| DataplaneError::new("open a netlink socket in the network namespace", source))
}

/// The link of this name with its hardware address.
async fn find(connection: &mut Connection, name: &str) -> Result<(Link, MacAddress), DataplaneError> {
    let operation = format!("find the link {name}");
    let links = connection
        .links()
        .await
        .map_err(|why| interrupted(&operation, why))?;
    let found = links.iter().find_map(|message| {
        let link = decode::link(message).filter(|link| link.name == name)?;
        Some((link, hardware_address(message)?))
    });
    found.ok_or_else(|| {
        DataplaneError::refused(
            operation,
            Refusal {
                errno: Errno::ENODEV as i32,
                words: String::new(),
            },
        )
    })
}

fn hardware_address(message: &LinkMessage) -> Option<MacAddress> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddress),
        _ => None,
    })
}

/// Deletes the veth of this name, if there is one.
async fn delete_veth(connection: &mut Connection, name: &str) -> Result<(), DataplaneError> {
    let operation = format!("delete the veth {name}");
    let Some(link) = connection
        .link_named(name)
        .await
        .map_err(|why| interrupted(&operation, why))?
    else {
        return Ok(());
    };
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
    match connection.request(RouteNetlinkMessage::DelLink(message), 0).await {
        // Somebody was faster.
        Answer::Refused(why) if why.errno == Errno::ENODEV as i32 => Ok(()),
        answer => judge(operation, answer),
    }
}
