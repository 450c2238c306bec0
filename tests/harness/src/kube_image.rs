//! An image of busybox, for pods and for what holds their namespaces: made here, since there is no registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::LabError;
use crate::command::run;

/// What it is called.
pub const NAME: &str = "culvert.test/busybox:1";
/// What its web server says, at `/index.html` of `/www`.
pub const PAGE: &str = "well";
/// From Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 6] = ["sh", "sleep", "ping", "ip", "wget", "httpd"];

/// Makes the archive in `folder`, as `docker save` would write it. Its pods sleep.
///
/// # Errors
/// When a program is missing, or the folder cannot be written.
pub fn make(folder: &Path) -> Result<PathBuf, LabError> {
    let root = folder.join("root");
    let io = |what: &Path| LabError::io(format!("make {}", what.display()));
    for name in ["bin", "proc", "tmp", "etc", "www"] {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(io(&path))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(BUSYBOX, &busybox).map_err(io(&busybox))?;
    for applet in APPLETS {
        let path = root.join("bin").join(applet);
        fs::hard_link(&busybox, &path).map_err(io(&path))?;
    }
    let page = root.join("www/index.html");
    fs::write(&page, PAGE).map_err(io(&page))?;
    let at = |name: &str| folder.join(name).display().to_string();
    tar(&["-C", &at("root"), "-cf", &at("layer.tar"), "."])?;
    let mut command = Command::new("sha256sum");
    command.arg(at("layer.tar"));
    let sum = run(command)?;
    let digest = sum.split(' ').next().unwrap_or_default();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let configuration = json!({
        "architecture": architecture, "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep"], "Cmd": ["1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    for (name, content) in [("config.json", configuration), ("manifest.json", manifest)] {
        let path = folder.join(name);
        fs::write(&path, content.to_string()).map_err(io(&path))?;
    }
    let archive = folder.join("busybox.tar");
    tar(&[
        "-C",
        &folder.display().to_string(),
        "-cf",
        &archive.display().to_string(),
        "manifest.json",
        "config.json",
        "layer.tar",
    ])?;
    Ok(archive)
}

fn tar(arguments: &[&str]) -> Result<(), LabError> {
    let mut command = Command::new("tar");
    command.args(arguments);
    run(command).map(drop)
}
