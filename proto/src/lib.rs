//! The messages and services of `carrel.v1`, generated from `proto/carrel/v1/*.proto`.
//!
//! The `.proto` files are the documentation of the API; this crate only gives them a module tree.

/// Package `carrel.v1`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "generated code; it is documented in the .proto files"
)]
pub mod v1 {
    tonic::include_proto!("carrel.v1");

    /// The compiled descriptors of the package, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carrel_descriptor.bin"));
}
