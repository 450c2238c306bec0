//! The objects that allocation reads and writes.

use std::collections::BTreeMap;
use std::fmt;

use crate::affinity::Affinity;
use crate::block::Block;
use crate::handle::Handle;

/// The kinds of objects that allocation reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// BlockAffinity.
    Affinity,
    /// IPAMBlock.
    Block,
    /// IPAMHandle.
    Handle,
}

/// An object's kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its `metadata.name`.
    pub name: String,
}

impl Key {
    /// The key of the object of this kind and name.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Affinity => "BlockAffinity",
            Kind::Block => "IPAMBlock",
            Kind::Handle => "IPAMHandle",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// The spec of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Of a BlockAffinity.
    Affinity(Affinity),
    /// Of an IPAMBlock.
    Block(Block),
    /// Of an IPAMHandle.
    Handle(Handle),
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Object::Affinity(_) => Kind::Affinity,
            Object::Block(_) => Kind::Block,
            Object::Handle(_) => Kind::Handle,
        }
    }

    /// The labels that belong into its metadata, besides those that are there.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        match self {
            Object::Affinity(affinity) => affinity.labels(),
            Object::Block(_) | Object::Handle(_) => BTreeMap::new(),
        }
    }
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
