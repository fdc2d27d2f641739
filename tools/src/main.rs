//! The halo binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Records and buffers of many sizes come and go; glibc's allocator costs twice as much for them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    halo::command_line::run(std::env::args_os())
}
