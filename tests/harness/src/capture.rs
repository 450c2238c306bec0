//! Packets seen on a wire, with the addresses of every IPv4 header in them.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::command::run;
use crate::record::kill;
use crate::{LabError, Namespace, wait_for};

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    packets: Arc<Mutex<Vec<Packet>>>,
    place: String,
}

/// A captured packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source and destination of each IPv4 header, the outer one first: two of them in a tunnelled packet (protocol 4).
    pub headers: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// The line that `tcpdump` prints for it.
    pub text: String,
}

impl Packet {
    /// The addresses that the outer packet carries, when there is an inner one.
    #[must_use]
    pub fn outer(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        if self.headers.len() > 1 {
            self.headers.first().copied()
        } else {
            None
        }
    }

    /// The addresses of the pods.
    #[must_use]
    pub fn inner(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        self.headers.last().copied()
    }
}

impl Capture {
    /// Starts to capture what matches a filter of `tcpdump` on a link, and waits until it listens.
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn start(namespace: &Namespace, link: &str, filter: &str) -> Result<Self, LabError> {
        let mut command = Command::new("tcpdump");
        command
            .args(["-nn", "-t", "-l", "--immediate-mode", "-i", link])
            .args(filter.split_whitespace());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = namespace.spawn(command)?;
        let packets = Arc::new(Mutex::new(Vec::new()));
        let words = Arc::new(Mutex::new(String::new()));
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            let (packets, words) = (Arc::clone(&packets), Arc::clone(&words));
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    packets
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .extend(packet(&line));
                }
            });
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    *words.lock().unwrap_or_else(PoisonError::into_inner) += &line;
                }
            });
        }
        let capture = Self {
            child,
            packets,
            place: format!("{link} of {}", namespace.name()),
        };
        wait_for("tcpdump to listen", Duration::from_secs(30), || {
            let words = words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.contains("listening on") {
                Ok(())
            } else {
                Err(words.clone())
            }
        })?;
        Ok(capture)
    }

    /// Waits for a packet.
    ///
    /// # Errors
    /// When none like it comes within half a minute.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet, LabError> {
        wait_for(
            &format!("{what} on {}", self.place),
            Duration::from_secs(30),
            || {
                let packets = self.packets();
                let found = packets.iter().find(|packet| wanted(packet)).cloned();
                found.ok_or_else(|| {
                    let texts: Vec<_> = packets.into_iter().map(|p| p.text).collect();
                    format!("{} packets: {}", texts.len(), texts.join("; "))
                })
            },
        )
    }

    /// All packets so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.packets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Packets written to a file as they are, for a program that takes them apart.
#[derive(Debug)]
pub struct PacketFile {
    child: Child,
    path: PathBuf,
}

impl PacketFile {
    /// Starts to write what matches a filter of `tcpdump` on a link, and waits until it listens.
    ///
    /// # Errors
    /// When `tcpdump` does not start.
    pub fn start(namespace: &Namespace, link: &str, filter: &str, path: &Path) -> Result<Self, LabError> {
        let mut command = Command::new("tcpdump");
        // As root to the end, or it could not write where it is told to.
        command
            .args(["-Z", "root", "-U", "--immediate-mode", "-i", link, "-w"])
            .arg(path)
            .args(filter.split_whitespace());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let file = Self {
            child: namespace.spawn(command)?,
            path: path.to_owned(),
        };
        // The header of the file is written once it listens.
        wait_for("tcpdump to listen", Duration::from_secs(30), || {
            let length = std::fs::metadata(path).map(|file| file.len());
            match length {
                Ok(1..) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        Ok(file)
    }

    /// What `tshark` prints of those packets that match its display filter, a line each.
    ///
    /// # Errors
    /// When `tshark` refuses.
    pub fn dissect(&self, filter: &str) -> Result<Vec<String>, LabError> {
        let mut command = Command::new("tshark");
        command.args(["-n", "-r"]).arg(&self.path).args(["-Y", filter]);
        let text = run(command)?;
        Ok(text.lines().map(|line| line.trim().to_owned()).collect())
    }
}

impl Drop for PacketFile {
    fn drop(&mut self) {
        kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Reads a line such as `IP 172.18.0.11 > 172.18.0.12: IP 10.65.1.1 > 10.65.2.1: ICMP echo request, id 1, seq 1, …`.
fn packet(line: &str) -> Option<Packet> {
    let mut headers = Vec::new();
    let mut rest = line;
    while let Some((header, inner)) = rest.strip_prefix("IP ").and_then(|rest| rest.split_once(": ")) {
        let (source, destination) = header.split_once(" > ")?;
        headers.push((source.parse().ok()?, destination.parse().ok()?));
        rest = inner;
    }
    (!headers.is_empty()).then(|| Packet {
        headers,
        text: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_tunnelled_packet_has_outer_and_inner_addresses() {
        let line = "IP 172.18.0.11 > 172.18.0.12: IP 10.65.1.1 > 10.65.2.1: ICMP echo request, id 7, seq 1, length 64";
        let packet = packet(line).unwrap();
        assert_eq!(
            packet.outer(),
            Some((address("172.18.0.11"), address("172.18.0.12")))
        );
        assert_eq!(packet.inner(), Some((address("10.65.1.1"), address("10.65.2.1"))));
    }

    #[test]
    fn a_plain_packet_has_no_outer_addresses() {
        let packet = packet("IP 10.65.1.1 > 10.65.2.1: ICMP echo reply, id 7, seq 1, length 64").unwrap();
        assert_eq!(packet.outer(), None);
        assert_eq!(packet.inner(), Some((address("10.65.1.1"), address("10.65.2.1"))));
    }

    #[test]
    fn what_is_not_ipv4_is_left_out() {
        assert_eq!(
            packet("ARP, Request who-has 172.18.0.12 tell 172.18.0.11, length 28"),
            None
        );
        assert_eq!(
            packet("IP6 fe80::1 > ff02::2: ICMP6, router solicitation, length 16"),
            None
        );
    }
}
