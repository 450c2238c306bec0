//! GoBGP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::pair::{Daemon, Pair};
use harness::{LabError, Namespace, wait_for};
use serde_json::Value;

use super::{Learned, Peer, THEIR_BLOCK_6, THEIR_COMMUNITY, Terms, command, json, tail, write};

/// A running GoBGP. It keeps its routes in memory only: they are given to it by its command line.
pub(crate) struct GoBgp {
    namespace: Namespace,
    folder: PathBuf,
    daemon: Daemon,
    terms: Terms,
}

impl GoBgp {
    pub(crate) fn start(pair: &Pair, terms: &Terms) -> Result<Self, LabError> {
        let folder = pair.folder()?;
        write(&folder.join("gobgpd.toml"), &configuration(terms, true))?;
        let mut gobgp = Self {
            namespace: pair.theirs.clone(),
            daemon: run(pair, &folder, &[])?,
            folder,
            terms: terms.clone(),
        };
        gobgp.wait()?;
        gobgp.announce(true)?;
        Ok(gobgp)
    }

    fn ask(&self, question: &str) -> Result<String, LabError> {
        let arguments: Vec<_> = question.split_whitespace().collect();
        self.namespace.run("gobgp", &arguments)
    }

    fn wait(&self) -> Result<(), LabError> {
        wait_for("GoBGP to answer", Duration::from_secs(30), || {
            self.ask("global")
                .map(drop)
                .map_err(|e| format!("{e}\n{}", tail(&self.folder.join("gobgpd.log"))))
        })
    }

    fn families(&self) -> &'static [&'static str] {
        if self.terms.ipv6 {
            &["ipv4", "ipv6"]
        } else {
            &["ipv4"]
        }
    }
}

fn run(pair: &Pair, folder: &Path, more: &[&str]) -> Result<Daemon, LabError> {
    let mut gobgpd = command("gobgpd", &["-t", "toml", "--api-hosts", "127.0.0.1:50051"]);
    gobgpd.arg("-f").arg(folder.join("gobgpd.toml")).args(more);
    pair.start(gobgpd, &folder.join("gobgpd.log"))
}

impl Peer for GoBgp {
    fn version(&self) -> Result<String, LabError> {
        let text = self.namespace.run("gobgpd", &["--version"])?;
        Ok(text.trim().replace("gobgpd version", "GoBGP"))
    }

    fn state(&self) -> Result<Result<(), String>, LabError> {
        let text = self.ask(&format!("neighbor {}", self.terms.our_address()))?;
        let line = text
            .lines()
            .find(|line| line.contains("BGP state"))
            .unwrap_or(&text);
        Ok(if line.to_uppercase().contains("ESTABLISHED") {
            Ok(())
        } else {
            Err(line.trim().to_owned())
        })
    }

    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError> {
        let mut learned = BTreeMap::new();
        for family in self.families() {
            let neighbour = self.terms.our_address();
            let text = self.ask(&format!("neighbor {neighbour} adj-in -a {family} -j"))?;
            let table = json("gobgp's answer", text.trim())?;
            for (prefix, paths) in table.as_object().into_iter().flatten() {
                if let Some(path) = paths.get(0) {
                    learned.insert(prefix.clone(), route(path));
                }
            }
        }
        Ok(learned)
    }

    fn announce(&mut self, announce: bool) -> Result<(), LabError> {
        let verb = if announce { "add" } else { "del" };
        let ipv6 = self
            .families()
            .contains(&"ipv6")
            .then_some(("ipv6", THEIR_BLOCK_6));
        let ipv4 = self.terms.announced().iter().map(|block| ("ipv4", *block));
        for (family, block) in ipv4.chain(ipv6) {
            let next_hop = match family {
                "ipv4" => harness::pair::THEIR_ADDRESS.to_string(),
                _ => harness::pair::THEIR_ADDRESS_6.to_string(),
            };
            let community = match THEIR_COMMUNITY {
                (asn, value) if self.terms.community => format!(" community {asn}:{value}"),
                _ => String::new(),
            };
            let path = if announce {
                // As the others have it: without a word it would be `incomplete`.
                format!("origin igp nexthop {next_hop}{community}")
            } else {
                String::new()
            };
            self.ask(&format!("global rib {verb} {block} {path} -a {family}"))?;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), LabError> {
        self.ask(&format!("neighbor {} softresetin", self.terms.our_address()))
            .map(drop)
    }

    fn die(&mut self) -> Result<(), LabError> {
        self.daemon.kill()
    }

    fn crash(&mut self, pair: &Pair) -> Result<(), LabError> {
        self.die()?;
        // Its routes come by its command line, once it runs. It must not have told all it has (End-of-RIB) before that.
        write(
            &self.folder.join("gobgpd.toml"),
            &configuration(&self.terms, false),
        )?;
        // `-r`: it is back from a restart.
        self.daemon = run(pair, &self.folder, &["-r"])?;
        self.wait()?;
        self.announce(true)?;
        let neighbour = self.terms.our_address();
        self.ask(&format!("neighbor {neighbour} enable")).map(drop)
    }

    fn last_words(&self) -> String {
        let neighbour = format!("neighbor {}", self.terms.our_address());
        let neighbour = self.ask(&neighbour).unwrap_or_default();
        format!("{neighbour}\n{}", tail(&self.folder.join("gobgpd.log")))
    }
}

/// A path with its attributes by their type codes.
fn route(path: &Value) -> Learned {
    let mut learned = Learned::default();
    for attribute in path.get("attrs").and_then(Value::as_array).into_iter().flatten() {
        let numbers = |pointer: &str| -> Vec<u32> {
            let list = attribute.pointer(pointer).and_then(Value::as_array);
            let numbers = list.into_iter().flatten().filter_map(Value::as_u64);
            numbers.filter_map(|number| u32::try_from(number).ok()).collect()
        };
        match attribute.get("type").and_then(Value::as_u64) {
            Some(2) => learned.as_path = numbers("/as_paths/0/asns"),
            Some(3 | 14) => {
                let next_hop = attribute.get("nexthop").and_then(Value::as_str);
                next_hop.unwrap_or_default().clone_into(&mut learned.next_hop);
            }
            Some(8) => {
                let communities = numbers("/communities").into_iter();
                learned.communities = communities
                    .map(|c| format!("{}:{}", c >> 16, c & 0xffff))
                    .collect();
            }
            _ => {}
        }
    }
    learned
}

/// `speaks`: whether it does so from its start.
fn configuration(terms: &Terms, speaks: bool) -> String {
    let (ours, theirs) = (terms.our_address(), terms.their_address());
    let mut neighbour = format!(
        "[[neighbors]]
[neighbors.config]
  neighbor-address = \"{ours}\"
  peer-as = {}
",
        terms.our_asn
    );
    if !speaks {
        neighbour += "  admin-down = true\n";
    }
    if let Some(password) = terms.password {
        neighbour += &format!("  auth-password = \"{password}\"\n");
    }
    neighbour += "[neighbors.timers.config]\n  connect-retry = 2\n";
    neighbour += &format!("[neighbors.transport.config]\n  local-address = \"{theirs}\"\n");
    if terms.ttl_security {
        neighbour += "[neighbors.ttl-security.config]\n  enabled = true\n  ttl-min = 255\n";
    }
    if terms.reflects {
        let id = terms.their_router_id();
        neighbour += &format!(
            "[neighbors.route-reflector.config]\n  route-reflector-client = true\n  route-reflector-cluster-id = \"{id}\"\n"
        );
    }
    if terms.graceful_restart {
        neighbour += "[neighbors.graceful-restart.config]\n  enabled = true\n  restart-time = 120\n";
    }
    let family = |name: &str| {
        let mut text =
            format!("[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\n  afi-safi-name = \"{name}\"\n");
        if terms.graceful_restart {
            text += "[neighbors.afi-safis.mp-graceful-restart.config]\n  enabled = true\n";
        }
        if terms.add_path {
            text += "[neighbors.afi-safis.add-paths.config]\n  receive = true\n  send-max = 8\n";
        }
        text
    };
    neighbour += &family("ipv4-unicast");
    if terms.ipv6 {
        neighbour += &family("ipv6-unicast");
    }
    format!(
        "[global.config]
  as = {}
  router-id = \"{}\"
  local-address-list = [\"{theirs}\"]
{neighbour}",
        terms.their_asn,
        terms.their_router_id(),
    )
}
