//! Puts the plugin and its configuration on a host, and takes them off again.
//!
//! Whatever a runtime finds at any moment is whole: each file is written beside its place and renamed into it. The
//! configuration comes last and goes first, since it is what makes a runtime call the plugin.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::PLUGIN_NAME;
use super::protocol::{Name, VERSIONS};

/// How the names of unfinished files begin: no runtime takes them for a plugin or a configuration.
const UNFINISHED: &str = ".culvert-unfinished-";

/// The folders of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Where plugins are, `/opt/cni/bin`.
    pub bin: PathBuf,
    /// Where configurations are, `/etc/cni/net.d`.
    pub conf: PathBuf,
    /// The name of ours there.
    pub conf_name: String,
}

/// Why a host has not what it should.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The configuration is no list of plugins.
    #[error("the configuration is no list of CNI plugins: {0}")]
    NoConflist(serde_json::Error),
    /// The configuration is in a version that the plugin does not speak.
    #[error("the configuration has cniVersion {version:?}: choose one of {}", VERSIONS.join(", "))]
    Version {
        /// What it has.
        version: String,
    },
    /// The plugin is not in the list, or more than once.
    #[error("the configuration names {PLUGIN_NAME} {count} times: it must be once, as the first plugin")]
    NotOurs {
        /// How often.
        count: usize,
    },
    /// A chained plugin is missing: the runtime would attach no pod at all.
    #[error(
        "the configuration chains {plugin}, which is not in {}: install it (containernetworking-plugins), or leave it out \
         (cni.{plugin}: false in the values of the chart)",
        folder.display()
    )]
    NoPlugin {
        /// Its name.
        plugin: Name,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The file of our name is another's.
    #[error("{} does not name {PLUGIN_NAME}: it is not ours to remove", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// Of a list of plugins, what is checked before a runtime reads it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conflist {
    cni_version: String,
    #[serde(rename = "name")]
    _name: Name,
    plugins: Vec<Plugin>,
}

#[derive(Deserialize)]
struct Plugin {
    r#type: Name,
}

impl Conflist {
    fn parse(text: &[u8]) -> Result<Self, InstallError> {
        serde_json::from_slice(text).map_err(InstallError::NoConflist)
    }

    fn ours(&self) -> usize {
        let types = self.plugins.iter().map(|plugin| plugin.r#type.as_str());
        types.filter(|name| *name == PLUGIN_NAME).count()
    }
}

impl Host {
    /// Copies `binary` as the plugin, and then `conflist` as the configuration, in place of what is there.
    ///
    /// # Errors
    /// When the configuration is wrong or chains a plugin that the host has not (nothing is written then), or a file
    /// cannot be written.
    pub fn install(&self, binary: &Path, conflist: &[u8]) -> Result<(), InstallError> {
        let list = Conflist::parse(conflist)?;
        if !VERSIONS.contains(&list.cni_version.as_str()) {
            return Err(InstallError::Version {
                version: list.cni_version,
            });
        }
        let is_first = list
            .plugins
            .first()
            .is_some_and(|plugin| plugin.r#type.as_str() == PLUGIN_NAME);
        if !is_first || list.ours() != 1 {
            return Err(InstallError::NotOurs { count: list.ours() });
        }
        for plugin in list.plugins.into_iter().skip(1) {
            if !self.bin.join(plugin.r#type.as_str()).is_file() {
                return Err(InstallError::NoPlugin {
                    plugin: plugin.r#type,
                    folder: self.bin.clone(),
                });
            }
        }
        self.sweep();
        let mut source = File::open(binary).map_err(failed("read", binary))?;
        put(&self.bin, PLUGIN_NAME, 0o755, |file| {
            io::copy(&mut source, file).map(drop)
        })?;
        put(&self.conf, &self.conf_name, 0o644, |file| {
            file.write_all(conflist)
        })
    }

    /// Takes the configuration away, and then the plugin. What is gone already is no error.
    ///
    /// # Errors
    /// When the file of our configuration's name is another's, or a file cannot be removed.
    pub fn uninstall(&self) -> Result<(), InstallError> {
        let conflist = self.conf.join(&self.conf_name);
        match fs::read(&conflist) {
            Ok(text) => {
                if !Conflist::parse(&text).is_ok_and(|list| list.ours() > 0) {
                    return Err(InstallError::Foreign { path: conflist });
                }
                remove(&conflist)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("read", &conflist)(source)),
        }
        self.sweep();
        remove(&self.bin.join(PLUGIN_NAME))
    }

    /// Removes what was being written when somebody before was killed. What cannot be removed does no harm.
    fn sweep(&self) {
        for folder in [&self.bin, &self.conf] {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Writes a file that is there whole or not at all, also after a crash of the machine.
fn put(
    folder: &Path,
    name: &str,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), InstallError> {
    let path = folder.join(name);
    let written = || -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        write(file.as_file_mut())?;
        file.as_file().set_permissions(Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    written().map_err(failed("write", &path))
}

fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io {
        operation,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: &str =
        r#"{"cniVersion":"1.0.0","name":"k8s-pod-network","plugins":[{"type":"culvert-cni"}]}"#;
    const CHAINED: &str =
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"culvert-cni"},{"type":"portmap"}]}"#;

    struct Folders {
        host: Host,
        binary: PathBuf,
        root: tempfile::TempDir,
    }

    fn folders() -> Folders {
        let root = tempfile::tempdir().unwrap();
        let host = Host {
            bin: root.path().join("bin"),
            conf: root.path().join("conf"),
            conf_name: "10-culvert.conflist".into(),
        };
        fs::create_dir(&host.bin).unwrap();
        fs::create_dir(&host.conf).unwrap();
        let binary = root.path().join("culvert");
        fs::write(&binary, "program").unwrap();
        Folders { host, binary, root }
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn plugin_and_configuration_are_put_in_place_and_taken_away_and_nothing_else_is() {
        let Folders { host, binary, root } = folders();
        fs::write(host.bin.join("loopback"), "theirs").unwrap();
        fs::write(host.conf.join("99-loopback.conf"), "theirs").unwrap();
        // What two installations that were killed have left.
        fs::write(host.bin.join(format!("{UNFINISHED}a")), "half").unwrap();
        fs::write(host.conf.join(format!("{UNFINISHED}b")), "half").unwrap();
        for program in ["program", "another program"] {
            fs::write(&binary, program).unwrap();
            host.install(&binary, ALONE.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(host.bin.join(PLUGIN_NAME)).unwrap(), program);
        }
        assert_eq!(names(&host.bin), ["culvert-cni", "loopback"]);
        assert_eq!(names(&host.conf), ["10-culvert.conflist", "99-loopback.conf"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(host.bin.join(PLUGIN_NAME)), 0o755);
        assert_eq!(mode(host.conf.join("10-culvert.conflist")), 0o644);
        for _ in 0..2 {
            host.uninstall().unwrap();
            assert_eq!(names(&host.bin), ["loopback"]);
            assert_eq!(names(&host.conf), ["99-loopback.conf"]);
        }
        assert_eq!(names(root.path()), ["bin", "conf", "culvert"]);
    }

    #[test]
    fn a_list_that_no_runtime_could_use_is_refused_and_nothing_is_written() {
        let Folders {
            host,
            binary,
            root: _root,
        } = folders();
        for (text, words) in [
            ("", "no list of CNI plugins"),
            (
                r#"{"cniVersion":"1.0.0","name":"../a","plugins":[]}"#,
                "is not a name",
            ),
            (
                r#"{"cniVersion":"9.0.0","name":"a","plugins":[]}"#,
                "\"9.0.0\": choose one of 0.3.0",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#,
                "culvert-cni 0 times",
            ),
            (CHAINED, "chains portmap, which is not in"),
        ] {
            let error = host.install(&binary, text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(names(&host.bin), Vec::<String>::new());
            assert_eq!(names(&host.conf), Vec::<String>::new());
        }
        fs::write(host.bin.join("portmap"), "").unwrap();
        host.install(&binary, CHAINED.as_bytes()).unwrap();
    }

    #[test]
    fn the_configuration_is_not_there_before_the_plugin_is() {
        let Folders {
            host,
            binary,
            root: _root,
        } = folders();
        fs::remove_dir(&host.bin).unwrap();
        let error = host.install(&binary, ALONE.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("bin/culvert-cni"), "{error}");
        assert_eq!(names(&host.conf), Vec::<String>::new());
    }

    #[test]
    fn a_file_of_our_name_that_is_anothers_is_left_alone() {
        let Folders {
            host, root: _root, ..
        } = folders();
        let path = host.conf.join("10-culvert.conflist");
        fs::write(
            &path,
            r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#,
        )
        .unwrap();
        let error = host.uninstall().unwrap_err().to_string();
        assert!(error.ends_with("is not ours to remove"), "{error}");
        assert!(path.exists());
    }
}
