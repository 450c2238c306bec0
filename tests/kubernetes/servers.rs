//! What the trials run on: one API server for most of them, with our CRDs; and stores on it, or on a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_agent::api::{Key, Object};
use culvert_agent::datastore::directory::DirectoryStore;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore, Update};
use harness::ApiServer;
use harness::api_server::{ADMIN, Setup};
use libtest_mimic::Failed;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// No wait of a trial takes longer, on the slowest machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The node that the stores are for.
pub(crate) const NODE: &str = "node1";
/// The service account that the chart's ClusterRole is bound to.
pub(crate) const SERVICE_ACCOUNT: &str = "system:serviceaccount:kube-system:culvert";
/// The service account of the chart's hook that waits for an uninstallation.
pub(crate) const UNINSTALL_ACCOUNT: &str = "system:serviceaccount:kube-system:culvert-uninstall";
/// Somebody whom nothing is allowed.
pub(crate) const NOBODY: &str = "nobody";

/// The server that most trials share, started by the first of them.
#[derive(Clone, Default)]
pub(crate) struct Server {
    running: Arc<Mutex<Option<ApiServer>>>,
}

impl Server {
    /// Does something with it.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&ApiServer) -> T) -> Result<T, Failed> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = Some(start(&[])?);
        }
        running
            .as_ref()
            .map(act)
            .ok_or_else(|| "there is no server".into())
    }

    /// Ends it, if it was started.
    pub(crate) fn stop(&self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A server with our CRDs, and these arguments more.
pub(crate) fn start(arguments: &[&str]) -> Result<ApiServer, Failed> {
    let server = ApiServer::start(Setup {
        users: [SERVICE_ACCOUNT, UNINSTALL_ACCOUNT, NOBODY]
            .map(str::to_owned)
            .to_vec(),
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..Setup::default()
    })?;
    install_crds(&server)?;
    Ok(server)
}

/// Installs the CRDs of the chart, and waits until they are served.
pub(crate) fn install_crds(server: &ApiServer) -> Result<(), Failed> {
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert/crds");
    server.kubectl(ADMIN, &["apply", "-f", &crds.to_string_lossy()], "")?;
    server.kubectl(
        ADMIN,
        &[
            "wait",
            "--for=condition=established",
            "--timeout=60s",
            "crd",
            "--all",
        ],
        "",
    )?;
    Ok(())
}

/// A datastore, of which any number may be opened.
pub(crate) enum Stores {
    Directory(tempfile::TempDir),
    Kubernetes(PathBuf),
}

impl Stores {
    pub(crate) fn directory() -> Result<Self, Failed> {
        Ok(Self::Directory(tempfile::tempdir()?))
    }

    pub(crate) fn of(server: &ApiServer, kubeconfig: PathBuf) -> Result<Self, Failed> {
        let _ = server;
        Ok(Self::Kubernetes(kubeconfig))
    }

    /// Another one, as another process would open it.
    pub(crate) async fn open(&self) -> Result<Arc<dyn Datastore>, Failed> {
        Ok(match self {
            Self::Directory(folder) => Arc::new(DirectoryStore::open(folder.path())?),
            Self::Kubernetes(kubeconfig) => {
                Arc::new(KubernetesStore::open(&Access::Kubeconfig(kubeconfig.clone()), NODE).await?)
            }
        })
    }
}

/// What a watch has told, of the objects whose names begin in one way: trials share a server.
pub(crate) struct Told {
    updates: mpsc::Receiver<Update>,
    prefix: String,
    pub(crate) state: BTreeMap<Key, Object>,
    pub(crate) deleted: BTreeSet<Key>,
    pub(crate) in_sync: bool,
    pub(crate) problem: Option<String>,
    /// Updates of these objects.
    pub(crate) count: usize,
}

impl Told {
    pub(crate) fn new(store: &dyn Datastore, prefix: &str) -> Result<Self, Failed> {
        Ok(Self {
            updates: store.watch()?,
            prefix: prefix.to_owned(),
            state: BTreeMap::new(),
            deleted: BTreeSet::new(),
            in_sync: false,
            problem: None,
            count: 0,
        })
    }

    pub(crate) async fn in_sync(store: &dyn Datastore, prefix: &str) -> Result<Self, Failed> {
        let mut told = Self::new(store, prefix)?;
        told.until("in sync", |told| told.in_sync).await?;
        Ok(told)
    }

    fn take(&mut self, update: Update) -> Result<(), Failed> {
        match update {
            Update::Upsert(object) => {
                let key = object.key();
                if key.name.starts_with(&self.prefix) {
                    self.count += 1;
                    self.state.insert(key, *object);
                }
            }
            Update::Delete(key) => {
                if key.name.starts_with(&self.prefix) {
                    self.count += 1;
                    self.state.remove(&key);
                    self.deleted.insert(key);
                }
            }
            Update::InSync if std::mem::replace(&mut self.in_sync, true) => {
                return Err("in sync was told twice".into());
            }
            Update::InSync => {}
            Update::Problem(problem) => {
                if problem == self.problem {
                    return Err(format!("the problem {problem:?} was told twice").into());
                }
                self.problem = problem;
            }
        }
        Ok(())
    }

    /// Takes in what is told until `done`.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<(), Failed> {
        let wait = async {
            while !done(self) {
                let update = self.updates.recv().await.ok_or("the watch has ended")?;
                self.take(update)?;
            }
            Ok::<(), Failed>(())
        };
        match timeout(LIMIT, wait).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "waited {LIMIT:?} for {what}; known: {:?}, deleted: {:?}, in sync: {}, problem: {:?}",
                self.state.keys(),
                self.deleted,
                self.in_sync,
                self.problem
            )
            .into()),
        }
    }
}
