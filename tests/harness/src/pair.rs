//! Two hosts on one wire: an agent, and a BGP daemon that shares no code with it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::agent::Agent;
use crate::capture::PacketFile;
use crate::command::culvert;
use crate::lab::netns_batch;
use crate::record::{Record, kill};
use crate::{LabError, Namespace, wait_for};

/// The agent's address.
pub const OUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// The daemon's.
pub const THEIR_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// The agent's IPv6 address.
pub const OUR_ADDRESS_6: Ipv6Addr = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 1);
/// The daemon's.
pub const THEIR_ADDRESS_6: Ipv6Addr = Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 2);

/// Two namespaces with a cable between them, on 172.31.0.0/24 and fd31::/64. Taken down when dropped.
#[derive(Debug)]
pub struct Pair {
    record: Record,
    /// The agent's host.
    pub ours: Namespace,
    /// The other's.
    pub theirs: Namespace,
    /// The agent of the node `ours`.
    pub agent: Agent,
}

/// A daemon that was started; it ends with its [`Pair`].
#[derive(Debug)]
pub struct Daemon {
    child: Child,
}

impl Pair {
    /// Builds the hosts and the agent's datastore, which holds `manifests`. Nothing runs yet.
    ///
    /// # Errors
    /// When the binary is missing, or the system refuses; what was made is taken down.
    pub fn build(manifests: &str) -> Result<Self, LabError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("cvp{}-{count}", std::process::id());
        let record = Record::new(&prefix)?;
        let [ours, theirs] = ["ours", "theirs"].map(|name| Namespace::named(format!("{prefix}-{name}")));
        let datastore = record.folder().join("datastore");
        let folder = record.folder().join("agent");
        let agent = Agent::prepare(ours.clone(), &culvert()?, folder, "ours", &datastore)?;
        let pair = Self {
            record,
            ours,
            theirs,
            agent,
        };
        pair.wire()?;
        fs::create_dir_all(&datastore).map_err(LabError::io(format!("make {}", datastore.display())))?;
        pair.configure(manifests)?;
        Ok(pair)
    }

    /// Writes the manifests of the agent's datastore anew: whole, by a rename, as an editor does.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn configure(&self, manifests: &str) -> Result<(), LabError> {
        let folder = self.record.folder().join("datastore");
        let beside = folder.join(".cluster.yaml.edited");
        fs::write(&beside, manifests)
            .and_then(|()| fs::rename(&beside, folder.join("cluster.yaml")))
            .map_err(LabError::io(format!("write {}", beside.display())))
    }

    fn wire(&self) -> Result<(), LabError> {
        let both = [self.ours.clone(), self.theirs.clone()];
        for namespace in &both {
            self.record.namespace(namespace.name())?;
        }
        netns_batch("add", &both)?;
        self.ours.ip_batch(&[format!(
            "link add eth0 type veth peer name eth0 netns {}",
            self.theirs.name()
        )])?;
        let addresses = [
            (&self.ours, OUR_ADDRESS, OUR_ADDRESS_6),
            (&self.theirs, THEIR_ADDRESS, THEIR_ADDRESS_6),
        ];
        for (namespace, address, address_6) in addresses {
            namespace.ip_batch(&[
                "link set lo up".to_owned(),
                format!("addr add {address}/24 dev eth0"),
                // Without a wait for duplicates: a session may begin at once.
                format!("addr add {address_6}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
            ])?;
        }
        Ok(())
    }

    /// A folder for the files of the other host.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder(&self) -> Result<PathBuf, LabError> {
        let folder = self.record.folder().join("theirs");
        fs::create_dir_all(&folder).map_err(LabError::io(format!("make {}", folder.display())))?;
        Ok(folder)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self) -> Result<(), LabError> {
        self.agent.start(&self.record)
    }

    /// Watches the routes of the agent's host from now on.
    ///
    /// # Errors
    /// When the watch cannot be started.
    pub fn watch_routes(&self) -> Result<RouteWatch, LabError> {
        let log = self.record.folder().join("routes.log");
        let file = fs::File::create(&log).map_err(LabError::io(format!("create {}", log.display())))?;
        let mut command = Command::new("ip");
        command
            .args(["monitor", "route"])
            .stdin(Stdio::null())
            .stdout(file);
        let monitor = self.ours.spawn(command)?;
        self.record.process(monitor.id())?;
        let watch = RouteWatch { monitor, log };
        // It is listening once it tells of a change of ours.
        wait_for("ip monitor to listen", Duration::from_secs(30), || {
            self.ours
                .ip("route replace blackhole 192.0.2.1")
                .and_then(|_| self.ours.ip("route del blackhole 192.0.2.1"))
                .map_err(|e| e.to_string())?;
            let text = fs::read_to_string(&watch.log).map_err(|e| e.to_string())?;
            text.contains("192.0.2.1").then_some(()).ok_or(text)
        })?;
        Ok(watch)
    }

    /// Writes the packets of BGP on the agent's link to a file from now on.
    ///
    /// # Errors
    /// When that cannot be started.
    pub fn capture(&self) -> Result<PacketFile, LabError> {
        let path = self.record.folder().join("bgp.pcap");
        PacketFile::start(&self.ours, "eth0", "tcp port 179", &path)
    }

    /// Starts a daemon on the other host, with its output in `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, mut command: Command, log: &Path) -> Result<Daemon, LabError> {
        let opened = fs::OpenOptions::new().create(true).append(true).open(log);
        let file = opened.map_err(LabError::io(format!("open {}", log.display())))?;
        let twin = file.try_clone().map_err(LabError::io("open a log twice"))?;
        command.stdin(Stdio::null()).stdout(file).stderr(twin);
        let child = self.theirs.spawn(command)?;
        self.record.process(child.id())?;
        Ok(Daemon { child })
    }
}

/// Every change to the routes of a host, written down as it happens.
#[derive(Debug)]
pub struct RouteWatch {
    monitor: Child,
    log: PathBuf,
}

impl RouteWatch {
    /// Ends the watch: what `ip monitor` printed, line by line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn end(mut self) -> Result<Vec<String>, LabError> {
        kill(self.monitor.id(), Signal::SIGTERM);
        self.monitor.wait().map_err(LabError::io("wait for ip monitor"))?;
        let text =
            fs::read_to_string(&self.log).map_err(LabError::io(format!("read {}", self.log.display())))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Daemon {
    /// Ends it as a crash would.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<(), LabError> {
        // One that has ended and was waited for has no number any more: that may be somebody else's by now.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Ok(());
        }
        kill(self.child.id(), Signal::SIGKILL);
        self.child
            .wait()
            .map(drop)
            .map_err(LabError::io("wait for a daemon"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let taken = self.record.take_down();
        self.agent.reap();
        if let Err(error) = taken {
            eprintln!("laboratory {}: {error}", self.ours.name());
        }
    }
}
