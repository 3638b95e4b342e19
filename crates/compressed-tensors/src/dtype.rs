//! Element types as they appear in safetensors headers and in torch's names.

use std::fmt;

/// An element type of a stored tensor.
///
/// Two spellings exist: the safetensors one ([`DType::safetensors_name`], `"BF16"`) and torch's
/// ([`DType::torch_name`], `"bfloat16"`). Types that torch lacks have no torch name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// One byte, 0 or 1.
    Bool,
    /// Two e2m1 values a byte.
    F4,
    /// Four e2m3 values in three bytes.
    F6E2M3,
    /// Four e3m2 values in three bytes.
    F6E3M2,
    /// Unsigned 8-bit integer.
    U8,
    /// Signed 8-bit integer.
    I8,
    /// float8 with 5 exponent bits, with infinities.
    F8E5M2,
    /// float8 with 4 exponent bits, finite only.
    F8E4M3,
    /// Exponent-only scale, 2^(code-127).
    F8E8M0,
    /// float8 e4m3 without negative zero.
    F8E4M3FNUZ,
    /// float8 e5m2 without negative zero.
    F8E5M2FNUZ,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single.
    F32,
    /// Two IEEE singles.
    C64,
    /// IEEE double.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
}

/// Every type with its safetensors name, torch name and width in bits.
const TABLE: &[(DType, &str, Option<&str>, usize)] = &[
    (DType::Bool, "BOOL", Some("bool"), 8),
    (DType::F4, "F4", None, 4),
    (DType::F6E2M3, "F6_E2M3", None, 6),
    (DType::F6E3M2, "F6_E3M2", None, 6),
    (DType::U8, "U8", Some("uint8"), 8),
    (DType::I8, "I8", Some("int8"), 8),
    (DType::F8E5M2, "F8_E5M2", Some("float8_e5m2"), 8),
    (DType::F8E4M3, "F8_E4M3", Some("float8_e4m3fn"), 8),
    (DType::F8E8M0, "F8_E8M0", Some("float8_e8m0fnu"), 8),
    (DType::F8E4M3FNUZ, "F8_E4M3FNUZ", Some("float8_e4m3fnuz"), 8),
    (DType::F8E5M2FNUZ, "F8_E5M2FNUZ", Some("float8_e5m2fnuz"), 8),
    (DType::I16, "I16", Some("int16"), 16),
    (DType::U16, "U16", Some("uint16"), 16),
    (DType::F16, "F16", Some("float16"), 16),
    (DType::BF16, "BF16", Some("bfloat16"), 16),
    (DType::I32, "I32", Some("int32"), 32),
    (DType::U32, "U32", Some("uint32"), 32),
    (DType::F32, "F32", Some("float32"), 32),
    (DType::C64, "C64", Some("complex64"), 64),
    (DType::F64, "F64", Some("float64"), 64),
    (DType::I64, "I64", Some("int64"), 64),
    (DType::U64, "U64", Some("uint64"), 64),
];

impl DType {
    /// Width of one element in bits.
    pub fn bits(self) -> usize {
        self.row().3
    }

    /// Bytes that `elements` elements take, or `None` where they do not fill whole bytes or the
    /// count overflows.
    pub fn byte_len(self, elements: usize) -> Option<usize> {
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Whether the type is one of the IEEE-like widths that weights are trained in.
    pub fn is_dense_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// The name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        self.row().1
    }

    /// Torch's name without the `torch.` prefix.
    pub fn torch_name(self) -> Option<&'static str> {
        self.row().2
    }

    /// Reads a safetensors header name.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|it| it.1 == name).map(|it| it.0)
    }

    /// Reads `torch.bfloat16` or `bfloat16`.
    pub fn from_torch_name(name: &str) -> Option<Self> {
        let bare = name.strip_prefix("torch.").unwrap_or(name);
        TABLE.iter().find(|it| it.2 == Some(bare)).map(|it| it.0)
    }

    fn row(self) -> &'static (Self, &'static str, Option<&'static str>, usize) {
        // The table lists the variants in declaration order; `table_is_in_declaration_order` proves it.
        &TABLE[self as usize]
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.safetensors_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order() {
        for (idx, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, idx);
        }
    }

    #[test]
    fn both_spellings_come_back() {
        for (dtype, name, torch, _) in TABLE {
            assert_eq!(DType::from_safetensors_name(name), Some(*dtype));
            if let Some(torch) = torch {
                assert_eq!(DType::from_torch_name(&format!("torch.{torch}")), Some(*dtype));
            }
        }
        assert_eq!(DType::from_torch_name("torch.torch.int8"), None);
    }

    #[test]
    fn four_bit_elements_fill_whole_bytes_or_have_no_length() {
        assert_eq!(DType::F4.byte_len(6), Some(3));
        assert_eq!(DType::F4.byte_len(5), None);
        assert_eq!(DType::F64.byte_len(usize::MAX), None);
    }
}
