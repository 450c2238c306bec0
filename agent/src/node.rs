//! This node: its name, the address it is known by, and its Node object.
