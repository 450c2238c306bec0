//! The real binary, two agents in network namespaces over one directory, while that directory goes and comes back.

#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that should happen soon: a retry of a session is 5 s, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Two namespaces joined by a veth pair, `172.18.0.1` and `172.18.0.2`, and what their agents share.
struct Lab {
    id: String,
    folder: TempDir,
    agents: [Option<Child>; 2],
}

impl Lab {
    /// None, loudly, where namespaces cannot be made.
    fn new(name: &str) -> Option<Self> {
        let lab = Self {
            id: format!("cv{}{name}", std::process::id()),
            folder: tempfile::tempdir().unwrap(),
            agents: [None, None],
        };
        if !Command::new("ip")
            .args(["netns", "add", &lab.namespace(1)])
            .status()
            .is_ok_and(|s| s.success())
        {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: a network namespace cannot be made; run as root"
            );
            return None;
        }
        let (a, b) = (lab.namespace(1), lab.namespace(2));
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add u0 type veth peer name u0 netns {b}"));
        for number in [1, 2] {
            let namespace = lab.namespace(number);
            ip(&format!("-n {namespace} addr add 172.18.0.{number}/24 dev u0"));
            ip(&format!("-n {namespace} link set u0 up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        lab.fill();
        Some(lab)
    }

    fn namespace(&self, number: u8) -> String {
        format!("{}{number}", self.id)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A pool of direct routes, and a block and a Node for each.
    fn fill(&self) {
        fs::create_dir_all(self.store()).unwrap();
        let mut text = "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: pods}\n\
                        spec: {cidr: 10.65.0.0/16, ipipMode: Never}\n"
            .to_owned();
        for number in [1, 2] {
            text += &format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node{number}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 172.18.0.{number}}}]}}\n"
            );
        }
        fs::write(self.store().join("all.yaml"), text).unwrap();
    }

    fn start(&mut self, number: u8) {
        let config = self.path(&format!("{number}.yaml"));
        let text = format!(
            "nodeName: node{number}\ndatastore: {{directory: {}, syncTimeout: 5}}\nstate: {{directory: {}}}\n\
             socket: {}\nbgp: {{connectRetry: 1}}\n",
            self.store().display(),
            self.path("state").display(),
            self.socket(number).display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log(number))
            .unwrap();
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.namespace(number),
                env!("CARGO_BIN_EXE_culvert"),
            ])
            .args(["agent", "--config", config.to_str().unwrap()])
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        self.agents[usize::from(number) - 1] = Some(child);
    }

    /// Tells an agent to stop, and waits for it.
    fn stop(&mut self, number: u8) {
        if let Some(mut child) = self.agents[usize::from(number) - 1].take() {
            // `ip netns exec` becomes the program it runs.
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
            child.wait().unwrap();
        }
    }

    fn socket(&self, number: u8) -> PathBuf {
        self.path(&format!("{number}.sock"))
    }

    fn log(&self, number: u8) -> PathBuf {
        self.path(&format!("{number}.log"))
    }

    fn culvert(&self, arguments: &[&str], number: u8) -> (bool, String) {
        let output = self.output(arguments, number);
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn output(&self, arguments: &[&str], number: u8) -> Output {
        Command::new(env!("CARGO_BIN_EXE_culvert"))
            .args(arguments)
            .arg("--socket")
            .arg(self.socket(number))
            .output()
            .unwrap()
    }

    /// What the agent says of itself, also where something is wrong; null while it does not answer.
    fn status(&self, number: u8) -> Value {
        let output = self.output(&["node", "status", "-o", "json"], number);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn problem(&self, number: u8) -> String {
        self.status(number)["datastore"]["problem"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// The routes of the agent in the kernel.
    fn routes(&self, number: u8) -> String {
        ip(&format!("-n {} route show proto 86", self.namespace(number)))
    }

    /// The session is up, and each has the other's block, and its own, in its kernel.
    fn is_joined(&self) -> bool {
        [1, 2].into_iter().all(|number| {
            let other = 3 - number;
            let status = self.status(number);
            let routes = self.routes(number);
            let blocks = |of: u8| self.status(of)["blocks"].as_array().cloned().unwrap_or_default();
            let there = |block: &Value| block.as_str().is_some_and(|block| routes.contains(block));
            status["peers"][0]["state"] == "Established"
                && !blocks(other).is_empty()
                && blocks(other).iter().all(there)
                && blocks(number).iter().all(there)
                && routes.contains(&format!("via 172.18.0.{other}"))
        })
    }

    #[track_caller]
    fn wait_for(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !condition(self) {
            assert!(
                begin.elapsed() < LIMIT,
                "{what}: not within {LIMIT:?}\n{}\n{}\n{}\n{}",
                self.status(1),
                self.routes(1),
                fs::read_to_string(self.log(1)).unwrap(),
                fs::read_to_string(self.log(2)).unwrap(),
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for number in [1, 2] {
            self.stop(number);
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(number)])
                .status();
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Removes all that is in a folder, as `rm -rf FOLDER/*` does, and keeps it elsewhere.
fn empty(folder: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().starts_with('.') {
            fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_cold_start_without_the_datastore_brings_sessions_and_routes_back_from_the_copies() {
    let Some(mut lab) = Lab::new("c") else { return };
    let start = |lab: &mut Lab| [1, 2].into_iter().for_each(|number| lab.start(number));
    start(&mut lab);
    lab.wait_for("a first start joins the nodes", Lab::is_joined);
    let before = [lab.routes(1), lab.routes(2)];
    lab.stop(1);
    lab.stop(2);

    // After a reboot the kernel has no routes, and the datastore is away.
    for number in [1, 2] {
        ip(&format!("-n {} route flush proto 86", lab.namespace(number)));
        assert_eq!(lab.routes(number), "");
    }
    fs::rename(lab.store(), lab.path("away")).unwrap();
    start(&mut lab);
    lab.wait_for("the copies join the nodes", Lab::is_joined);
    assert_eq!([lab.routes(1), lab.routes(2)], before);
    for number in [1, 2] {
        let problem = lab.problem(number);
        assert!(
            problem.starts_with("serving the last good copy of 2"),
            "{problem}"
        );
        assert!(problem.contains(lab.store().to_str().unwrap()), "{problem}");
        assert_eq!(lab.status(number)["datastore"]["inSync"], true);
    }
    assert!(!lab.store().exists(), "a datastore that is away is not made anew");

    // It comes back with one change that was made meanwhile.
    let pool = fs::read_to_string(lab.path("away/all.yaml")).unwrap();
    let extra = pool
        .split("---")
        .next()
        .unwrap()
        .replace("name: pods", "name: more")
        .replace("10.65.", "10.66.");
    fs::write(lab.path("away/more.yaml"), extra).unwrap();
    fs::rename(lab.path("away"), lab.store()).unwrap();
    lab.wait_for("the datastore takes over", |lab| {
        [1, 2]
            .into_iter()
            .all(|number| lab.problem(number).is_empty() && lab.status(number)["pools"] == 2)
    });
    assert!(lab.is_joined());
    assert_eq!([lab.routes(1), lab.routes(2)], before);
}

#[test]
fn an_emptied_datastore_withdraws_nothing_until_it_is_put_back_or_confirmed() {
    let Some(mut lab) = Lab::new("e") else { return };
    lab.start(1);
    lab.start(2);
    lab.wait_for("a first start joins the nodes", Lab::is_joined);
    let before = [lab.routes(1), lab.routes(2)];
    let (done, words) = lab.culvert(&["node", "accept-withdrawal"], 1);
    assert!(!done && words.contains("no withdrawal is held"), "{words}");

    empty(&lab.store(), &lab.path("kept"));
    let held = |lab: &Lab| {
        [1, 2]
            .into_iter()
            .all(|number| lab.problem(number).contains("culvert node accept-withdrawal"))
    };
    lab.wait_for("the deletions are held", held);
    assert!(lab.is_joined());
    assert_eq!([lab.routes(1), lab.routes(2)], before);
    let problem = lab.problem(1);
    for words in [
        "1 IPPool: pods",
        "node1",
        "node2",
        "pool pods has blocks in use",
        "nothing is withdrawn",
    ] {
        assert!(problem.contains(words), "{problem} does not say {words}");
    }
    assert!(lab.status(1)["withdrawalsHeld"].as_u64().unwrap() >= 5);

    // A restart of the agent is no confirmation.
    lab.stop(1);
    lab.start(1);
    lab.wait_for("they are held after a restart too", held);
    lab.wait_for("the nodes are joined after it", Lab::is_joined);
    assert_eq!([lab.routes(1), lab.routes(2)], before);

    // Beside what the restarted agent has written of its node meanwhile.
    let back = [
        format!("{}/.", lab.path("kept").display()),
        lab.store().display().to_string(),
    ];
    let copied = Command::new("cp").arg("-a").args(back).status().unwrap();
    assert!(copied.success());
    lab.wait_for("what is put back resolves it", |lab| {
        [1, 2].into_iter().all(|number| lab.problem(number).is_empty())
    });
    assert!(lab.is_joined());
    assert_eq!([lab.routes(1), lab.routes(2)], before);

    fs::remove_dir_all(lab.path("kept")).unwrap();
    empty(&lab.store(), &lab.path("kept"));
    lab.wait_for("the deletions are held again", held);
    for number in [1, 2] {
        let (done, words) = lab.culvert(&["node", "accept-withdrawal"], number);
        assert!(done && words.starts_with("Confirmed: "), "{words}");
    }
    lab.wait_for("what was confirmed is withdrawn", |lab| {
        [1, 2]
            .into_iter()
            .all(|number| lab.routes(number).is_empty() && lab.problem(number).is_empty())
    });
    assert_eq!(lab.status(1)["withdrawalsHeld"], 0);
}

#[test]
fn an_address_that_is_changed_on_purpose_is_noticed_and_said() {
    let Some(mut lab) = Lab::new("a") else { return };
    lab.start(1);
    lab.wait_for("the agent is in sync", |lab| {
        lab.status(1)["datastore"]["inSync"] == true
    });
    let file = lab.store().join("all.yaml");
    ip(&format!("-n {} addr add 172.18.0.7/24 dev u0", lab.namespace(1)));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("address: 172.18.0.1", "address: 172.18.0.7")).unwrap();
    lab.wait_for("the change is said", |lab| {
        let problem = lab.status(1)["problems"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        problem.contains("172.18.0.7")
            && problem.contains("172.18.0.1")
            && problem.contains("restart the agent")
    });
    lab.stop(1);
    lab.start(1);
    lab.wait_for("a restart takes it", |lab| {
        let status = lab.status(1);
        status["address"] == "172.18.0.7"
            && status["datastore"]["inSync"] == true
            && status["problems"].is_null()
    });
}
