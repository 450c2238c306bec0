//! FRRouting: its BGP daemon, with its zebra beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::pair::{Daemon, Pair};
use harness::{LabError, Namespace, wait_for};
use serde_json::Value;

use super::{Learned, Peer, THEIR_BLOCK_6, THEIR_COMMUNITY, Terms, command, json, tail, write};

/// A running FRR.
pub(crate) struct Frr {
    namespace: Namespace,
    folder: PathBuf,
    /// Ended after the BGP daemon, which depends on it.
    _zebra: Daemon,
    bgpd: Daemon,
    terms: Terms,
}

impl Frr {
    pub(crate) fn start(pair: &Pair, terms: &Terms) -> Result<Self, LabError> {
        let folder = pair.folder()?;
        write(&folder.join("bgpd.conf"), &configuration(terms))?;
        write(&folder.join("zebra.conf"), "log stdout\n")?;
        // Its programs insist on a user of their own, who makes sockets here.
        pair.theirs
            .run("chown", &["-R", "frr:frr", &folder.to_string_lossy()])?;
        let zebra = run(pair, &folder, "zebra", &[])?;
        let socket = folder.join("zserv.api");
        wait_for("zebra to listen", Duration::from_secs(30), || {
            socket
                .exists()
                .then_some(())
                .ok_or_else(|| tail(&folder.join("zebra.log")))
        })?;
        let frr = Self {
            namespace: pair.theirs.clone(),
            _zebra: zebra,
            bgpd: run_bgpd(pair, &folder)?,
            folder,
            terms: terms.clone(),
        };
        frr.wait()?;
        Ok(frr)
    }

    fn wait(&self) -> Result<(), LabError> {
        wait_for("FRR to answer", Duration::from_secs(30), || {
            self.ask(&["show version"])
                .map(drop)
                .map_err(|e| format!("{e}\n{}", tail(&self.folder.join("bgpd.log"))))
        })
    }

    fn ask(&self, lines: &[&str]) -> Result<String, LabError> {
        let folder = self.folder.to_string_lossy();
        let mut arguments = vec!["--vty_socket", &folder, "-d", "bgpd"];
        for line in lines {
            arguments.extend(["-c", line]);
        }
        self.namespace.run("vtysh", &arguments)
    }

    fn neighbour(&self) -> Result<Value, LabError> {
        let text = self.ask(&[&format!("show bgp neighbors {} json", self.terms.our_address())])?;
        json("vtysh's answer", &text)
    }

    fn families(&self) -> &'static [&'static str] {
        if self.terms.ipv6 {
            &["ipv4", "ipv6"]
        } else {
            &["ipv4"]
        }
    }
}

fn run(pair: &Pair, folder: &Path, name: &str, more: &[&str]) -> Result<Daemon, LabError> {
    let mut program = command(&format!("/usr/lib/frr/{name}"), &["-u", "frr", "-g", "frr"]);
    program.arg("-f").arg(folder.join(format!("{name}.conf")));
    program.arg("-i").arg(folder.join(format!("{name}.pid")));
    program
        .arg("--vty_socket")
        .arg(folder)
        .arg("-z")
        .arg(folder.join("zserv.api"));
    program.args(["-P", "0"]).args(more);
    pair.start(program, &folder.join(format!("{name}.log")))
}

fn run_bgpd(pair: &Pair, folder: &Path) -> Result<Daemon, LabError> {
    run(pair, folder, "bgpd", &["-n"])
}

impl Peer for Frr {
    fn version(&self) -> Result<String, LabError> {
        let text = self.ask(&["show version"])?;
        Ok(text.split(" (").next().unwrap_or_default().trim().to_owned())
    }

    fn state(&self) -> Result<Result<(), String>, LabError> {
        let all = self.neighbour()?;
        let neighbour = all.get(self.terms.our_address().to_string()).unwrap_or(&all);
        let state = neighbour
            .get("bgpState")
            .and_then(Value::as_str)
            .unwrap_or("unknown");
        Ok(if state == "Established" {
            Ok(())
        } else {
            Err(state.to_owned())
        })
    }

    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError> {
        let mut learned = BTreeMap::new();
        for family in self.families() {
            let text = self.ask(&[&format!("show bgp {family} unicast json detail")])?;
            let table = json("vtysh's answer", &text)?;
            let routes = table.get("routes").and_then(Value::as_object);
            for (prefix, paths) in routes.into_iter().flatten() {
                // With and without `detail`, and from version to version, the paths stand one level deeper or not.
                let paths = paths.get("paths").unwrap_or(paths);
                let from_us = paths.as_array().into_iter().flatten().find(|path| {
                    let peer = path.pointer("/peer/peerId").or_else(|| path.get("peerId"));
                    peer.and_then(Value::as_str) == Some(&self.terms.our_address().to_string())
                });
                if let Some(path) = from_us {
                    learned.insert(prefix.clone(), route(path));
                }
            }
        }
        Ok(learned)
    }

    fn announce(&mut self, announce: bool) -> Result<(), LabError> {
        let no = if announce { "" } else { "no " };
        let ipv6 = self
            .families()
            .contains(&"ipv6")
            .then_some(("ipv6", THEIR_BLOCK_6));
        let ipv4 = self.terms.announced().iter().map(|block| ("ipv4", *block));
        for (family, block) in ipv4.chain(ipv6) {
            let map = if self.terms.community {
                " route-map own"
            } else {
                ""
            };
            self.ask(&[
                "configure terminal",
                &format!("router bgp {}", self.terms.their_asn),
                &format!("address-family {family} unicast"),
                &format!("{no}network {block}{map}"),
            ])?;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), LabError> {
        self.ask(&[&format!("clear bgp {} soft in", self.terms.our_address())])
            .map(drop)
    }

    fn die(&mut self) -> Result<(), LabError> {
        self.bgpd.kill()
    }

    fn crash(&mut self, pair: &Pair) -> Result<(), LabError> {
        self.die()?;
        self.bgpd = run_bgpd(pair, &self.folder)?;
        self.wait()
    }

    fn last_words(&self) -> String {
        let neighbour = format!("show bgp neighbors {}", self.terms.our_address());
        let neighbour = self.ask(&[&neighbour]).unwrap_or_default();
        format!("{neighbour}\n{}", tail(&self.folder.join("bgpd.log")))
    }
}

fn route(path: &Value) -> Learned {
    let words = |text: Option<&str>| -> Vec<String> {
        text.unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let as_path = path
        .pointer("/aspath/string")
        .or_else(|| path.get("path"))
        .and_then(Value::as_str);
    let next_hop = path.pointer("/nexthops/0/ip").and_then(Value::as_str);
    Learned {
        next_hop: next_hop.unwrap_or_default().to_owned(),
        as_path: words(as_path)
            .iter()
            .filter_map(|word| word.parse().ok())
            .collect(),
        communities: words(path.pointer("/community/string").and_then(Value::as_str)),
    }
}

fn configuration(terms: &Terms) -> String {
    let ours = terms.our_address();
    let mut neighbour = format!(" neighbor {ours} remote-as {}\n", terms.our_asn);
    neighbour += &format!(" neighbor {ours} timers connect 2\n neighbor {ours} advertisement-interval 0\n");
    if let Some(password) = terms.password {
        neighbour += &format!(" neighbor {ours} password {password}\n");
    }
    if terms.ttl_security {
        neighbour += &format!(" neighbor {ours} ttl-security hops 1\n");
    }
    let restart = if terms.graceful_restart {
        " bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n"
    } else {
        " bgp graceful-restart-disable\n"
    };
    let long_lived = if terms.long_lived {
        " bgp graceful-restart restart-time 1\n bgp long-lived-graceful-restart stale-time 3600\n"
    } else {
        ""
    };
    let map = if terms.community { " route-map own" } else { "" };
    let family = |name: &str, blocks: &[&str]| {
        let networks: String = blocks
            .iter()
            .map(|block| format!("  network {block}{map}\n"))
            .collect();
        let mut text = format!(" address-family {name} unicast\n{networks}  neighbor {ours} activate\n");
        text += &format!("  neighbor {ours} next-hop-self\n");
        if terms.reflects {
            text += &format!("  neighbor {ours} route-reflector-client\n");
        }
        if terms.add_path {
            text += &format!("  neighbor {ours} addpath-tx-all-paths\n");
        }
        text + " exit-address-family\n"
    };
    let mut families = String::new();
    if terms.over_ipv6 && !terms.ipv6 {
        families +=
            &format!(" address-family ipv4 unicast\n  no neighbor {ours} activate\n exit-address-family\n");
    } else {
        families += &family("ipv4", terms.announced());
    }
    if terms.ipv6 {
        families += &family("ipv6", &[THEIR_BLOCK_6]);
    }
    let (asn, value) = THEIR_COMMUNITY;
    format!(
        "log stdout
router bgp {their_asn}
 bgp router-id {id}
 no bgp ebgp-requires-policy
 no bgp network import-check
{restart}{long_lived}{neighbour}{families}
route-map own permit 10
 set community {asn}:{value}
",
        their_asn = terms.their_asn,
        id = terms.their_router_id(),
    )
}
