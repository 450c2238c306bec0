//! Addresses for a handle.

use std::net::IpAddr;

use crate::error::Error;
use crate::handle::Handle;
use crate::name;
use crate::ordinals::of_handle;
use crate::pool::number;

use super::object::{Key, Kind, Object, Read};
use super::place::Pick;
use super::request::{Assign, Outcome};
use super::round::{Round, count};
use super::view::{BlockSeen, HandleSeen};
use super::{Halt, Progress, delete, update};

impl<'a> Round<'a> {
    /// All addresses that are asked for, those that the handle has on the node first.
    pub(super) fn assign(&mut self, request: &'a Assign) -> Progress<Outcome> {
        if request.handle.is_empty() {
            let node = request.node.clone();
            return Err(Error::EmptyHandle { node }.into());
        }
        self.settle(&request.node)?;
        let held = self.held(request)?;
        let placed = match self.place(request, held) {
            // It may have an address already: not worth a claim before that is known.
            Err(Halt::Write(_) | Halt::Wait | Halt::Error(_)) if self.is_unread(request)? => {
                let key = Key::new(Kind::Handle, name::handle(&request.handle));
                return Err(Halt::Read(Read::Get(key)));
            }
            // What the handle counts for addresses that it does not get after all is taken back first.
            Err(Halt::Error(error)) => {
                return Err(self.take_back(request).err().unwrap_or(Halt::Error(error)));
            }
            other => other?,
        };
        self.record(request, &placed.picks)?;
        if placed.picks.is_empty() {
            return Ok(Outcome::Assigned(placed.addresses));
        }
        let mut attributes = request.attributes.clone();
        attributes.insert("node".to_owned(), request.node.clone());
        for pick in &placed.picks {
            self.take(pick.block, &pick.ordinals, &request.handle, &attributes)?;
        }
        Err(Halt::Wait)
    }

    fn is_unread(&self, request: &Assign) -> Progress<bool> {
        let seen = self.view.handle_unread(&request.handle)?;
        Ok(matches!(seen, HandleSeen::Unknown))
    }

    /// The addresses of the handle on the node, ascending. A handle that nobody has read is taken to have none: if it has,
    /// its creation fails, and it is read.
    fn held(&self, request: &Assign) -> Progress<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        let seen = self.view.handle_unread(&request.handle)?;
        if let HandleSeen::Present { handle, .. } = seen {
            for cidr in handle.block.keys() {
                let Some(block) = self.present(*cidr)? else {
                    continue;
                };
                let of_node = block.is_of_node(&request.node);
                let here = of_handle(block, &request.handle)
                    .filter(|(_, attribute)| attribute.value("node").map_or(of_node, |n| n == request.node));
                addresses.extend(here.map(|(address, _)| address));
            }
        }
        addresses.sort_by_key(|a| number(*a));
        Ok(addresses)
    }

    /// Has the handle count what it has in the node's blocks, and what it is about to get. Counts that a crash left too high
    /// are set right with it.
    fn record(&self, request: &Assign, picks: &[Pick]) -> Progress<()> {
        let name = name::handle(&request.handle);
        let (old, mut new) = match self.view.handle_unread(&request.handle)? {
            HandleSeen::Present { revision, handle } => {
                (Some((revision, handle)), self.counted(request, handle)?)
            }
            HandleSeen::Absent | HandleSeen::Unknown => (None, Handle::new(&request.handle)),
            HandleSeen::Deleted { revision } => return Err(Halt::delete(Kind::Handle, &name, revision)),
            HandleSeen::Unreadable { reason } => {
                let reason = reason.to_owned();
                let key = Key::new(Kind::Handle, name);
                return Err(Error::Unreadable { key, reason }.into());
            }
        };
        for pick in picks {
            let BlockSeen::Present { block, .. } = self.view.block(pick.block)? else {
                return Err(Halt::Wait);
            };
            let has = count(of_handle(block, &request.handle));
            let will_have = has.saturating_add(count(pick.ordinals.iter()));
            // In another's block somebody else may be about to take an address for this handle.
            let floor = if block.is_of_node(&request.node) {
                0
            } else {
                new.count(pick.block)
            };
            new.set(pick.block, will_have.max(floor));
        }
        let is_owed = self.view.owed().contains_key(&name);
        match old {
            Some((_, old)) if *old == new && !is_owed => Ok(()),
            Some((revision, _)) => Err(Halt::settle(update(name, revision, Object::Handle(new)))),
            None if new.block.is_empty() => Ok(()),
            None => Err(Halt::create(name, Object::Handle(new))),
        }
    }

    /// The handle with what it really has in the node's blocks. Only of these does the node know that nobody else is about
    /// to take an address for this handle.
    fn counted(&self, request: &Assign, handle: &Handle) -> Progress<Handle> {
        let mut new = handle.clone();
        for cidr in handle.block.keys() {
            if let Some(block) = self.present(*cidr)?
                && block.is_of_node(&request.node)
            {
                new.set(*cidr, count(of_handle(block, &request.handle)));
            }
        }
        Ok(new)
    }

    /// Lowers what the handle counts to what it has.
    fn take_back(&self, request: &Assign) -> Progress<()> {
        let HandleSeen::Present { revision, handle } = self.view.handle_unread(&request.handle)? else {
            return Ok(());
        };
        let new = self.counted(request, handle)?;
        if new == *handle {
            return Ok(());
        }
        let name = name::handle(&request.handle);
        Err(Halt::settle(if new.block.is_empty() {
            delete(Kind::Handle, &name, revision)
        } else {
            update(name, revision, Object::Handle(new))
        }))
    }
}
