//! Makes Rust of the protocol definitions.
#![allow(missing_docs)]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["discovery.proto", "workload.proto", "authorization.proto", "ca.proto"];
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    // Resources are kept as references into the message that carried them.
    // Maps are sorted, so that equal messages are equal bytes: versions are made of them.
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
