//! Chromium without a window.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{LabError, Namespace, interruption, wait_for};
use libtest_mimic::Failed;

const PROGRAM: &str = "/usr/bin/chromium";

/// How long it may take to start, on a machine that does other things.
const GENEROUS: Duration = Duration::from_secs(180);

/// Why there is no browser here, if there is none.
pub(crate) fn missing() -> Option<String> {
    (!Path::new(PROGRAM).exists()).then(|| format!("{PROGRAM} is missing; tests/run installs it"))
}

/// The colours that a reader prefers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

/// The elements of a page, after its script has asked and drawn.
pub(crate) fn elements(namespace: Option<&Namespace>, url: &str) -> Result<String, Failed> {
    let folder = tempfile::tempdir()?;
    let written = folder.path().join("page.html");
    run(
        namespace,
        folder.path(),
        &["--dump-dom", url],
        File::create(&written)?,
    )?;
    Ok(std::fs::read_to_string(written)?)
}

/// Draws a page into `target/page/NAME.png`.
pub(crate) fn picture(
    namespace: Option<&Namespace>,
    url: &str,
    name: &str,
    scheme: Scheme,
) -> Result<PathBuf, Failed> {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/page");
    std::fs::create_dir_all(&pictures)?;
    let file = pictures.join(format!("{name}.png"));
    let _ = std::fs::remove_file(&file);
    let shot = format!("--screenshot={}", file.display());
    // Blink's number of what the reader prefers.
    let scheme = match scheme {
        Scheme::Dark => "--blink-settings=preferredColorScheme=0",
        Scheme::Light => "--blink-settings=preferredColorScheme=1",
    };
    let folder = tempfile::tempdir()?;
    let nowhere = File::create(folder.path().join("output"))?;
    run(namespace, folder.path(), &[&shot, scheme, url], nowhere)?;
    if std::fs::metadata(&file)?.len() < 10_000 {
        return Err(format!("{} is no picture of a page", file.display()).into());
    }
    Ok(file)
}

/// Runs it to its end: the clock of the page runs ahead while nothing is under way, so that nobody waits for it.
fn run(namespace: Option<&Namespace>, folder: &Path, arguments: &[&str], output: File) -> Result<(), Failed> {
    let log = folder.join("log");
    let mut command = Command::new(PROGRAM);
    command
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-extensions",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--hide-scrollbars",
            "--window-size=1100,1700",
            "--virtual-time-budget=4000",
        ])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(File::create(&log)?);
    let mut child = match namespace {
        Some(namespace) => namespace.within(|| command.spawn())??,
        None => command.spawn()?,
    };
    let ended = wait_for("the browser to end", GENEROUS, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err(std::fs::read_to_string(&log).unwrap_or_default()),
        Err(error) => Err(error.to_string()),
    });
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
        interruption::check()?;
    }
    let status = ended.map_err(|error: LabError| error.to_string())?;
    if status.success() {
        return Ok(());
    }
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    Err(format!("{PROGRAM}: {status}: {said}").into())
}
