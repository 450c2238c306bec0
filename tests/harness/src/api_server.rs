//! A real Kubernetes API server with its etcd, on this machine alone: TLS with a CA of its own, RBAC, and a token for
//! each user. It takes about five seconds to start and 350 MB.
//!
//! Both processes end with the one that started them, whatever becomes of it, and their folder with the [`ApiServer`].

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::command::{run, run_with_input};
use crate::daemon::{command_in, died, end, spawn};
use crate::record::kill;
use crate::{LabError, Namespace, kubernetes, wait_for};

/// Etcd and the server need some seconds each; a loaded machine ten times as many.
const START: Duration = Duration::from_secs(180);

/// Who may do everything.
pub const ADMIN: &str = "admin";

/// What is asked of a server.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it listens, and is reached.
    pub address: Ipv4Addr,
    /// The namespace that it lives in; the machine's own by default.
    pub namespace: Option<Namespace>,
    /// Users other than [`ADMIN`], whose token is their name. They may do what RBAC gives them.
    pub users: Vec<String>,
    /// Further arguments.
    pub arguments: Vec<String>,
    /// Controllers run beside it, which make the service accounts that pods are given.
    pub has_controllers: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            namespace: None,
            users: Vec::new(),
            arguments: Vec::new(),
            has_controllers: false,
        }
    }
}

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    setup: Setup,
    binary: PathBuf,
    folder: tempfile::TempDir,
    ports: Ports,
    /// None when it is another server's.
    etcd: Option<Child>,
    server: Option<Child>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    secure: u16,
    etcd: u16,
    etcd_peer: u16,
}

/// Why there is none to be had here, if there is none.
#[must_use]
pub fn no_api_server() -> Option<String> {
    let program = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
        (!found).then(|| format!("there is no {name}; tests/run installs it"))
    };
    let programs = ["etcd", "kubectl", "openssl", "setpriv", "zstd"];
    programs.into_iter().find_map(program).or_else(|| {
        kubernetes::program("kube-apiserver")
            .err()
            .map(|error| error.to_string())
    })
}

impl ApiServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// When a program is missing, or one of the two does not come up.
    pub fn start(setup: Setup) -> Result<Self, LabError> {
        let binary = kubernetes::program("kube-apiserver")?;
        let folder = new_folder()?;
        make_certificates(folder.path(), setup.address)?;
        write_tokens(folder.path(), &setup.users)?;
        let ports = Ports::free(&setup)?;
        let etcd = start_etcd(&setup, folder.path(), ports)?;
        let mut started = Self {
            setup,
            binary,
            folder,
            ports,
            etcd: Some(etcd),
            server: None,
        };
        started.write_kubeconfigs()?;
        started.start_again()?;
        Ok(started)
    }

    /// Another server on the same etcd, at another address.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn beside(&self) -> Result<Self, LabError> {
        let folder = new_folder()?;
        for file in [
            "ca.crt",
            "tls.crt",
            "tls.key",
            "service-accounts.key",
            "tokens.csv",
        ] {
            let (from, to) = (self.folder.path().join(file), folder.path().join(file));
            fs::copy(&from, to).map_err(LabError::io(format!("copy {}", from.display())))?;
        }
        let secure = Ports::free(&self.setup)?.secure;
        let mut started = Self {
            setup: self.setup.clone(),
            binary: self.binary.clone(),
            folder,
            ports: Ports { secure, ..self.ports },
            etcd: None,
            server: None,
        };
        started.write_kubeconfigs()?;
        started.start_again()?;
        Ok(started)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.setup.address), self.ports.secure)
    }

    /// The folder with its logs and keys, which goes with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kubeconfig file of a user: the token is in a file beside it.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("{}.kubeconfig", file_of(user)))
    }

    /// Writes a kubeconfig of `user` that leads to `server` instead, which passes on what it gets.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig_through(&self, user: &str, server: SocketAddr) -> Result<PathBuf, LabError> {
        let path = self
            .folder
            .path()
            .join(format!("{}-{}.kubeconfig", file_of(user), server.port()));
        self.write(&path, &self.kubeconfig_text(user, server))?;
        Ok(path)
    }

    /// The file that holds the token of a user.
    #[must_use]
    pub fn token_file(&self, user: &str) -> PathBuf {
        self.folder.path().join(format!("{}.token", file_of(user)))
    }

    /// `kubectl ARGUMENTS` as `user`, with this standard input: its output.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub fn kubectl(&self, user: &str, arguments: &[&str], input: &str) -> Result<String, LabError> {
        let mut command = self.command("kubectl");
        command.arg("--kubeconfig").arg(self.kubeconfig(user));
        // What it has learned of another server at the same address must not count here.
        command.arg("--cache-dir").arg(self.folder.path().join("kubectl"));
        command.args(arguments);
        if input.is_empty() {
            run(command)
        } else {
            run_with_input(command, input)
        }
    }

    /// Ends the server as a crash would; etcd keeps what it was told.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.server.take().map_or(Ok(()), end)
    }

    /// Starts the server again, at the same address, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<(), LabError> {
        self.kill()?;
        let mut command = self.command(&self.binary.to_string_lossy());
        command.args(self.arguments());
        self.server = Some(spawn(command, &self.folder.path().join("apiserver.log"))?);
        let what = format!("the API server at {}", self.address());
        let log = self.folder.path().join("apiserver.log");
        wait_for(&what, START, || {
            if let Some(Ok(Some(status))) = self.server.as_mut().map(Child::try_wait) {
                return Ok(Err(died("kube-apiserver", status, &log)));
            }
            let ready = self.kubectl(ADMIN, &["get", "--raw", "/readyz"], "");
            ready.map(|_| Ok(())).map_err(|error| error.to_string())
        })?
    }

    /// Makes etcd forget all revisions but the present ones: who resumes from an older one gets 410 Gone.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn compact(&self) -> Result<(), LabError> {
        // Any read tells the revision; "AA==" is the key of one zero byte.
        let answer = self.etcd("range", &json!({"key": "AA=="}))?;
        let revision = answer.pointer("/header/revision").cloned();
        let revision = revision.ok_or_else(|| LabError::Answer {
            what: "etcd's answer".to_owned(),
            reason: "it has no revision".to_owned(),
            text: answer.to_string(),
        })?;
        self.etcd("compaction", &json!({"revision": revision, "physical": true}))
            .map(drop)
    }

    /// Writes an object of Kubernetes behind the server's back, under its key in etcd: with a status that only a kubelet may
    /// tell, and a thousand of them in a second.
    ///
    /// # Errors
    /// When etcd refuses.
    pub fn write_behind(&self, key: &str, object: &Value) -> Result<(), LabError> {
        let encoded = |text: &str| STANDARD.encode(text);
        let body = json!({"key": encoded(key), "value": encoded(&object.to_string())});
        self.etcd("put", &body).map(drop)
    }

    fn etcd(&self, method: &str, body: &Value) -> Result<Value, LabError> {
        let address = SocketAddr::new(IpAddr::V4(self.setup.address), self.ports.etcd);
        let path = format!("/v3/kv/{method}");
        let act = || post(address, &path, &body.to_string());
        let answer = match &self.setup.namespace {
            Some(namespace) => namespace.within(act)?,
            None => act(),
        };
        let text = answer.map_err(LabError::io(format!("ask etcd at {address} for {path}")))?;
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let answer: Option<Value> = serde_json::from_str(body).ok();
        answer
            .filter(|answer| answer.get("error").is_none())
            .ok_or_else(|| LabError::Answer {
                what: format!("etcd's answer to {path}"),
                reason: "it is no success".to_owned(),
                text,
            })
    }

    fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let (address, Ports { secure, etcd, .. }) = (self.setup.address, self.ports);
        let mut arguments = vec![
            format!("--etcd-servers=http://{address}:{etcd}"),
            format!("--bind-address={address}"),
            format!("--advertise-address={address}"),
            format!("--secure-port={secure}"),
            format!("--cert-dir={}", file("certificates")),
            format!("--tls-cert-file={}", file("tls.crt")),
            format!("--tls-private-key-file={}", file("tls.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-cluster-ip-range=10.255.0.0/24".to_owned(),
            format!("--service-account-issuer=https://{address}:{secure}"),
            format!("--service-account-key-file={}", file("service-accounts.key")),
            format!(
                "--service-account-signing-key-file={}",
                file("service-accounts.key")
            ),
        ];
        if !self.setup.has_controllers {
            // A pod would wait for its service account for ever.
            arguments.push("--disable-admission-plugins=ServiceAccount".to_owned());
        }
        arguments.extend(self.setup.arguments.iter().cloned());
        arguments
    }

    fn command(&self, program: &str) -> Command {
        command_in(self.setup.namespace.as_ref(), program)
    }

    fn write_kubeconfigs(&self) -> Result<(), LabError> {
        for user in [ADMIN.to_owned()].iter().chain(&self.setup.users) {
            self.write(&self.token_file(user), user)?;
            self.write(
                &self.kubeconfig(user),
                &self.kubeconfig_text(user, self.address()),
            )?;
        }
        Ok(())
    }

    fn kubeconfig_text(&self, user: &str, server: SocketAddr) -> String {
        let (ca, token) = (self.folder.path().join("ca.crt"), self.token_file(user));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    server: https://{server}\n    \
             certificate-authority: {}\nusers:\n- name: u\n  user:\n    tokenFile: {}\ncontexts:\n- name: c\n  context: {{cluster: c, user: u}}\n",
            ca.display(),
            token.display()
        )
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), LabError> {
        fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        // The server first: without etcd it would complain for a while.
        for child in self.server.take().iter_mut().chain(&mut self.etcd) {
            kill(child.id(), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

/// A user's name as part of a file's: `system:serviceaccount:…` has colons.
fn file_of(user: &str) -> String {
    user.replace(':', "-")
}

impl Ports {
    /// Ports that nobody listens on at the moment.
    fn free(setup: &Setup) -> Result<Self, LabError> {
        let find = || -> std::io::Result<Self> {
            // All three are held until all are known, so that they differ.
            let bind = || TcpListener::bind((setup.address, 0));
            let (secure, etcd, peer) = (bind()?, bind()?, bind()?);
            let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
            Ok(Self {
                secure: port(&secure)?,
                etcd: port(&etcd)?,
                etcd_peer: port(&peer)?,
            })
        };
        let found = match &setup.namespace {
            Some(namespace) => namespace.within(find)?,
            None => find(),
        };
        found.map_err(LabError::io(format!("find free ports on {}", setup.address)))
    }
}

fn new_folder() -> Result<tempfile::TempDir, LabError> {
    tempfile::Builder::new()
        .prefix("culvert-kubernetes-")
        .tempdir()
        .map_err(LabError::io("make a folder for the API server"))
}

fn make_certificates(folder: &Path, address: Ipv4Addr) -> Result<(), LabError> {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(arguments.split_whitespace());
        run(command).map(drop)
    };
    let extensions = format!(
        "subjectAltName=IP:{address},IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc,IP:10.255.0.1\n"
    );
    fs::write(folder.join("tls.ext"), extensions)
        .map_err(LabError::io(format!("write into {}", folder.display())))?;
    openssl("ecparam -name prime256v1 -genkey -noout -out ca.key")?;
    openssl("ecparam -name prime256v1 -genkey -noout -out tls.key")?;
    openssl("genrsa -out service-accounts.key 2048")?;
    openssl("req -x509 -new -key ca.key -days 30 -subj /CN=culvert-tests-ca -out ca.crt")?;
    openssl("req -new -key tls.key -subj /CN=kube-apiserver -out tls.csr")?;
    openssl(
        "x509 -req -in tls.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile tls.ext -out tls.crt",
    )
}

fn write_tokens(folder: &Path, users: &[String]) -> Result<(), LabError> {
    let mut lines = format!("{ADMIN},{ADMIN},{ADMIN},system:masters\n");
    for user in users {
        lines.push_str(&format!("{user},{user},{user},\n"));
    }
    let path = folder.join("tokens.csv");
    fs::write(&path, lines).map_err(LabError::io(format!("write {}", path.display())))
}

fn start_etcd(setup: &Setup, folder: &Path, ports: Ports) -> Result<Child, LabError> {
    let (client, peer) = (
        format!("http://{}:{}", setup.address, ports.etcd),
        format!("http://{}:{}", setup.address, ports.etcd_peer),
    );
    let mut command = command_in(setup.namespace.as_ref(), "etcd");
    command.arg("--data-dir").arg(folder.join("etcd"));
    command.args([
        "--listen-client-urls",
        &client,
        "--advertise-client-urls",
        &client,
    ]);
    command.args([
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
    ]);
    command.arg(format!("--initial-cluster=default={peer}"));
    // It need not outlive the machine.
    command.args(["--log-level=error", "--unsafe-no-fsync"]);
    spawn(command, &folder.join("etcd.log"))
}

fn post(address: SocketAddr, path: &str, body: &str) -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
