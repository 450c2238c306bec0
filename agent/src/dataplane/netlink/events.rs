//! What happens in the kernel, as it happens.
//!
//! The listener never waits for its receiver and never queues without bound: when the channel is full, events are
//! dropped and one [`KernelEvent::Overrun`] takes their place, as the kernel itself does with its socket buffer.

use std::future::pending;
use std::io;
use std::time::Duration;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, TokioSocket};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;
use tracing::error;

use super::connection::{enlarge, split_first};
use super::decode;
use super::echo::{Deaf, Echo};
use crate::dataplane::Namespace;
use crate::fib::KernelEvent;

/// Events that may wait for their receiver.
const QUEUE: usize = 4096;

/// Bytes; the kernel keeps a notification below 32 KiB.
const DATAGRAM: usize = 64 << 10;

/// Before a socket that failed is made again.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens in `namespace` from now on, until the receiver is dropped, to all but the `echo`. Needs a Tokio runtime.
pub(super) fn listen(namespace: Namespace, echo: Echo) -> io::Result<mpsc::Receiver<KernelEvent>> {
    let (socket, deaf) = subscribe(&namespace, &echo)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(
        Listener {
            namespace,
            echo,
            deaf,
            sender,
            overrun: false,
        }
        .run(socket),
    );
    Ok(receiver)
}

fn subscribe(namespace: &Namespace, echo: &Echo) -> io::Result<(TokioSocket, Deaf)> {
    let mut socket = namespace.run(|| TokioSocket::new(NETLINK_ROUTE))?;
    let deaf = echo.spares(socket.socket_ref())?;
    enlarge(socket.socket_ref());
    socket.socket_mut().bind_auto()?;
    for group in [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv4Netconf,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv6Netconf,
    ] {
        socket.socket_ref().add_membership(group as u32)?;
    }
    Ok((socket, deaf))
}

struct Listener {
    namespace: Namespace,
    echo: Echo,
    deaf: Deaf,
    sender: mpsc::Sender<KernelEvent>,
    // Something was dropped, and the receiver has not been told yet.
    overrun: bool,
}

impl Listener {
    async fn run(mut self, mut socket: TokioSocket) {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        loop {
            buffer.clear();
            tokio::select! {
                () = self.sender.closed() => return,
                told = announce(&self.sender, self.overrun) => match told {
                    Ok(()) => self.overrun = false,
                    Err(_) => return,
                },
                read = socket.recv_from(&mut buffer) => match read {
                    // Only the kernel has port 0: what another process sends here is not an event.
                    Ok(from) if from.port_number() != 0 => {}
                    Ok(_) => self.datagram(&buffer),
                    Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => self.overrun = true,
                    Err(error) => match self.again(error).await {
                        Some(made) => socket = made,
                        None => return,
                    },
                },
            }
        }
    }

    /// A new socket in place of one that failed; none if the receiver is gone before there is one.
    async fn again(&mut self, mut error: io::Error) -> Option<TokioSocket> {
        self.overrun = true;
        loop {
            error!(%error, "the netlink socket for kernel events failed; opening another");
            tokio::select! {
                () = self.sender.closed() => return None,
                () = tokio::time::sleep(PAUSE) => {}
            }
            match subscribe(&self.namespace, &self.echo) {
                Ok((socket, deaf)) => {
                    self.deaf = deaf;
                    return Some(socket);
                }
                Err(why) => error = why,
            }
        }
    }

    fn datagram(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let Some((message, tail)) = split_first(rest) else {
                self.overrun = true;
                return;
            };
            rest = tail;
            if let Some(told) = decode::netconf(message) {
                told.into_iter().for_each(|event| self.offer(event));
                continue;
            }
            let lean = decode::lean_link(message);
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(lean.as_deref().unwrap_or(message)) {
                Ok(NetlinkMessage {
                    header,
                    payload: NetlinkPayload::InnerMessage(inner),
                    ..
                }) => {
                    if let Some(event) = decode::event(&inner, header.flags) {
                        self.offer(event);
                    }
                }
                Ok(_) => {}
                // Something happened, and only a dump can tell what.
                Err(_) => self.overrun = true,
            }
        }
    }

    fn offer(&mut self, event: KernelEvent) {
        // After an overrun the receiver dumps: an event in between would only be out of order.
        if !self.overrun && self.sender.try_send(event).is_err() {
            self.overrun = true;
        }
    }
}

/// Says that events were lost, as soon as there is room; waits for ever if none were.
async fn announce(
    sender: &mpsc::Sender<KernelEvent>,
    overrun: bool,
) -> Result<(), mpsc::error::SendError<KernelEvent>> {
    if overrun {
        sender.send(KernelEvent::Overrun).await
    } else {
        pending().await
    }
}
