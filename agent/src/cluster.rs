//! What the datastore says, as the rest of the agent uses it.
