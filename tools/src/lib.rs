//! The tools behind the `halo` binary that tests use too.
#![forbid(unsafe_code)]

pub mod command_line;
pub mod controller;
pub mod demo;
mod heap;
pub mod lab;
pub mod node;
