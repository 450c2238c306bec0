//! `culvert bgp`: the speaker of this node, its peers and their routes.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::Zoned;

use super::CliError;
use super::asked::{AgentArguments, Output};
use crate::ribs::{RibRequest, RibTable};
use crate::speaker::Clear;
use crate::status::AgentStatus;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the peers, with what they announce and why a session is down.
    Peers(PeersArguments),
    /// List routes: those received from peers, advertised to them, or in use.
    Routes(RoutesArguments),
    /// End a session and begin it anew, or with --soft only ask for all its routes once more.
    Clear(ClearArguments),
}

#[derive(Debug, Args)]
pub(super) struct PeersArguments {
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

#[derive(Debug, Args)]
pub(super) struct RoutesArguments {
    /// Which routes.
    #[arg(value_enum, default_value = "best")]
    table: RibTable,
    /// Only those of this peer.
    #[arg(long, value_name = "ADDRESS")]
    peer: Option<IpAddr>,
    /// Only destinations in this range.
    #[arg(long, value_name = "CIDR")]
    within: Option<IpNet>,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

#[derive(Debug, Args)]
pub(super) struct ClearArguments {
    /// The peer whose session it is.
    #[arg(value_name = "ADDRESS", required_unless_present = "all")]
    peer: Option<IpAddr>,
    /// The sessions with all peers. Routes are lost for a moment where a peer has no graceful restart.
    #[arg(long, conflicts_with = "peer")]
    all: bool,
    /// Keep the session, and ask for all routes once more.
    #[arg(long)]
    soft: bool,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let text = match command {
        Command::Peers(arguments) => {
            let status = arguments.agent.ask(async |agent| agent.status().await)?;
            let AgentStatus { peers, .. } = &status;
            arguments
                .output
                .of(peers, |_| status.render_peers(&Zoned::now()))?
        }
        Command::Routes(arguments) => {
            let request = RibRequest {
                table: arguments.table,
                peer: arguments.peer,
                within: arguments.within,
            };
            let routes = arguments
                .agent
                .ask(async |agent| agent.bgp_routes(&request).await)?;
            arguments
                .output
                .of(&routes, |routes| routes.render(request.table))?
        }
        Command::Clear(arguments) => {
            let clear = Clear {
                peer: arguments.peer,
                soft: arguments.soft,
            };
            let cleared = arguments.agent.ask(async |agent| agent.bgp_clear(&clear).await)?;
            let what = if clear.soft {
                "Asked for all routes once more"
            } else {
                "Cleared"
            };
            let named: Vec<String> = cleared.iter().map(ToString::to_string).collect();
            if named.is_empty() {
                "This node has no BGP peers.\n".to_owned()
            } else {
                format!("{what}: {}.\n", named.join(", "))
            }
        }
    };
    super::print(&text)
}
