//! The outer source of encapsulated packets, as the kernel would choose it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::Netlink;

/// `IPPROTO_IPIP`.
const IPIP: i32 = 4;

impl Netlink {
    /// The source with which an encapsulated packet to each of `peers` would leave now. A peer to which there is no way is
    /// left out.
    ///
    /// The kernel refuses the plain question (`ip route get … ipproto 4`). A raw socket of protocol 4 that is connected
    /// to the peer goes through the same rules and tables as a packet of the tunnel, and has the answer as its own
    /// address; nothing is sent.
    ///
    /// # Errors
    /// When raw sockets are not permitted (CAP_NET_RAW).
    pub fn outer_sources(
        &self,
        peers: impl IntoIterator<Item = Ipv4Addr> + Send,
    ) -> io::Result<BTreeMap<Ipv4Addr, Ipv4Addr>> {
        self.namespace().run(|| {
            let answers = peers.into_iter().filter_map(|peer| {
                let source = outer_source(peer).transpose()?;
                Some(source.map(|source| (peer, source)))
            });
            answers.collect()
        })
    }
}

fn outer_source(peer: Ipv4Addr) -> io::Result<Option<Ipv4Addr>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPIP)))?;
    if socket.connect(&SocketAddr::from((peer, 0)).into()).is_err() {
        return Ok(None);
    }
    Ok(socket.local_addr()?.as_socket_ipv4().map(|own| *own.ip()))
}
