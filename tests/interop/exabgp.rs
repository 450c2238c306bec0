//! `ExaBGP`, which says exactly what it is told to.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use harness::LabError;
use harness::pair::{self, Daemon, Pair};

/// The program, which must be on this machine.
pub(crate) const PROGRAM: &str = "/usr/sbin/exabgp";

/// A running `ExaBGP` on the other host.
pub(crate) struct Exabgp {
    _daemon: Daemon,
    log: PathBuf,
}

impl Exabgp {
    /// A peer of the agent's in AS `asn`, at `address`, that announces these routes through `next_hop`: each with what stands
    /// behind it in its configuration, such as `attribute [ TYPE FLAGS OCTETS ]`.
    pub(crate) fn start(
        pair: &Pair,
        (address, asn): (Ipv4Addr, u32),
        next_hop: Ipv4Addr,
        routes: &[(&str, String)],
    ) -> Result<Self, LabError> {
        let folder = pair.folder()?;
        let config = folder.join("exabgp.conf");
        super::daemon::write(&config, &configuration((address, asn), next_hop, routes))?;
        let mut exabgp = Command::new(PROGRAM);
        exabgp
            .env("exabgp.daemon.user", "root")
            .env("exabgp.api.cli", "false")
            .arg(&config);
        let log = folder.join("exabgp.log");
        Ok(Self {
            _daemon: pair.start(exabgp, &log)?,
            log,
        })
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn configuration((address, asn): (Ipv4Addr, u32), next_hop: Ipv4Addr, routes: &[(&str, String)]) -> String {
    let ours = pair::OUR_ADDRESS;
    let routes: String = routes
        .iter()
        .map(|(block, more)| format!("    route {block} next-hop {next_hop} {more};\n"))
        .collect();
    format!(
        "neighbor {ours} {{
  router-id {address};
  local-address {address};
  local-as {asn};
  peer-as 64512;
  hold-time 90;
  static {{
{routes}  }}
}}
"
    )
}
