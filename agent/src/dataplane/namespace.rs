//! Network namespaces, and how to do something in another one.
//!
//! A socket belongs to the namespace of the thread that makes it and stays there; a file of `/proc/sys/net` belongs to
//! the namespace of the thread that opens it. So only the making and the opening are moved to a thread of their own,
//! which enters the namespace and ends: no thread that runs anything else ever changes its namespace. Only the plugin, which
//! has one thread and nothing else to do, goes there and back ([`Namespace::visit`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// A network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    identity: (u64, u64),
}

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace that `path` names (`/run/netns/…`, `/proc/…/ns/net`).
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            identity: (metadata.dev(), metadata.ino()),
            file,
        })
    }

    /// Whether the calling thread is in it.
    #[must_use]
    pub fn is_current(&self) -> bool {
        Self::current().is_ok_and(|current| current.identity == self.identity)
    }

    /// Its open file, for the kernel to be told about it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `make` in it and waits: on the calling thread if that is in it, else on one of its own. To be used for
    /// what is quick (to make a socket, to read or write a file of `/proc/sys/net`).
    ///
    /// # Errors
    /// What `make` gives, or the refusal to enter the namespace (which needs CAP_SYS_ADMIN).
    pub fn run<T, F>(&self, make: F) -> io::Result<T>
    where
        F: FnOnce() -> io::Result<T> + Send,
        T: Send,
    {
        if self.is_current() {
            return make();
        }
        let runtime = tokio::runtime::Handle::try_current().ok();
        let entered = || {
            let _guard = runtime.as_ref().map(tokio::runtime::Handle::enter);
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            make()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, entered)?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })
    }

    /// Runs `make` in it on the calling thread, which then is where it was. For a thread that nothing else runs on.
    ///
    /// # Errors
    /// The refusal to enter the namespace (which needs CAP_SYS_ADMIN), or to come back from it.
    pub fn visit<T>(&self, make: impl FnOnce() -> T) -> io::Result<T> {
        let home = Self::current()?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let made = make();
        setns(&home.file, CloneFlags::CLONE_NEWNET)?;
        Ok(made)
    }
}
