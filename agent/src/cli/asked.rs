//! The agent of this node, for the commands that ask it; and the forms in which they print its answers.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::CliError;
use crate::http::{Client, ClientError};

/// How long the agent may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which agent is asked.
#[derive(Debug, Args)]
pub(super) struct AgentArguments {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/agent.sock")]
    socket: PathBuf,
}

impl AgentArguments {
    /// Who asks it.
    pub(super) fn client(&self) -> Client {
        Client::new(&self.socket, PATIENCE)
    }

    /// Asks the agent.
    ///
    /// # Errors
    /// When there is none, or it refuses.
    pub(super) fn ask<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        question: impl FnOnce(Client) -> F,
    ) -> Result<T, CliError> {
        self.ask_within(PATIENCE, question)
    }

    /// Asks the agent for what takes it so long.
    ///
    /// # Errors
    /// When there is none, or it refuses.
    pub(super) fn ask_within<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        limit: Duration,
        question: impl FnOnce(Client) -> F,
    ) -> Result<T, CliError> {
        let runtime = super::runtime()?;
        Ok(runtime.block_on(question(Client::new(&self.socket, limit)))?)
    }
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: everything, times in UTC.
    Json,
    /// The same as YAML.
    Yaml,
}

impl Output {
    /// `answer` in this form; for people as `table` has it.
    ///
    /// # Errors
    /// When it cannot be written so.
    pub(super) fn of<T: Serialize>(
        self,
        answer: &T,
        table: impl FnOnce(&T) -> String,
    ) -> Result<String, CliError> {
        match self {
            Output::Table => Ok(table(answer)),
            Output::Json => json(answer),
            Output::Yaml => yaml(answer),
        }
    }
}

/// `answer` as JSON.
///
/// # Errors
/// When it cannot be written so.
pub(super) fn json(answer: &impl Serialize) -> Result<String, CliError> {
    Ok(serde_json::to_string_pretty(answer)? + "\n")
}

/// `answer` as YAML.
///
/// # Errors
/// When it cannot be written so.
pub(super) fn yaml(answer: &impl Serialize) -> Result<String, CliError> {
    Ok(serde_yaml::to_string(answer)?)
}
