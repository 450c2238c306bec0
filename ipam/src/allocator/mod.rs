//! What to read or write next, so that requests come true.
//!
//! [`plan`] has no memory: each time it looks at what is known and at what is asked for, and tells one step. Whoever drives
//! it does that step, tells the [`View`] what came of it, and asks again. So a crash between any two writes needs no
//! recovery of its own: the next plan, of whichever process, starts from what is there.
//!
//! Requests that wait at the same time are planned together: one write of a block serves all that take from it or give back
//! to it, and writes to different objects are told in one step, to be done at once. A request that fails holds back no other.
//!
//! The order of writes is what makes that safe:
//!
//! - **Claim.** The affinity is written `pending`, then the block is created, then the affinity is `confirmed`. Only one
//!   creation of a block succeeds, so that only one node ever confirms; a `pending` affinity owns nothing, and is either
//!   carried on or taken back by its node.
//! - **Unclaim.** The affinity is written `pendingDeletion`, then the block is deleted, or left without an owner if somebody
//!   lives in it, then the affinity is deleted.
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
mod object;
mod place;
mod release;
mod request;
mod round;
mod unclaim;
mod view;

use crate::error::Error;
use crate::timestamp::Timestamp;

pub use object::{Key, Kind, Object, Read, Write};
pub use request::{Assign, Claim, Freed, Held, HeldAddress, Outcome, Release, Request, Unclaim, Wanted};
pub use view::{Policy, View};

/// What a batch of requests has come to, and what to do next.
///
/// A driver answers the requests that have an outcome, does the step, and plans the others again, until all have an outcome
/// and the step is [`Step::Done`]. A batch makes progress each time: it is never [`Step::Done`] without a new outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What each request has come to, in the order of the batch; `None` for one that needs more steps.
    pub outcomes: Vec<Option<Result<Outcome, Error>>>,
    /// What to do next.
    pub step: Step,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Read all of this, in any order, and tell the view.
    Read(Vec<Read>),
    /// Write all of this by compare-and-swap, in any order or at once: each is about another object. For each, tell the view
    /// that it was written; or, if it was refused because somebody else wrote, created or deleted the object, have the view
    /// forget the object. One that fails otherwise may be left: the view still knows the old state.
    Write(Vec<Change>),
    /// Nothing: requests without an outcome wait for others of the batch that have one now.
    Done,
}

/// A write, and what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The write.
    pub write: Write,
    /// The addresses that it gives back.
    pub frees: Vec<Freed>,
    /// Whether it sets a handle's counts right after addresses were given back.
    pub(crate) settles: bool,
}

impl From<Write> for Change {
    fn from(write: Write) -> Self {
        Self {
            write,
            frees: Vec::new(),
            settles: false,
        }
    }
}

/// What the requests have come to by now, and the next step towards the others. They are planned in their order; one for a
/// handle waits for those before it that are for the same.
///
/// `now` is used for new sequence numbers and time stamps, for how long an address has rested, and for how long another node
/// has had an empty block that this one needs; never to decide what is safe.
#[must_use]
pub fn plan(view: &View, batch: &[Request], now: Timestamp) -> Plan {
    round::plan(view, batch, now)
}

/// A value, or why it is not known yet: something must be read or written first, or it cannot be.
type Progress<T> = Result<T, Halt>;

/// Why planning of a request goes no further for now.
enum Halt {
    /// This must be read.
    Read(Read),
    /// This must be written.
    Write(Box<Change>),
    /// What others of the batch, or its node, have under way must be done.
    Wait,
    /// It is over.
    Error(Box<Error>),
}

impl Halt {
    fn write(write: Write) -> Self {
        Halt::Write(Box::new(Change::from(write)))
    }

    /// Sets a handle right.
    fn settle(write: Write) -> Self {
        Halt::Write(Box::new(Change {
            settles: true,
            ..Change::from(write)
        }))
    }

    fn create(name: String, object: Object) -> Self {
        Self::write(Write::Create { name, object })
    }

    fn update(name: String, revision: &str, object: Object) -> Self {
        Self::write(update(name, revision, object))
    }

    fn delete(kind: Kind, name: &str, revision: &str) -> Self {
        Self::write(delete(kind, name, revision))
    }
}

fn update(name: String, revision: &str, object: Object) -> Write {
    Write::Update {
        name,
        revision: revision.to_owned(),
        object,
    }
}

fn delete(kind: Kind, name: &str, revision: &str) -> Write {
    Write::Delete {
        key: Key::new(kind, name),
        revision: revision.to_owned(),
    }
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Error(Box::new(error))
    }
}
