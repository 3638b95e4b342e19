//! The names by which a user asks for a dtype.

use compressed_tensors::DType;

/// The dtype that a name asks for; `None` means the model's own, which is also what an unknown name gets.
pub fn parse_dtype(name: &str) -> Option<DType> {
    match name {
        "half" | "float16" | "torch.float16" => Some(DType::F16),
        "bfloat16" | "torch.bfloat16" => Some(DType::BF16),
        "full" | "float32" | "torch.float32" => Some(DType::F32),
        _ => None,
    }
}
