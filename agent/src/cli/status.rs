//! `culvert status`: all nodes of a cluster, asked at once.

use clap::{Args, ValueEnum};
use jiff::{Timestamp, Zoned};

use super::CliError;
use super::asked;
use super::members::MemberArguments;
use crate::http::{Peers, Question};
use crate::survey::{self, ClusterStatus, SMALL};
use crate::table::Paint;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    members: MemberArguments,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people: all of a small cluster, of a large one what is wrong.
    #[default]
    Table,
    /// The same with further columns: addresses in use, uptime, version, time to answer.
    Wide,
    /// For programs: everything, times in UTC.
    Json,
    /// The same as YAML.
    Yaml,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let status = super::runtime()?.block_on(look(&arguments.members))?;
    let text = match arguments.output {
        Output::Table => status.render(false, &Zoned::now(), Paint::of_stdout()),
        Output::Wide => status.render(true, &Zoned::now(), Paint::of_stdout()),
        Output::Json => asked::json(&status)?,
        Output::Yaml => asked::yaml(&status)?,
    };
    super::print(&text)?;
    match status.summary.wrong {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}

async fn look(arguments: &MemberArguments) -> Result<ClusterStatus, CliError> {
    let members = arguments.find().await?;
    // A cluster of a thousand nodes has a million ends of sessions: of those that are up nobody needs to be told.
    let peers = if members.agents.members().len() <= SMALL {
        Peers::All
    } else {
        Peers::Exceptional
    };
    let asked = Timestamp::now();
    let answered = survey::ask(&members.agents, Question::Status(peers), arguments.terms()).await;
    Ok(ClusterStatus::of(asked, answered))
}
