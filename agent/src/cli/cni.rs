//! `culvert cni`: the plugin and its configuration on a host.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CliError;
use crate::cni::Host;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Put this binary in place as the CNI plugin, and then the configuration that makes a runtime call it.
    Install(InstallArguments),
    /// Take the configuration away, and then the plugin.
    Uninstall(HostArguments),
}

#[derive(Debug, Args)]
pub(super) struct HostArguments {
    /// The folder of plugins.
    #[arg(long, value_name = "FOLDER", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// The folder of configurations.
    #[arg(long, value_name = "FOLDER", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// The name of the configuration there; runtimes take the first by name.
    #[arg(long, value_name = "NAME", default_value = "10-culvert.conflist")]
    conf_name: String,
}

#[derive(Debug, Args)]
pub(super) struct InstallArguments {
    #[command(flatten)]
    host: HostArguments,
    /// The configuration, a list of plugins of which ours is the first.
    #[arg(long, value_name = "FILE")]
    conflist: PathBuf,
}

impl HostArguments {
    fn host(&self) -> Host {
        Host {
            bin: self.bin_dir.clone(),
            conf: self.conf_dir.clone(),
            conf_name: self.conf_name.clone(),
        }
    }
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let text = match command {
        Command::Install(arguments) => {
            let file = |path: &PathBuf, source| CliError::File {
                path: path.clone(),
                source,
            };
            let conflist =
                fs::read(&arguments.conflist).map_err(|source| file(&arguments.conflist, source))?;
            let own = PathBuf::from("/proc/self/exe");
            arguments.host.host().install(&own, &conflist)?;
            format!(
                "Installed: {} and {}.\n",
                arguments.host.bin_dir.join(crate::cni::PLUGIN_NAME).display(),
                arguments.host.conf_dir.join(&arguments.host.conf_name).display()
            )
        }
        Command::Uninstall(arguments) => {
            arguments.host().uninstall()?;
            "Uninstalled: runtimes no longer call the plugin on this host.\n".to_owned()
        }
    };
    super::print(&text)
}
