//! The image: what is in it, that it holds together, and that a container runtime runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::Value;

use crate::servers::Server;
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 3] = [
    ("the_image_is_whole_and_smaller_than_25_mb", whole),
    ("the_binary_of_the_image_needs_nothing_else", alone),
    ("containerd_runs_the_image", runs),
];

/// No more than this is to be loaded onto every node.
const LARGEST: u64 = 25_000_000;

fn made() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/culvert.tar")
}

/// Why there is no image here, if there is none.
pub(crate) fn no_image() -> Option<String> {
    let path = made();
    (!path.is_file()).then(|| format!("{} is not there; charts/image/build makes it", path.display()))
}

fn run(program: &str, arguments: &[&str]) -> Result<String, Failed> {
    let output = Command::new(program).args(arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "{program} {arguments:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    )
    .into())
}

/// The image, unpacked; and what its layer comes to.
struct Unpacked {
    folder: tempfile::TempDir,
}

impl Unpacked {
    fn new() -> Result<Self, Failed> {
        let unpacked = Self {
            folder: tempfile::tempdir()?,
        };
        let (layout, root) = (unpacked.layout(), unpacked.root());
        for folder in [&layout, &root] {
            fs::create_dir(folder)?;
        }
        run(
            "tar",
            &["-xf", &made().to_string_lossy(), "-C", &layout.to_string_lossy()],
        )?;
        Ok(unpacked)
    }

    fn layout(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The blob that a descriptor means, which must be as it says (OCI image specification, "Content Descriptors").
    fn blob(&self, descriptor: &Value) -> Result<PathBuf, Failed> {
        let digest = descriptor["digest"].as_str().ok_or("no digest")?;
        let hex = digest.strip_prefix("sha256:").ok_or("no SHA-256")?;
        let path = self.layout().join("blobs/sha256").join(hex);
        ensure(
            descriptor["size"].as_u64() == Some(fs::metadata(&path)?.len()),
            || descriptor.to_string(),
        )?;
        let sum = run("sha256sum", &[&path.to_string_lossy()])?;
        ensure(sum.starts_with(hex), || format!("{digest} is {sum}"))?;
        Ok(path)
    }

    fn json(&self, path: &Path) -> Result<Value, Failed> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Unpacks the only layer, after everything that leads to it was checked.
    fn unpack_layer(&self) -> Result<(), Failed> {
        let version = self.json(&self.layout().join("oci-layout"))?;
        ensure(version["imageLayoutVersion"] == "1.0.0", || version.to_string())?;
        let index = self.json(&self.layout().join("index.json"))?;
        let manifest = self.json(&self.blob(&index["manifests"][0])?)?;
        let config = self.json(&self.blob(&manifest["config"])?)?;
        ensure(manifest["layers"].as_array().map(Vec::len) == Some(1), || {
            manifest.to_string()
        })?;
        let layer = self.blob(&manifest["layers"][0])?;
        ensure(config["config"]["Entrypoint"][0] == "/usr/bin/culvert", || {
            config.to_string()
        })?;
        let tar = self.folder.path().join("layer.tar");
        fs::copy(&layer, tar.with_extension("tar.gz"))?;
        run("gunzip", &[&tar.with_extension("tar.gz").to_string_lossy()])?;
        let sum = run("sha256sum", &[&tar.to_string_lossy()])?;
        let difference = config["rootfs"]["diff_ids"][0]
            .as_str()
            .ok_or("no diff_ids")?
            .to_owned();
        ensure(
            difference
                .strip_prefix("sha256:")
                .is_some_and(|hex| sum.starts_with(hex)),
            || format!("{difference} is {sum}"),
        )?;
        run(
            "tar",
            &[
                "-xf",
                &tar.to_string_lossy(),
                "-C",
                &self.root().to_string_lossy(),
            ],
        )?;
        Ok(())
    }
}

fn whole(_: &Server) -> Outcome {
    let unpacked = Unpacked::new()?;
    unpacked.unpack_layer()?;
    let root = unpacked.root();
    let files = run(
        "find",
        &[&root.to_string_lossy(), "-type", "f", "-printf", "%P %m %s\n"],
    )?;
    let size = fs::metadata(root.join("usr/bin/culvert"))?.len();
    ensure(files.trim() == format!("usr/bin/culvert 755 {size}"), || {
        files.clone()
    })?;
    let image = fs::metadata(made())?.len();
    println!("the image has {image} bytes, the binary in it {size}");
    ensure(image < LARGEST, || format!("{image} bytes: more than {LARGEST}"))
}

/// In a root folder where there is nothing but the binary it does what its pods do: it installs the plugin, and is the plugin.
fn alone(_: &Server) -> Outcome {
    let unpacked = Unpacked::new()?;
    unpacked.unpack_layer()?;
    let root = unpacked.root();
    for folder in ["proc", "bin", "conf"] {
        fs::create_dir(root.join(folder))?;
    }
    fs::write(
        root.join("list"),
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"culvert-cni"}]}"#,
    )?;
    let shown = root.to_string_lossy();
    let inside = |words: &[&str]| {
        // It finds itself in /proc, as it does in a container.
        let script = "mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"";
        let all = [&["--mount", "sh", "-c", script, &*shown], words].concat();
        run("unshare", &all)
    };
    let version = inside(&["/usr/bin/culvert", "--version"])?;
    ensure(version.starts_with("culvert "), || version.clone())?;
    inside(&[
        "/usr/bin/culvert",
        "cni",
        "install",
        "--bin-dir=/bin",
        "--conf-dir=/conf",
        "--conflist=/list",
    ])?;
    let own = fs::read(root.join("usr/bin/culvert"))?;
    ensure(fs::read(root.join("bin/culvert-cni"))? == own, || {
        "another plugin".to_owned()
    })?;
    let output = Command::new(root.join("bin/culvert-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    ensure(
        said["supportedVersions"]
            .as_array()
            .is_some_and(|all| all.contains(&"1.1.0".into())),
        || said.to_string(),
    )
}

/// A containerd of its own, that ends with this.
struct Containerd {
    folder: tempfile::TempDir,
    process: Child,
}

impl Containerd {
    fn start() -> Result<Self, Failed> {
        let folder = tempfile::Builder::new().prefix("culvert-containerd-").tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
            at("root"),
            at("state"),
            at("sock")
        );
        fs::write(at("config.toml"), config)?;
        let log = fs::File::create(at("log"))?;
        let process = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "--",
                "containerd",
                "--config",
                &at("config.toml"),
            ])
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let started = Self { folder, process };
        harness::wait_for("containerd to answer", Duration::from_secs(120), || {
            started.ctr(&["version"]).map_err(|error| format!("{error:?}"))
        })?;
        Ok(started)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, Failed> {
        let socket = self.folder.path().join("sock").display().to_string();
        run("ctr", &[&["--address", &socket], arguments].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn runs(_: &Server) -> Outcome {
    let containerd = Containerd::start()?;
    let imported = containerd.ctr(&[
        "images",
        "import",
        "--snapshotter",
        "native",
        &made().to_string_lossy(),
    ])?;
    let name = containerd.ctr(&["images", "ls", "-q"])?;
    let name = name.trim();
    ensure(name.starts_with("docker.io/library/culvert:"), || {
        format!("{imported}: {name}")
    })?;
    let version = containerd.ctr(&[
        "run",
        "--rm",
        "--snapshotter",
        "native",
        "--net-host",
        name,
        "version",
        "/usr/bin/culvert",
        "--version",
    ])?;
    ensure(version.starts_with("culvert "), || version.clone())?;
    Ok(())
}
