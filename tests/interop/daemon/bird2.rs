//! BIRD 2.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use harness::pair::{Daemon, Pair};
use harness::{LabError, Namespace, wait_for};

use super::{Learned, Peer, THEIR_BLOCK_6, THEIR_COMMUNITY, Terms, command, tail, write};

/// A running BIRD 2.
pub(crate) struct Bird2 {
    namespace: Namespace,
    folder: PathBuf,
    daemon: Daemon,
    ipv6: bool,
}

impl Bird2 {
    pub(crate) fn start(pair: &Pair, terms: &Terms) -> Result<Self, LabError> {
        let folder = pair.folder()?;
        write(&folder.join("bird.conf"), &configuration(terms))?;
        let daemon = run(pair, &folder, &[])?;
        let bird = Self {
            namespace: pair.theirs.clone(),
            folder,
            daemon,
            ipv6: terms.ipv6,
        };
        bird.wait()?;
        Ok(bird)
    }

    fn ask(&self, question: &str) -> Result<String, LabError> {
        ask(&self.namespace, "birdc", &self.folder.join("bird.ctl"), question)
    }

    fn wait(&self) -> Result<(), LabError> {
        wait_for("BIRD 2 to answer", Duration::from_secs(30), || {
            self.ask("show status")
                .map(drop)
                .map_err(|e| format!("{e}\n{}", tail(&self.folder.join("bird.log"))))
        })
    }
}

/// Starts the program; `more` are further arguments.
fn run(pair: &Pair, folder: &std::path::Path, more: &[&str]) -> Result<Daemon, LabError> {
    let mut bird = command("bird", &["-f"]);
    bird.arg("-c").arg(folder.join("bird.conf"));
    bird.arg("-s").arg(folder.join("bird.ctl")).args(more);
    pair.start(bird, &folder.join("bird.log"))
}

/// Asks a BIRD of either version through its control program.
pub(super) fn ask(
    namespace: &Namespace,
    program: &str,
    control: &std::path::Path,
    question: &str,
) -> Result<String, LabError> {
    let control = control.to_string_lossy();
    let mut arguments = vec!["-s", &control];
    arguments.extend(question.split_whitespace());
    namespace.run(program, &arguments)
}

impl Peer for Bird2 {
    fn version(&self) -> Result<String, LabError> {
        let text = self.ask("show status")?;
        let line = text
            .lines()
            .find(|line| line.starts_with("BIRD ") && !line.contains("ready"));
        Ok(line.unwrap_or(&text).to_owned())
    }

    fn state(&self) -> Result<Result<(), String>, LabError> {
        Ok(state(&self.ask("show protocols agent")?))
    }

    fn learned(&self) -> Result<BTreeMap<String, Learned>, LabError> {
        Ok(routes(&self.ask("show route all protocol agent")?))
    }

    fn announce(&mut self, announce: bool) -> Result<(), LabError> {
        let verb = if announce { "enable" } else { "disable" };
        self.ask(&format!("{verb} own4"))?;
        if self.ipv6 {
            self.ask(&format!("{verb} own6"))?;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<(), LabError> {
        self.ask("reload in agent").map(drop)
    }

    fn die(&mut self) -> Result<(), LabError> {
        self.daemon.kill()
    }

    fn crash(&mut self, pair: &Pair) -> Result<(), LabError> {
        self.die()?;
        // As the routing daemon of a node is started again: with recovery (-R).
        self.daemon = run(pair, &self.folder, &["-R"])?;
        self.wait()
    }

    fn last_words(&self) -> String {
        let protocols = self.ask("show protocols all agent").unwrap_or_default();
        format!("{protocols}\n{}", tail(&self.folder.join("bird.log")))
    }
}

/// Whether `show protocols` has the session Established.
pub(super) fn state(text: &str) -> Result<(), String> {
    let line = text
        .lines()
        .find(|line| line.starts_with("agent"))
        .unwrap_or(text);
    if line.contains("Established") {
        Ok(())
    } else {
        Err(line.to_owned())
    }
}

/// The routes of `show route all`, as both versions print them.
pub(super) fn routes(text: &str) -> BTreeMap<String, Learned> {
    let mut routes: BTreeMap<String, Learned> = BTreeMap::new();
    let mut prefix = String::new();
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with([' ', '\t']) && first.contains('/') {
            first.clone_into(&mut prefix);
            routes.entry(prefix.clone()).or_default();
        }
        let Some(route) = routes.get_mut(&prefix) else {
            continue;
        };
        let Some((name, value)) = line.trim().split_once(':') else {
            continue;
        };
        let words = value.split_whitespace();
        match name {
            "BGP.next_hop" => route.next_hop = words.take(1).collect(),
            "BGP.as_path" => route.as_path = words.filter_map(|word| word.parse().ok()).collect(),
            "BGP.community" => {
                route.communities = words
                    .map(|word| word.trim_matches(['(', ')']).replace(',', ":"))
                    .collect();
            }
            _ => {}
        }
    }
    routes
}

fn configuration(terms: &Terms) -> String {
    let (ours, theirs) = (terms.our_address(), terms.their_address());
    let (our_asn, their_asn) = (terms.our_asn, terms.their_asn);
    let community = match THEIR_COMMUNITY {
        (asn, value) if terms.community => format!(" {{ bgp_community.add(({asn},{value})); }}"),
        _ => String::new(),
    };
    let route = |block: &&str| format!(" route {block} blackhole{community};");
    let own4: String = terms.announced().iter().map(route).collect();
    let mut options = String::new();
    if let Some(password) = terms.password {
        options += &format!("  password \"{password}\";\n");
    }
    if terms.ttl_security {
        options += "  ttl security on;\n";
    }
    options += if terms.graceful_restart {
        "  graceful restart on;\n"
    } else {
        "  graceful restart off;\n"
    };
    if terms.long_lived {
        options +=
            "  graceful restart time 1;\n  long lived graceful restart on;\n  long lived stale time 3600;\n";
    }
    if terms.reflects {
        options += "  rr client;\n";
    }
    let add_path = if terms.add_path { " add paths on;" } else { "" };
    let channel = |family: &str| {
        format!(
            "  {family} {{ import all; export where source = RTS_STATIC || source = RTS_BGP; next hop self;{add_path} }};\n"
        )
    };
    let channels = if terms.ipv6 {
        channel("ipv4") + &channel("ipv6")
    } else {
        channel("ipv4")
    };
    format!(
        "log stderr all;
router id {id};
protocol device {{ scan time 2; }}
protocol static own4 {{ ipv4;{own4} }}
protocol static own6 {{ ipv6; route {THEIR_BLOCK_6} blackhole{community}; }}
protocol bgp agent {{
  local {theirs} as {their_asn};
  neighbor {ours} as {our_asn};
  direct;
  connect retry time 2;
  error wait time 1, 5;
{options}{channels}}}
",
        id = terms.their_router_id(),
    )
}
