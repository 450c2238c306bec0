//! OpenBGPD.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::pair::{Daemon, Pair};
use harness::{LabError, Namespace, wait_for};
use serde_json::Value;

use super::{Learned, Peer, THEIR_BLOCK_6, THEIR_COMMUNITY, Terms, command, json, tail, write};

/// A running OpenBGPD. Of graceful restart it knows the End-of-RIB marker alone.
pub(crate) struct OpenBgpd {
    namespace: Namespace,
    folder: PathBuf,
    daemon: Daemon,
    terms: Terms,
}

impl OpenBgpd {
    pub(crate) fn start(pair: &Pair, terms: &Terms) -> Result<Self, LabError> {
        // The home of its user, which its processes shut themselves in: made by its unit where there is systemd.
        make("/run/openbgpd")?;
        let folder = pair.folder()?;
        let config = folder.join("bgpd.conf");
        write(&config, &configuration(terms, &folder.join("bgpd.sock")))?;
        // It refuses a configuration that others may read or write.
        restrict(&config)?;
        let openbgpd = Self {
            namespace: pair.theirs.clone(),
            daemon: run(pair, &folder)?,
            folder,
            terms: terms.clone(),
        };
        openbgpd.wait()?;
        Ok(openbgpd)
    }

    fn ask(&self, question: &str) -> Result<String, LabError> {
        let socket = self.folder.join("bgpd.sock");
        let socket = socket.to_string_lossy();
        let mut arguments = vec!["-s", &socket];
        arguments.extend(question.split_whitespace());
        self.namespace.run("bgpctl", &arguments)
    }

    fn wait(&self) -> Result<(), LabError> {
        wait_for("OpenBGPD to answer", Duration::from_secs(30), || {
            self.ask("show summary")
                .map(drop)
                .map_err(|e| format!("{e}\n{}", tail(&self.folder.join("bgpd.log"))))
        })
    }
}

fn make(folder: &str) -> Result<(), LabError> {
    std::fs::create_dir_all(folder).map_err(|source| LabError::Io {
        operation: format!("make {folder}"),
        source,
    })
}

fn restrict(path: &Path) -> Result<(), LabError> {
    use std::os::unix::fs::PermissionsExt as _;

    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(|source| LabError::Io {
        operation: format!("change the mode of {}", path.display()),
        source,
    })
}

fn run(pair: &Pair, folder: &Path) -> Result<Daemon, LabError> {
    let mut bgpd = command("/usr/sbin/bgpd", &["-d"]);
    bgpd.arg("-f").arg(folder.join("bgpd.conf"));
    pair.start(bgpd, &folder.join("bgpd.log"))
}

impl Peer for OpenBgpd {
    fn version(&self) -> Result<String, LabError> {
        let mut bgpctl = command("bgpctl", &["-V"]);
        let output = bgpctl.output().map_err(|source| LabError::Io {
            operation: "run bgpctl -V".to_owned(),
            source,
        })?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    }

    fn state(&self) -> Result<Result<(), String>, LabError> {
        let text = self.ask(&format!("-j show neighbor {}", self.terms.our_address()))?;
        let all = json("bgpctl's answer", &text)?;
        let state = all.pointer("/neighbors/0/state").and_then(Value::as_str);
        Ok(match state {
            Some("Established") => Ok(()),
            other => Err(other.unwrap_or("unknown").to_owned()),
        })
    }

    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError> {
        let question = format!("-j show rib neighbor {} detail in", self.terms.our_address());
        let text = self.ask(&question)?;
        let table = json("bgpctl's answer", &text)?;
        let mut learned = BTreeMap::new();
        for path in table.get("rib").and_then(Value::as_array).into_iter().flatten() {
            if let Some(prefix) = path.get("prefix").and_then(Value::as_str) {
                learned.insert(prefix.to_owned(), route(path));
            }
        }
        Ok(learned)
    }

    fn announce(&mut self, announce: bool) -> Result<(), LabError> {
        let verb = if announce { "add" } else { "delete" };
        let (asn, value) = THEIR_COMMUNITY;
        let community = match announce && self.terms.community {
            true => format!(" community {asn}:{value}"),
            false => String::new(),
        };
        for block in self.terms.announced() {
            self.ask(&format!("network {verb} {block}{community}"))?;
        }
        if self.terms.ipv6 {
            self.ask(&format!("network {verb} {THEIR_BLOCK_6}{community}"))?;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), LabError> {
        self.ask(&format!("neighbor {} refresh", self.terms.our_address()))
            .map(drop)
    }

    fn die(&mut self) -> Result<(), LabError> {
        self.daemon.kill()
    }

    fn crash(&mut self, pair: &Pair) -> Result<(), LabError> {
        self.die()?;
        self.daemon = run(pair, &self.folder)?;
        self.wait()
    }

    fn last_words(&self) -> String {
        let neighbour = format!("show neighbor {}", self.terms.our_address());
        let neighbour = self.ask(&neighbour).unwrap_or_default();
        format!("{neighbour}\n{}", tail(&self.folder.join("bgpd.log")))
    }
}

fn route(path: &Value) -> Learned {
    let text = |name: &str| path.get(name).and_then(Value::as_str).unwrap_or_default();
    let communities = path.get("communities").and_then(Value::as_array);
    let communities = communities.into_iter().flatten().filter_map(Value::as_str);
    Learned {
        next_hop: text("exit_nexthop").to_owned(),
        as_path: text("aspath")
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect(),
        communities: communities.map(str::to_owned).collect(),
    }
}

/// Its listening socket has no key, though the neighbour has a password: it takes no signed connection, so that a session
/// with a password comes about when it dials itself. By default it does so every 120 s.
fn configuration(terms: &Terms, socket: &Path) -> String {
    let (ours, theirs) = (terms.our_address(), terms.their_address());
    let (asn, value) = THEIR_COMMUNITY;
    let community = match terms.community {
        true => format!(" set community {asn}:{value}"),
        false => String::new(),
    };
    let mut networks: String = terms
        .announced()
        .iter()
        .map(|block| format!("network {block}{community}\n"))
        .collect();
    let mut neighbour = format!(
        "  remote-as {}\n  local-address {theirs}\n  set nexthop self\n",
        terms.our_asn
    );
    if terms.ipv6 {
        networks += &format!("network {THEIR_BLOCK_6}{community}\n");
        neighbour += "  announce IPv4 unicast\n  announce IPv6 unicast\n";
    }
    if let Some(password) = terms.password {
        neighbour += &format!("  tcp md5sig password {password}\n");
    }
    if terms.ttl_security {
        neighbour += "  ttl-security yes\n";
    }
    if terms.reflects {
        neighbour += "  route-reflector\n";
    }
    if terms.add_path {
        neighbour += "  announce add-path recv yes\n  announce add-path send all\n";
    }
    if !terms.graceful_restart {
        neighbour += "  announce restart no\n";
    }
    format!(
        "AS {their_asn}
router-id {id}
connect-retry 2
fib-update no
listen on {theirs}
socket \"{socket}\"
{networks}neighbor {ours} {{
{neighbour}}}
allow from any
allow to any
",
        their_asn = terms.their_asn,
        id = terms.their_router_id(),
        socket = socket.display(),
    )
}
