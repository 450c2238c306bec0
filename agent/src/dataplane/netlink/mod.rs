//! The kernel over netlink: the only importer of the netlink crates.
//!
//! `connection` sends and counts answers, `encode` and `decode` translate, `events` listens, `echo` keeps it from hearing what
//! we did ourselves, `attach` wires up pods.

pub(super) mod attach;
mod blocking;
mod connection;
mod decode;
mod echo;
mod encode;
mod events;
pub(super) mod nftables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use async_trait::async_trait;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, mpsc};

use self::connection::{Answer, Connection, Interrupted, Request};
use self::echo::Echo;
use super::{Dataplane, DataplaneError, Namespace, path_mtu_discovery, sysctl};
use crate::fib::{Address, Change, KernelEvent, Link, Route, Snapshot};

/// Routes in one send: if the kernel refuses them all, its answers must fit into the receive buffer.
const BATCH: usize = 256;

/// The kernel of one network namespace.
#[derive(Debug)]
pub struct Netlink {
    namespace: Namespace,
    // One request at a time, so that changes keep their order. Made again when it is found broken.
    connection: Mutex<Option<Connection>>,
    echo: Echo,
}

impl Netlink {
    /// The kernel in the network namespace of the calling thread. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self, DataplaneError> {
        let open = || {
            let namespace = Namespace::current()?;
            let connection = Connection::open(&namespace)?;
            let echo = Echo::default();
            echo.comes_from(connection.port());
            Ok(Self {
                namespace,
                connection: Mutex::new(Some(connection)),
                echo,
            })
        };
        open().map_err(|source| DataplaneError::new("open a netlink socket", source))
    }

    /// The namespace that this is the kernel of.
    pub(in crate::dataplane) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The connection, held and sound.
    async fn connection(&self) -> Result<MappedMutexGuard<'_, Connection>, DataplaneError> {
        let mut held = self.connection.lock().await;
        if !held.as_ref().is_some_and(Connection::is_sound) {
            let made = Connection::open(&self.namespace)
                .map_err(|source| DataplaneError::new("open a netlink socket", source))?;
            self.echo.comes_from(made.port());
            *held = Some(made);
        }
        MutexGuard::try_map(held, Option::as_mut).map_err(|_| DataplaneError::lost("open a netlink socket"))
    }

    async fn change(&self, connection: &mut Connection, change: &Change) -> Result<(), DataplaneError> {
        let (request, harmless): (Request, &[Errno]) = match change {
            Change::EnableForwarding => return self.switch(sysctl::enable_forwarding),
            Change::EnableForwardingV6 => return self.switch(sysctl::enable_forwarding_v6),
            Change::SetPathMtuDiscovery { name, on, .. } => {
                return self.switch(|| path_mtu_discovery::set(name, *on));
            }
            Change::CreateTunnel { name } => return create_tunnel(connection, name).await,
            Change::SetLink { link, mtu } => (encode::set_link(*link, *mtu), &[]),
            Change::LoosenReversePath { link } => (encode::loosen_reverse_path(*link), &[]),
            Change::SetLinkDown { link } => (encode::set_link_down(*link), &[]),
            Change::AddAddress(address) => (encode::add_address(address), &[Errno::EEXIST]),
            Change::DeleteAddress(address) => (
                encode::delete_address(address),
                &[Errno::EADDRNOTAVAIL, Errno::ENODEV],
            ),
            Change::AddRule(rule) => (encode::add_rule(rule), &[Errno::EEXIST]),
            Change::DeleteRule(rule) => (encode::delete_rule(rule), &[Errno::ENOENT]),
            Change::ReplaceRoute(_) | Change::DeleteRoute(_) => {
                return routes(connection, &[change], &mut None)
                    .await
                    .pop()
                    .unwrap_or_else(|| Err(lost(change)));
            }
        };
        match connection.request(request.0, request.1).await {
            Answer::Refused(why) if !harmless.iter().any(|errno| *errno as i32 == why.errno) => Err(
                DataplaneError::refused(words(change, &link_names(connection).await), why),
            ),
            Answer::Lost => Err(lost(change)),
            Answer::Done | Answer::Refused(_) => Ok(()),
        }
    }

    fn switch(&self, set: impl FnOnce() -> Result<(), DataplaneError> + Send) -> Result<(), DataplaneError> {
        self.namespace
            .run(|| Ok(set()))
            .map_err(|source| DataplaneError::new("enter the network namespace", source))?
    }
}

#[async_trait]
impl Dataplane for Netlink {
    async fn dump(&self) -> Result<Snapshot, DataplaneError> {
        let mut connection = self.connection().await?;
        let links = connection
            .links()
            .await
            .map_err(|why| interrupted("dump the links", why))?;
        let mut addresses = Vec::new();
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            addresses.extend(dump_addresses(&mut connection, family).await?);
            routes.extend(dump_routes(&mut connection, family).await?);
        }
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        let keep = |message| match message {
            RouteNetlinkMessage::NewRule(message) => decode::rule(&message),
            _ => None,
        };
        let rules = connection
            .dump(&RouteNetlinkMessage::GetRule(message), keep)
            .await
            .map_err(|why| interrupted("dump the rules", why))?;
        let deprecated = addresses.iter().filter(|(_, is_deprecated)| *is_deprecated);
        let deprecated = deprecated.map(|(address, _)| *address).collect();
        let addresses: Vec<Address> = addresses.into_iter().map(|(address, _)| address).collect();
        let links: Vec<Link> = links.iter().filter_map(decode::link).collect();
        // Links of pods have none, and there are many of them.
        let with_ipv4: BTreeSet<u32> = addresses
            .iter()
            .filter(|address| address.net.addr().is_ipv4())
            .map(|address| address.link)
            .collect();
        let others = links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("ipip") || with_ipv4.contains(&link.index));
        let switches = || {
            let strict = others.filter(|link| sysctl::is_strict(&link.name));
            let forwarding = (sysctl::forwarding()?, sysctl::forwarding_v6());
            Ok((forwarding, strict.map(|link| link.index).collect()))
        };
        let ((forwarding, forwarding_v6), strict) = self
            .namespace
            .run(switches)
            .map_err(|source| DataplaneError::new("read net.ipv4.ip_forward", source))?;
        Ok(Snapshot {
            links,
            addresses,
            deprecated,
            routes,
            rules,
            forwarding,
            forwarding_v6,
            strict,
        })
    }

    async fn apply(&self, changes: &[Change]) -> Vec<Result<(), DataplaneError>> {
        let mut results = Vec::with_capacity(changes.len());
        let mut connection = match self.connection().await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::error!(%error, "netlink");
                return changes.iter().map(|change| Err(lost(change))).collect();
            }
        };
        let mut names = None;
        while let Some((next, rest)) = changes.get(results.len()..).and_then(<[Change]>::split_first) {
            // Once an answer is missing, only a dump tells what is: what is left is not even tried.
            if !connection.is_sound() {
                results.push(Err(lost(next)));
                continue;
            }
            if route_of(next).is_none() {
                results.push(self.change(&mut connection, next).await);
                continue;
            }
            let more = rest
                .iter()
                .take(BATCH - 1)
                .take_while(|change| route_of(change).is_some())
                .count();
            let batch = changes.iter().skip(results.len()).take(more + 1);
            results.extend(routes(&mut connection, &batch.collect::<Vec<_>>(), &mut names).await);
            // The kernel answers without a wait: others must have their turn between two batches.
            tokio::task::yield_now().await;
        }
        results
    }

    fn events(&self) -> Result<mpsc::Receiver<KernelEvent>, DataplaneError> {
        // The namespace is held open once more: the listener outlives this value.
        let namespace = self.namespace.run(Namespace::current);
        namespace
            .and_then(|namespace| events::listen(namespace, self.echo.clone()))
            .map_err(|source| DataplaneError::new("listen to links, addresses, routes and rules", source))
    }
}

/// The addresses of one family, each with whether it is deprecated. A kernel that lacks the family answers with those of others, which do not count.
async fn dump_addresses(
    connection: &mut Connection,
    family: AddressFamily,
) -> Result<Vec<(Address, bool)>, DataplaneError> {
    let mut message = AddressMessage::default();
    message.header.family = family;
    let keep = |message| match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.family == family => {
            decode::lasting_address(&message)
        }
        _ => None,
    };
    let dumped = connection
        .dump(&RouteNetlinkMessage::GetAddress(message), keep)
        .await;
    dumped.map_err(|why| interrupted("dump the addresses", why))
}

/// The routes of one family, as the addresses.
async fn dump_routes(
    connection: &mut Connection,
    family: AddressFamily,
) -> Result<Vec<Route>, DataplaneError> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    let keep = |message| match message {
        RouteNetlinkMessage::NewRoute(message) if message.header.address_family == family => {
            decode::route(&message)
        }
        _ => None,
    };
    let dumped = connection
        .dump(&RouteNetlinkMessage::GetRoute(message), keep)
        .await;
    dumped.map_err(|why| interrupted("dump the routes", why))
}

/// Sends one batch of routes, and gives a result for each. `names` are those of the links, looked up for the first error.
async fn routes(
    connection: &mut Connection,
    batch: &[&Change],
    names: &mut Option<BTreeMap<u32, String>>,
) -> Vec<Result<(), DataplaneError>> {
    let mut requests = Vec::with_capacity(batch.len());
    let encoded: Vec<Option<io::Error>> = batch
        .iter()
        .map(|change| match change {
            Change::ReplaceRoute(route) => encode::replace_route(route),
            Change::DeleteRoute(route) => encode::delete_route(route),
            _ => Err(io::Error::other("no route")),
        })
        .map(|request| request.map(|request| requests.push(request)).err())
        .collect();
    let mut answers = connection.transact(requests).await.into_iter();
    let mut results = Vec::with_capacity(batch.len());
    for (change, invalid) in batch.iter().zip(encoded) {
        let answer = if invalid.is_none() {
            answers.next().unwrap_or(Answer::Lost)
        } else {
            Answer::Lost
        };
        let gone = matches!((change, &answer), (Change::DeleteRoute(_), Answer::Refused(why)) if why.errno == Errno::ESRCH as i32);
        if invalid.is_none() && (answer == Answer::Done || gone) {
            results.push(Ok(()));
            continue;
        }
        if names.is_none() && connection.is_sound() {
            *names = Some(link_names(connection).await);
        }
        let operation = words(change, names.as_ref().unwrap_or(&BTreeMap::new()));
        results.push(match invalid {
            Some(invalid) => Err(DataplaneError::new(operation, invalid)),
            None => judge(operation, answer),
        });
    }
    results
}

async fn link_names(connection: &mut Connection) -> BTreeMap<u32, String> {
    let links = connection.links().await.unwrap_or_default();
    links
        .iter()
        .filter_map(decode::link)
        .map(|link| (link.index, link.name))
        .collect()
}

/// Creates the tunnel device, or finds that it is there and of the right kind.
async fn create_tunnel(connection: &mut Connection, name: &str) -> Result<(), DataplaneError> {
    let operation = format!("create the ipip tunnel {name}");
    let (message, flags) = encode::create_tunnel(name);
    let mut refusal = match connection.request(message, flags).await {
        Answer::Done => return Ok(()),
        Answer::Lost => return Err(DataplaneError::lost(operation)),
        Answer::Refused(refusal) => refusal,
    };
    // Loading the module makes a tunl0 by itself, so that even on the first time it may exist.
    if refusal.errno == Errno::EEXIST as i32 {
        let found = connection
            .link_named(name)
            .await
            .map_err(|why| interrupted(&operation, why))?;
        refusal.words = match found {
            Some(link) if link.kind.as_deref() == Some("ipip") => return Ok(()),
            Some(link) => format!(
                "{name} exists and is of kind {}, not ipip; remove it or choose another name",
                link.kind.as_deref().unwrap_or("physical"),
            ),
            None => {
                format!("another ipip device from any to any exists, and the kernel has no room for {name}")
            }
        };
    } else if refusal.errno == Errno::EOPNOTSUPP as i32 {
        refusal.words =
            "the kernel has no ipip module: load it (modprobe ipip), or choose ipipMode Never".into();
    }
    Err(DataplaneError::refused(operation, refusal))
}

fn route_of(change: &Change) -> Option<&Route> {
    match change {
        Change::ReplaceRoute(route) | Change::DeleteRoute(route) => Some(route),
        _ => None,
    }
}

fn judge(operation: String, answer: Answer) -> Result<(), DataplaneError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Refused(refusal) => Err(DataplaneError::refused(operation, refusal)),
        Answer::Lost => Err(DataplaneError::lost(operation)),
    }
}

fn interrupted(operation: &str, why: Interrupted) -> DataplaneError {
    match why {
        Interrupted::Refused(refusal) => DataplaneError::refused(operation, refusal),
        Interrupted::Lost => DataplaneError::lost(operation),
    }
}

fn lost(change: &Change) -> DataplaneError {
    DataplaneError::lost(words(change, &BTreeMap::new()))
}

/// A change in words, with the names of links where they are known.
fn words(change: &Change, names: &BTreeMap<u32, String>) -> String {
    let name = |link: u32| names.get(&link).cloned();
    let device = |link: &u32| name(*link).unwrap_or_else(|| format!("if{link}"));
    let at = |address: &Address| format!("{} dev {}", address.net, device(&address.link));
    match change {
        Change::EnableForwarding => "enable IPv4 forwarding".into(),
        Change::EnableForwardingV6 => "enable IPv6 forwarding".into(),
        Change::CreateTunnel { name } => format!("create the ipip tunnel {name}"),
        Change::SetLink { link, mtu } => format!("set {} up with mtu {mtu}", device(link)),
        Change::LoosenReversePath { link } => format!("set net.ipv4.conf.{}.rp_filter to 2", device(link)),
        Change::SetPathMtuDiscovery { name, on, .. } => path_mtu_discovery::words(name, *on),
        Change::SetLinkDown { link } => format!("set {} down", device(link)),
        Change::AddAddress(address) => format!("add the address {}", at(address)),
        Change::DeleteAddress(address) => format!("delete the address {}", at(address)),
        Change::ReplaceRoute(route) => format!("install the route {}", route.with_names(name)),
        Change::DeleteRoute(route) => format!("delete the route {}", route.with_names(name)),
        Change::AddRule(rule) => format!("add the rule {rule}"),
        Change::DeleteRule(rule) => format!("delete the rule {rule}"),
    }
}
