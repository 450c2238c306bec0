//! What to read or write next, so that a request comes true.
//!
//! [`plan`] has no memory: each time it looks at what is known and at what is asked for, and tells one step. Whoever drives
//! it does that step, tells the [`View`] what came of it, and asks again. So a crash between any two writes needs no
//! recovery of its own: the next plan, of whichever process, starts from what is there.
//!
//! The order of writes is what makes that safe:
//!
//! - **Claim.** The affinity is written `pending`, then the block is created, then the affinity is `confirmed`. Only one
//!   creation of a block succeeds, so that only one node ever confirms; a `pending` affinity owns nothing, and is either
//!   carried on or taken back by its node.
//! - **Assign.** The handle's count is raised before the block is written. A count may thus be too high after a crash, and
//!   is set right by the next request for that handle; it is never too low, so that a release finds every address.
//! - **Release.** The block is written before the count is lowered, for the same reason.
//! - Every write names the revision it was decided on. An address is given out by a write to the block that owns it, so
//!   that two who decide on the same revision cannot both succeed.
//!
//! Objects are deleted by revision, in one step, where Calico marks them deleted first: what it needs the mark for
//! (deleting only what was read) the store does here. Marks that Calico left are honoured, and finished.

mod assign;
mod claim;
mod release;
mod view;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Error;
use crate::pool::{Family, Use};
use crate::timestamp::Timestamp;

pub use view::{Key, Kind, Limits, Object, View};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Addresses for a handle.
    Assign(Assign),
    /// That a handle has no addresses.
    Release(Release),
    /// That a node has a block.
    Claim(Claim),
}

/// Addresses for a handle on a node; those that it has there already count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assign {
    /// The node.
    pub node: String,
    /// Who gets them.
    pub handle: String,
    /// What is written beside them: `pod`, `namespace`, `type`, `timestamp`. `node` is written in any case.
    pub attributes: BTreeMap<String, String>,
    /// What they are for.
    pub usage: Use,
    /// Their family.
    pub family: Family,
    /// How many.
    pub count: usize,
}

/// That a handle has no addresses, in any block that it says it has some in, or that belongs to the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The node that asks.
    pub node: String,
    /// Who gives them back.
    pub handle: String,
}

/// That a node has at least one confirmed block in a pool for this use. What it left half done is finished on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The node.
    pub node: String,
    /// What its addresses are for.
    pub usage: Use,
    /// Its family.
    pub family: Family,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "a step is made, done and dropped, never stored"
)]
pub enum Step {
    /// Read this and tell the view.
    Read(Read),
    /// Write this by compare-and-swap. Then tell the view that it was written; or, if it was refused because somebody else
    /// wrote, created or deleted the object, have the view forget it.
    Write {
        /// What to write.
        write: Write,
        /// The addresses that are given back by it.
        frees: Vec<IpAddr>,
    },
    /// The request has come true.
    Done(Outcome),
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// All objects of a kind.
    List(Kind),
    /// One object.
    Get(Key),
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A new object; it must not be there.
    Create {
        /// Its name.
        name: String,
        /// Its spec.
        object: Object,
    },
    /// A new spec; everything else of the object stays.
    Update {
        /// Its name.
        name: String,
        /// The revision that it must still have.
        revision: String,
        /// Its spec.
        object: Object,
    },
    /// No object.
    Delete {
        /// Which.
        key: Key,
        /// The revision that it must still have.
        revision: String,
    },
}

impl Write {
    /// The object that it is about.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Write::Create { name, object } | Write::Update { name, object, .. } => {
                Key::new(object.kind(), name.clone())
            }
            Write::Delete { key, .. } => key.clone(),
        }
    }
}

/// What a request has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As many addresses as were asked for.
    Assigned(Vec<IpAddr>),
    /// The handle has no addresses. Those that it had were told with the steps that freed them.
    Released,
    /// The confirmed blocks of the node, in the request's family.
    Claimed(Vec<IpNet>),
}

/// The next step towards what is asked for. `now` is used for new sequence numbers and time stamps only, never to decide
/// what is safe.
///
/// # Errors
/// When the request cannot come true as things stand; see [`Error`].
pub fn plan(view: &View, request: &Request, now: Timestamp) -> Result<Step, Error> {
    let outcome = match request {
        Request::Assign(assign) => assign::plan(view, assign, now).map(Outcome::Assigned),
        Request::Release(release) => release::plan(view, release, now).map(|()| Outcome::Released),
        Request::Claim(claim) => claim::plan(view, claim, now).map(Outcome::Claimed),
    };
    match outcome {
        Ok(outcome) => Ok(Step::Done(outcome)),
        Err(Halt::Step(step)) => Ok(*step),
        Err(Halt::Error(error)) => Err(*error),
    }
}

/// A value, or why it is not known yet: something must be read or written first, or it cannot be.
type Progress<T> = Result<T, Halt>;

/// Why planning goes no further.
enum Halt {
    Step(Box<Step>),
    Error(Box<Error>),
}

impl Halt {
    fn step(step: Step) -> Self {
        Halt::Step(Box::new(step))
    }

    fn write(write: Write) -> Self {
        Self::write_freeing(write, Vec::new())
    }

    fn write_freeing(write: Write, frees: Vec<IpAddr>) -> Self {
        Self::step(Step::Write { write, frees })
    }

    fn create(name: String, object: Object) -> Self {
        Self::write(Write::Create { name, object })
    }

    fn update(name: String, revision: &str, object: Object) -> Self {
        Self::write(Write::Update {
            name,
            revision: revision.to_owned(),
            object,
        })
    }

    fn delete(kind: Kind, name: &str, revision: &str) -> Self {
        Self::write(Write::Delete {
            key: Key::new(kind, name),
            revision: revision.to_owned(),
        })
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Error(Box::new(error))
    }
}
