//! Shows a small Culvert cluster on one machine.

fn main() {}
