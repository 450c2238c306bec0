//! The programs of Kubernetes: where they are.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::LabError;
use crate::command::run;

/// Names the API server's binary, or that compressed (`.zst`); the others are beside it.
const API_SERVER: &str = "CULVERT_KUBE_APISERVER";

/// A program of Kubernetes (`kube-apiserver`, `kubelet`, …), ready to be run: the one beside what the environment names, as
/// it is or compressed, else the one that `tests/kubernetes/build` has made.
///
/// # Errors
/// [`LabError::NoKubernetes`] when it is not there; what the system says when it cannot be unpacked.
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    let target = target_folder()?;
    let built = target.join("kubernetes").join(name);
    let path = std::env::var_os(API_SERVER).map_or(built, |named| beside(&PathBuf::from(named), name));
    if !path.is_file() {
        return Err(LabError::NoKubernetes {
            name: name.to_owned(),
            path,
        });
    }
    if path.extension().is_none_or(|extension| extension != "zst") {
        return Ok(path);
    }
    let unpacked = target.join(format!("kubernetes/{name}.unpacked"));
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if modified(&unpacked).is_some_and(|made| modified(&path).is_none_or(|packed| made >= packed)) {
        return Ok(unpacked);
    }
    fs::create_dir_all(target.join("kubernetes"))
        .map_err(LabError::io(format!("make {}", target.display())))?;
    // Several processes may do this at once: each writes a file of its own, and the renames are equal.
    let beside = target.join(format!("kubernetes/unpacking-{name}-{}", std::process::id()));
    let mut command = Command::new("zstd");
    command.args(["-q", "-f", "-d"]).arg(&path).arg("-o").arg(&beside);
    run(command)?;
    let mut permissions = fs::metadata(&beside)
        .map_err(LabError::io(format!("look at {}", beside.display())))?
        .permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    let finish = || {
        fs::set_permissions(&beside, permissions)?;
        File::options()
            .append(true)
            .open(&beside)?
            .set_modified(std::time::SystemTime::now())?;
        fs::rename(&beside, &unpacked)
    };
    finish().map_err(LabError::io(format!("make {}", unpacked.display())))?;
    Ok(unpacked)
}

/// Where a program is when the API server is at `server`; that may be called anything itself.
fn beside(server: &Path, name: &str) -> PathBuf {
    if name == "kube-apiserver" {
        return server.to_owned();
    }
    let packed = server.extension().is_some_and(|extension| extension == "zst");
    server.with_file_name(if packed {
        format!("{name}.zst")
    } else {
        name.to_owned()
    })
}

/// `target/`, which the running program is in.
fn target_folder() -> Result<PathBuf, LabError> {
    let program = std::env::current_exe().map_err(LabError::io("find the running program"))?;
    let target = program.ancestors().find(|folder| folder.ends_with("target"));
    Ok(target.map_or_else(|| PathBuf::from("target"), Path::to_owned))
}
