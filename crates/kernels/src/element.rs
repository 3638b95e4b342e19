//! Element types that kernels read and write: f32, bf16 and f16.

use half::{bf16, f16};

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
    impl Sealed for half::f16 {}
}

/// The element type of an [`Element`], as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Bf16,
    F16,
}

/// f32, bf16 or f16; closed to other types.
///
/// Arithmetic is done in f32; [`Element::from_f32`] rounds to nearest, ties to even.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Default + std::fmt::Debug + PartialEq + 'static {
    #[doc(hidden)]
    const KIND: KindToken;

    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

/// Hides [`Kind`] from other crates.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct KindToken(pub(crate) Kind);

impl Element for f32 {
    const KIND: KindToken = KindToken(Kind::F32);

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    const KIND: KindToken = KindToken(Kind::Bf16);

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_bits(bf16_bits(x))
    }
}

impl Element for f16 {
    const KIND: KindToken = KindToken(Kind::F16);

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32_const()
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32_const(x)
    }
}

/// Bits of the nearest bf16, ties to even; NaN becomes the quiet NaN of its sign.
///
/// Free of branches, so that loops over it become vector code.
#[inline(always)]
pub(crate) fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}
