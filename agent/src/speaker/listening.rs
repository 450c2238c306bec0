//! The sockets that peers connect to, and where they should be by what the cluster says now.

use std::collections::BTreeMap;
use std::future;
use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_bgp::config::{Password, PeerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::SpeakerError;
use super::connection::{self, Listener};
use crate::peering::Endpoint;
use crate::uapi::SocketFamily;

/// The pause before it is tried again to listen where it did not work.
const RETRY: Duration = Duration::from_secs(5);

/// See the module. Connections that stand are none of its business: they outlive the socket that they came in by.
#[derive(Debug)]
pub(super) struct Listening {
    listeners: Vec<Listener>,
    /// Where they are.
    at: Endpoint,
    wanted: Endpoint,
    passwords: BTreeMap<IpAddr, Password>,
    retry: Option<Instant>,
    problem: watch::Sender<Option<String>>,
}

impl Listening {
    /// Listens at `endpoint`.
    pub(super) fn open(
        endpoint: Endpoint,
        problem: watch::Sender<Option<String>>,
    ) -> Result<Self, SpeakerError> {
        Ok(Self {
            listeners: listen(&endpoint)?,
            wanted: endpoint.clone(),
            at: endpoint,
            passwords: BTreeMap::new(),
            retry: None,
            problem,
        })
    }

    /// Listens at `wanted` from now on, as soon as that is possible; until then where it did before.
    pub(super) fn move_to(&mut self, wanted: Endpoint) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.attempt();
        }
    }

    /// When to [try again](Self::attempt).
    pub(super) fn due(&self) -> Option<Instant> {
        self.retry
    }

    /// Tries to listen where it should.
    pub(super) fn attempt(&mut self) {
        self.retry = None;
        if self.at == self.wanted && !self.listeners.is_empty() {
            self.problem.send_replace(None);
            return;
        }
        // No two sockets can listen on one port, if one of them does so for all addresses.
        if self.at.port == self.wanted.port {
            self.listeners.clear();
        }
        match listen(&self.wanted) {
            Ok(listeners) => {
                self.listeners = listeners;
                self.at.clone_from(&self.wanted);
                self.problem.send_replace(None);
                info!(port = self.at.port, addresses = ?self.at.addresses, "listening for BGP elsewhere now");
            }
            Err(error) => {
                if self.listeners.is_empty() {
                    self.listeners = listen(&self.at).unwrap_or_default();
                }
                let words = error.to_string();
                if self.problem.borrow().as_ref() != Some(&words) {
                    error!(%error, port = self.at.port, "still listening for BGP where it was");
                }
                self.problem.send_replace(Some(words));
                self.retry = Some(Instant::now() + RETRY);
            }
        }
        for (peer, password) in &self.passwords {
            self.sign(*peer, Some(password));
        }
    }

    /// The next connection.
    pub(super) async fn accept(&self) -> (SocketFamily, io::Result<(TcpStream, SocketAddr)>) {
        if self.listeners.is_empty() {
            return future::pending().await;
        }
        let each = self
            .listeners
            .iter()
            .map(|listener| Box::pin(async move { (listener.family, listener.socket.accept().await) }));
        futures_util::future::select_all(each).await.0
    }

    /// Takes the passwords of the peers.
    pub(super) fn set_passwords(&mut self, peers: &BTreeMap<IpAddr, PeerConfig>) {
        let with = peers
            .iter()
            .filter_map(|(peer, config)| Some((*peer, config.password.clone()?)));
        let before = mem::replace(&mut self.passwords, with.collect());
        for peer in before.keys().filter(|peer| !self.passwords.contains_key(*peer)) {
            self.sign(*peer, None);
        }
        for (peer, password) in &self.passwords {
            if before.get(peer) != Some(password) {
                self.sign(*peer, Some(password));
            }
        }
    }

    /// Gives the listeners the password of a peer. One that the kernel does not take is named; its peer is then refused by
    /// the peer's own kernel, and nobody else is harmed.
    fn sign(&self, peer: IpAddr, password: Option<&Password>) {
        for listener in &self.listeners {
            if let Err(error) = listener.set_password(peer, password) {
                warn!(
                    %peer, %error,
                    "the kernel does not take the password: raise net.core.optmem_max if it is out of memory"
                );
            }
        }
    }
}

fn listen(endpoint: &Endpoint) -> Result<Vec<Listener>, SpeakerError> {
    let port = endpoint.port;
    connection::listen(&endpoint.addresses, port).map_err(|source| SpeakerError::Listen { port, source })
}
