//! The page of a real agent.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::agent::HTTP;
use harness::{Lab, Layout, Mode, wait_for};
use libtest_mimic::Failed;

use crate::browser::{Scheme, elements, picture};
use crate::{Outcome, names};

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(180);

/// A running `culvert ui`. It ends when it is dropped.
struct Ui {
    child: Child,
    url: String,
}

impl Ui {
    /// Starts one that asks the agent on this socket.
    fn start(socket: &Path) -> Result<Self, Failed> {
        let mut child = Command::new(harness::culvert()?)
            .args(["ui", "--socket"])
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let url = said.split(' ').next().unwrap_or_default().to_owned();
        let ui = Self { child, url };
        if ui.url.starts_with("http://127.0.0.1:") {
            Ok(ui)
        } else {
            Err(format!("culvert ui says {said:?}").into())
        }
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Three nodes that are well, and then one of them without its agent.
pub(crate) fn well_and_not() -> Outcome {
    let mut lab = Lab::build(Layout::new(Mode::Direct))?;
    lab.start_agents()?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    lab.attach_everywhere(1)?;
    let url = format!("http://{HTTP}/");
    let inside = lab.node(1).namespace.clone();
    let page = elements(Some(&inside), &url)?;
    let (second, third) = (lab.node(2).address.to_string(), lab.node(3).address.to_string());
    let mut expected = vec![
        "data-drawn=\"yes\"",
        "Nothing is wrong.",
        "2 sessions of 2 are Established.",
        "node2",
        "node3",
        &second,
        &third,
    ];
    let (blocks, routes) = (lab.node(1).blocks()?, lab.node(1).namespace.routes()?);
    // The laboratory gives the number a name where iproute2 looks for names.
    let ours = routes.iter().filter(|route| route.contains("proto culvert"));
    let ours: Vec<String> = ours
        .map(|route| route.replace("proto culvert", "proto 86"))
        .collect();
    expected.extend(blocks.iter().chain(&ours).map(String::as_str));
    names(&page, &expected)?;
    let ui = Ui::start(&lab.node(1).agent.socket())?;
    names(&elements(None, &ui.url)?, &expected)?;
    drop(ui);
    picture(Some(&inside), &url, "well", Scheme::Light)?;
    picture(Some(&inside), &url, "well-dark", Scheme::Dark)?;

    lab.agent(3).kill()?;
    let node = lab.node(1);
    wait_for("node1 to miss its peer", GENEROUS, || match node.agent.status() {
        Ok(status) if status.established() == 1 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let page = elements(Some(&inside), &url)?;
    let lost = format!("session with node3 ({third}) was lost");
    let without = format!("no session with node3 ({third})");
    let expected = [
        "thing",
        "wrong.",
        &lost,
        &without,
        "1 session of 2 is Established.",
    ];
    names(&page, &expected)?;
    picture(Some(&inside), &url, "fault", Scheme::Light)?;
    Ok(())
}
