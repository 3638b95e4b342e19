//! Sparse formats that the reference no longer writes: read and written for checkpoints of that time.

mod bitmask;
mod marlin_24;
mod sparse_24_bitmask;
mod sparse_bitmask;
mod tensors;

pub use bitmask::{follows_mask_structure, pack_bitmask, unpack_bitmask};
pub use marlin_24::{compress_marlin_24, decompress_marlin_24};
pub use sparse_24_bitmask::{compress_sparse_24_bitmask, decompress_sparse_24_bitmask, top_two_of_four};
pub use sparse_bitmask::{compress_sparse_bitmask, decompress_sparse_bitmask};
