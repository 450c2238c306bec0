//! Where a run takes place: two network namespaces without names, one for the speaker under test and one for all of its
//! peers, with a veth pair between them. Both vanish with this process, however it ends.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns, unshare};

use crate::Outcome;

/// The address of the speaker under test. It comes before those of all peers, so that Calico's rule has BIRD wait for
/// them to connect.
pub(crate) const SPEAKER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

/// The address of the `n`th peer.
pub(crate) fn peer(n: usize) -> Ipv4Addr {
    let n = u32::try_from(n).expect("a few thousand peers");
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 18, 1, 0)) + n / 250 * 256 + n % 250 + 1)
}

/// The `n`th block from 10.0.0.0 on.
pub(crate) fn block(n: usize) -> Ipv4Addr {
    let n = u32::try_from(n).expect("at most 2^18 blocks");
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n * 64)
}

/// A network namespace.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new() -> Outcome<Self> {
        let before = Self::current()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let new = Self::current()?;
        setns(&before.0, CloneFlags::CLONE_NEWNET)?;
        Ok(new)
    }

    fn current() -> Outcome<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net")?))
    }

    /// Does something inside. What is opened or started there stays inside.
    fn within<T>(&self, act: impl FnOnce() -> T) -> Outcome<T> {
        let before = Self::current()?;
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        let result = act();
        setns(&before.0, CloneFlags::CLONE_NEWNET)?;
        Ok(result)
    }
}

/// Both sides of the link.
#[derive(Debug)]
pub(crate) struct Place {
    speaker: Namespace,
    peers: Namespace,
}

impl Place {
    /// Makes a place for a speaker and so many peers.
    pub(crate) fn new(peers: usize) -> Outcome<Self> {
        let place = Self {
            speaker: Namespace::new()?,
            peers: Namespace::new()?,
        };
        let other_side = format!("/proc/{}/fd/{}", std::process::id(), place.peers.0.as_raw_fd());
        place.speaker.within(|| {
            ip_batch(&format!(
                "link set lo up
                 link add node type veth peer name mesh netns {other_side}
                 addr add {SPEAKER}/16 dev node
                 link set node up"
            ))
        })??;
        let mut lines = "link set lo up\nlink set mesh up\n".to_owned();
        for n in 0..peers {
            let _ = writeln!(lines, "addr add {}/16 dev mesh", peer(n));
        }
        place.peers.within(|| ip_batch(&lines))??;
        // A thousand neighbours are more than the kernel's table takes by default; those that are permanent do not count.
        let hardware = place.peers.within(|| link_address("mesh"))??;
        let mut lines = String::new();
        for n in 0..peers {
            let _ = writeln!(
                lines,
                "neigh add {} lladdr {hardware} dev node nud permanent",
                peer(n)
            );
        }
        place.speaker.within(|| ip_batch(&lines))??;
        Ok(place)
    }

    /// Does something where the speaker is.
    pub(crate) fn at_speaker<T>(&self, act: impl FnOnce() -> T) -> Outcome<T> {
        self.speaker.within(act)
    }

    /// Does something where the peers are.
    pub(crate) fn at_peers<T>(&self, act: impl FnOnce() -> T) -> Outcome<T> {
        self.peers.within(act)
    }
}

fn link_address(link: &str) -> Outcome<String> {
    let output = Command::new("ip")
        .args(["-brief", "link", "show", link])
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let address = text.split_whitespace().nth(2);
    Ok(address.ok_or("`ip -brief link` names no address")?.to_owned())
}

fn ip_batch(lines: &str) -> Outcome<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`ip -batch` ended with {status}; root is needed").into())
    }
}
