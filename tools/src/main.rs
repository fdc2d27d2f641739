//! The halo binary.
fn main() {}
