//! Messages on their way to the kernel. To write one costs about as much as the packet that it becomes, on the thread that
//! writes; a thousand peers that are told of one block are therefore written to by several.

use std::collections::BTreeMap;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use culvert_bgp::id::ConnectionId;
use tokio::runtime::Handle;

use super::connection::{Connection, Sent};

/// For fewer messages each, a thread costs more than it spares.
const WORTH_A_THREAD: usize = 64;

/// More threads than these do not write faster: they wait for each other in the kernel.
const MOST_THREADS: usize = 4;

/// Messages that wait to be written, in order of each connection.
#[derive(Debug)]
pub(super) struct Sending {
    messages: Vec<(ConnectionId, Arc<Vec<u8>>)>,
    /// How many threads may write. To ask for that costs more than a message: it reads files of the kernel's.
    threads: usize,
}

impl Default for Sending {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            messages: Vec::new(),
            threads: cores.min(MOST_THREADS),
        }
    }
}

/// A connection, and what it is sent.
struct Share<'a> {
    id: ConnectionId,
    connection: &'a mut Connection,
    messages: Vec<Arc<Vec<u8>>>,
    /// The worst of what became of the messages; nothing while they are not written.
    sent: Option<Sent>,
}

impl Share<'_> {
    fn write(&mut self) {
        for bytes in mem::take(&mut self.messages) {
            let sent = self.connection.send(bytes);
            self.sent = self.sent.max(Some(sent));
            // What came after the gap would be no message to the peer.
            if sent == Sent::Overflowed {
                return;
            }
        }
    }
}

impl Sending {
    /// Adds a message.
    pub(super) fn add(&mut self, connection: ConnectionId, bytes: Arc<Vec<u8>>) {
        self.messages.push((connection, bytes));
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Writes all that waits, and tells those connections by which the kernel has not taken everything, in order. What was
    /// for a connection that is gone is gone with it.
    pub(super) fn write(
        &mut self,
        connections: &mut BTreeMap<ConnectionId, Connection>,
    ) -> Vec<(ConnectionId, Sent)> {
        let threads = self.threads.min(self.messages.len() / WORTH_A_THREAD);
        if threads < 2 {
            return self.write_alone(connections);
        }
        let mut messages: BTreeMap<ConnectionId, Vec<Arc<Vec<u8>>>> = BTreeMap::new();
        for (id, bytes) in self.messages.drain(..) {
            messages.entry(id).or_default().push(bytes);
        }
        let mut shares: Vec<Share<'_>> = connections
            .iter_mut()
            .filter_map(|(id, connection)| {
                let messages = messages.remove(id)?;
                Some(Share {
                    id: *id,
                    connection,
                    messages,
                    sent: None,
                })
            })
            .collect();
        write_by(threads, &mut shares);
        let sent = shares
            .into_iter()
            .filter_map(|share| Some((share.id, share.sent?)));
        sent.filter(|(_, sent)| *sent != Sent::Taken).collect()
    }

    fn write_alone(
        &mut self,
        connections: &mut BTreeMap<ConnectionId, Connection>,
    ) -> Vec<(ConnectionId, Sent)> {
        let mut not_taken = Vec::new();
        for (id, bytes) in self.messages.drain(..) {
            if not_taken.contains(&(id, Sent::Overflowed)) {
                continue;
            }
            match connections.get_mut(&id).map(|connection| connection.send(bytes)) {
                None | Some(Sent::Taken) => {}
                Some(sent) => not_taken.push((id, sent)),
            }
        }
        not_taken
    }
}

/// Writes by so many threads, of which this is one.
fn write_by(threads: usize, shares: &mut [Share<'_>]) {
    // What the kernel does not take at once is written by a task.
    let runtime = &Handle::current();
    let each = shares.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let mut parts = shares.chunks_mut(each);
        let own = parts.next();
        for part in parts {
            let write = move || {
                let _runtime = runtime.enter();
                part.iter_mut().for_each(Share::write);
            };
            // Without a thread this one writes it all, below.
            let _ = thread::Builder::new()
                .name("bgp-send".into())
                .spawn_scoped(scope, write);
        }
        own.into_iter().flatten().for_each(Share::write);
    });
    shares.iter_mut().for_each(Share::write);
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::speaker::connection::tests::connected;

    /// Two hundred connections, and the peers' ends of them.
    async fn many_connected() -> (BTreeMap<ConnectionId, Connection>, Vec<TcpStream>) {
        let (mut connections, mut peers) = (BTreeMap::new(), Vec::new());
        for number in 0..200 {
            let (ours, peer) = connected().await;
            connections.insert(ConnectionId(number), ours);
            peers.push(peer);
        }
        (connections, peers)
    }

    #[tokio::test]
    async fn many_connections_get_each_its_messages_in_order() {
        let (mut connections, mut peers) = many_connected().await;
        let mut sending = Sending::default();
        for round in 0..3_u8 {
            for number in 0..200 {
                sending.add(
                    ConnectionId(number),
                    Arc::new(vec![round, u8::try_from(number).unwrap()]),
                );
            }
            // One that is gone.
            sending.add(ConnectionId(1000), Arc::new(vec![9, 9]));
        }
        assert_eq!(sending.write(&mut connections), []);
        assert!(sending.is_empty());
        for (number, peer) in (0..200_u8).zip(&mut peers) {
            let mut received = [0; 6];
            peer.read_exact(&mut received).await.unwrap();
            assert_eq!(received, [0, number, 1, number, 2, number]);
        }
    }

    #[tokio::test]
    async fn of_many_connections_those_are_told_by_which_something_waits() {
        let (mut connections, mut peers) = many_connected().await;
        // No kernel holds so much of a peer that does not read.
        let much = Arc::new(vec![7; 16 << 20]);
        let mut sending = Sending::default();
        for number in 0..200 {
            let bytes = if number % 100 == 3 {
                Arc::clone(&much)
            } else {
                Arc::new(vec![1])
            };
            sending.add(ConnectionId(number), bytes);
        }
        let waiting = [
            (ConnectionId(3), Sent::Waiting),
            (ConnectionId(103), Sent::Waiting),
        ];
        assert_eq!(sending.write(&mut connections), waiting);
        let mut received = vec![0; much.len()];
        peers[103].read_exact(&mut received).await.unwrap();
        assert!(received == *much, "what waited arrives");
    }
}
