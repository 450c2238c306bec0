//! BIRD 1.6, which Calico's routing daemon is a branch of: one program a family.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use harness::pair::{Daemon, Pair};
use harness::{LabError, Namespace, wait_for};

use super::bird2::{ask, routes, state};
use super::{Learned, Peer, THEIR_BLOCK_6, THEIR_COMMUNITY, Terms, command, tail, write};

/// Where `tests/run` unpacks it: its package and that of BIRD 2 exclude each other.
pub(super) const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/daemons/usr/sbin/bird");

/// A running BIRD 1.6, of the family that the session runs over.
pub(crate) struct Bird1 {
    namespace: Namespace,
    folder: PathBuf,
    daemon: Daemon,
    over_ipv6: bool,
}

impl Bird1 {
    pub(crate) fn start(pair: &Pair, terms: &Terms) -> Result<Self, LabError> {
        let folder = pair.folder()?;
        write(&folder.join("bird.conf"), &configuration(terms))?;
        let bird = Self {
            daemon: run(pair, &folder, terms.over_ipv6, &[])?,
            namespace: pair.theirs.clone(),
            folder,
            over_ipv6: terms.over_ipv6,
        };
        bird.wait()?;
        Ok(bird)
    }

    fn ask(&self, question: &str) -> Result<String, LabError> {
        let program = PROGRAM.to_owned() + if self.over_ipv6 { "c6" } else { "c" };
        ask(&self.namespace, &program, &self.folder.join("bird.ctl"), question)
    }

    fn wait(&self) -> Result<(), LabError> {
        wait_for("BIRD 1.6 to answer", Duration::from_secs(30), || {
            self.ask("show status")
                .map(drop)
                .map_err(|e| format!("{e}\n{}", tail(&self.folder.join("bird.log"))))
        })
    }
}

fn run(pair: &Pair, folder: &std::path::Path, over_ipv6: bool, more: &[&str]) -> Result<Daemon, LabError> {
    let program = PROGRAM.to_owned() + if over_ipv6 { "6" } else { "" };
    let mut bird = command(&program, &["-f"]);
    bird.arg("-c").arg(folder.join("bird.conf"));
    bird.arg("-s").arg(folder.join("bird.ctl")).args(more);
    pair.start(bird, &folder.join("bird.log"))
}

impl Peer for Bird1 {
    fn version(&self) -> Result<String, LabError> {
        let text = self.ask("show status")?;
        let line = text
            .lines()
            .find(|line| line.starts_with("BIRD ") && !line.contains("ready"));
        Ok(line.unwrap_or(&text).to_owned())
    }

    fn state(&self) -> Result<Result<(), String>, LabError> {
        Ok(state(&self.ask("show protocols")?))
    }

    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError> {
        Ok(routes(&self.ask("show route all protocol agent")?))
    }

    fn announce(&mut self, announce: bool) -> Result<(), LabError> {
        let verb = if announce { "enable" } else { "disable" };
        self.ask(&format!("{verb} own")).map(drop)
    }

    fn refresh(&mut self) -> Result<(), LabError> {
        self.ask("reload in agent").map(drop)
    }

    fn die(&mut self) -> Result<(), LabError> {
        self.daemon.kill()
    }

    fn crash(&mut self, pair: &Pair) -> Result<(), LabError> {
        self.die()?;
        self.daemon = run(pair, &self.folder, self.over_ipv6, &["-R"])?;
        self.wait()
    }

    fn last_words(&self) -> String {
        let protocols = self.ask("show protocols all").unwrap_or_default();
        format!("{protocols}\n{}", tail(&self.folder.join("bird.log")))
    }
}

fn configuration(terms: &Terms) -> String {
    let (ours, theirs) = (terms.our_address(), terms.their_address());
    let (our_asn, their_asn) = (terms.our_asn, terms.their_asn);
    let blocks = if terms.over_ipv6 {
        &[THEIR_BLOCK_6]
    } else {
        terms.announced()
    };
    let own: String = blocks
        .iter()
        .map(|block| format!(" route {block} blackhole;"))
        .collect();
    let community = match THEIR_COMMUNITY {
        (asn, value) if terms.community => format!(" bgp_community.add(({asn},{value}));"),
        _ => String::new(),
    };
    let mut options = String::new();
    if let Some(password) = terms.password {
        options += &format!("  password \"{password}\";\n");
    }
    if terms.ttl_security {
        options += "  ttl security on;\n";
    }
    if terms.graceful_restart {
        options += "  graceful restart on;\n";
    }
    if terms.reflects {
        options += "  rr client;\n";
    }
    if terms.add_path {
        options += "  add paths on;\n";
    }
    format!(
        "log stderr all;
router id {id};
protocol device {{ scan time 2; }}
protocol static own {{{own} }}
filter exported {{ if source = RTS_STATIC then {{{community} accept; }} if source = RTS_BGP then accept; reject; }}
protocol bgp agent {{
  local {theirs} as {their_asn};
  neighbor {ours} as {our_asn};
  direct;
  connect retry time 2;
  error wait time 1, 5;
  import all;
  export filter exported;
  next hop self;
{options}}}
",
        id = terms.their_router_id(),
    )
}
