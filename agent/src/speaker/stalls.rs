//! Connections whose peers do not take in what is sent, as the speaker's send hold timer has to know them (RFC 9687 §4).

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_bgp::id::ConnectionId;
use culvert_bgp::speaker::Input;
use tokio::time::Instant;

use super::connection::Connection;

/// How often it is looked whether a peer has read some of what waits. The timer that this restarts runs for minutes.
const INTERVAL: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    /// With the progress that each had made when it was last looked at.
    known: BTreeMap<ConnectionId, usize>,
    due: Option<Instant>,
}

impl Stalls {
    /// Something waits on a connection; what the speaker is to be told of that.
    pub(super) fn note(&mut self, id: ConnectionId, connection: &Connection) -> Option<Input<'static>> {
        if self.known.contains_key(&id) {
            return None;
        }
        self.known.insert(id, connection.progress());
        self.due.get_or_insert_with(|| Instant::now() + INTERVAL);
        Some(Input::Stalled { connection: id })
    }

    /// When to [look](Self::look).
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// What has become of the stalled connections, as the speaker is to be told.
    pub(super) fn look(&mut self, connections: &BTreeMap<ConnectionId, Connection>) -> Vec<Input<'static>> {
        let mut inputs = Vec::new();
        self.known.retain(|&id, before| {
            let Some(connection) = connections.get(&id) else {
                return false;
            };
            let progress = connection.progress();
            let is_waiting = connection.waiting() > 0;
            if progress != *before {
                inputs.push(Input::Sent { connection: id });
                // RFC 9687 §4.4: whatever goes out begins the time anew.
                if is_waiting {
                    inputs.push(Input::Stalled { connection: id });
                }
            }
            *before = progress;
            is_waiting
        });
        self.due = (!self.known.is_empty()).then(|| Instant::now() + INTERVAL);
        inputs
    }
}
