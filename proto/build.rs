//! Compiles the .proto files with protox (pure Rust), so that no protoc has to be installed.

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "carrel/v1/workspace.proto",
        "carrel/v1/workspace_service.proto",
        "carrel/v1/event_service.proto",
        "carrel/v1/policy_service.proto",
        "carrel/v1/node_service.proto",
        "carrel/v1/agent_service.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("carrel_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
