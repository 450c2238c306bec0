//! The speaker's side of the transport: the numbers of connections, whose each is, and what the driver is to do.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::id::ConnectionId;
use crate::output::Output;

/// Bytes for one connection are gathered into one [`Output::Send`] up to about this many: a write has a price.
const GATHER: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Transport {
    /// The time of the input that is being handled.
    pub(crate) now: Instant,
    /// Makes intervals uneven.
    pub(crate) jitter: Jitter,
    outputs: VecDeque<Output>,
    owners: BTreeMap<ConnectionId, IpAddr>,
    last: u64,
}

impl Transport {
    pub(crate) fn new(now: Instant, seed: u64) -> Self {
        Self {
            now,
            jitter: Jitter(seed),
            outputs: VecDeque::new(),
            owners: BTreeMap::new(),
            last: 0,
        }
    }

    pub(crate) fn next_connection(&mut self) -> ConnectionId {
        self.last = self.last.saturating_add(1);
        ConnectionId(self.last)
    }

    pub(crate) fn dial(&mut self, peer: IpAddr) -> ConnectionId {
        let connection = self.next_connection();
        self.adopt(connection, peer);
        self.outputs.push_back(Output::Dial { connection, peer });
        connection
    }

    pub(crate) fn adopt(&mut self, connection: ConnectionId, peer: IpAddr) {
        self.owners.insert(connection, peer);
    }

    pub(crate) fn owner(&self, connection: ConnectionId) -> Option<IpAddr> {
        self.owners.get(&connection).copied()
    }

    /// The connection is gone; there is nothing to close.
    pub(crate) fn forget(&mut self, connection: ConnectionId) -> Option<IpAddr> {
        self.owners.remove(&connection)
    }

    pub(crate) fn close(&mut self, connection: ConnectionId) {
        self.owners.remove(&connection);
        self.outputs.push_back(Output::Close { connection });
    }

    pub(crate) fn send(&mut self, to: ConnectionId, mut more: Vec<u8>) {
        if let Some(Output::Send { connection, bytes }) = self.outputs.back_mut()
            && *connection == to
            && bytes.len() < GATHER
            && let Some(bytes) = Arc::get_mut(bytes)
        {
            bytes.append(&mut more);
            return;
        }
        self.outputs.push_back(Output::Send {
            connection: to,
            bytes: Arc::new(more),
        });
    }

    /// Sends bytes that others are sent too: they are not copied.
    pub(crate) fn send_shared(&mut self, connection: ConnectionId, bytes: &Arc<Vec<u8>>) {
        self.outputs.push_back(Output::Send {
            connection,
            bytes: Arc::clone(bytes),
        });
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.outputs.is_empty()
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}

/// A generator for intervals (SplitMix64): the same seed gives the same intervals.
#[derive(Debug)]
pub(crate) struct Jitter(u64);

impl Jitter {
    /// RFC 4271 §10: the interval times a factor between 0.75 and 1.0.
    pub(crate) fn shorten(&mut self, interval: Duration) -> Duration {
        let step = u32::try_from(self.next() % 257).unwrap_or(0);
        interval.saturating_mul(768 + step) / 1024
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
