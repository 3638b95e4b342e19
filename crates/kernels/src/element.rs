//! Element types that kernels read and write: f32, bf16 and f16.

use half::{bf16, f16};

/// The element type of an [`Element`], as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

pub(crate) mod sealed {
    use super::Kind;
    use crate::gemm::pack::Pack;
    use crate::gemm::{driver, update::Update};
    use crate::{Mat, MatMut, Profile};
    use half::{bf16, f16};

    /// What only this crate may ask of an element type; closes [`Element`](super::Element).
    pub trait Sealed: Pack<f32> + Send + Sync {
        #[doc(hidden)]
        const KIND: Kind;

        /// `c += a @ b` in the way of `update`.
        #[doc(hidden)]
        fn multiply(profile: Profile, a: Mat<'_, Self>, b: Mat<'_, Self>, c: MatMut<'_, f32>, update: Update);

        /// `c += x^T @ x` on the diagonal and above.
        #[doc(hidden)]
        fn add_square(profile: Profile, x: Mat<'_, Self>, c: MatMut<'_, f32>) {
            driver::add_square(profile, x, c);
        }

        /// As [`Sealed::add_square`], added up in f64: products of f32 one by one, sums of panels of what is narrower.
        #[doc(hidden)]
        fn add_square_wide(profile: Profile, x: Mat<'_, Self>, c: MatMut<'_, f64>) {
            driver::add_square_wide(profile, x, c);
        }

        /// The slice itself where the type is f32.
        #[doc(hidden)]
        fn as_f32s(_: &[Self]) -> Option<&[f32]> {
            None
        }

        /// The slice itself where the type is f32.
        #[doc(hidden)]
        fn f32_mut(_: &mut [Self]) -> Option<&mut [f32]> {
            None
        }
    }

    impl Sealed for f32 {
        const KIND: Kind = Kind::F32;

        fn multiply(profile: Profile, a: Mat<'_, Self>, b: Mat<'_, Self>, c: MatMut<'_, f32>, update: Update) {
            driver::multiply_f32(profile, a, b, c, update);
        }

        fn add_square_wide(profile: Profile, x: Mat<'_, Self>, c: MatMut<'_, f64>) {
            driver::add_square_f64(profile, x, c);
        }

        fn as_f32s(slice: &[Self]) -> Option<&[f32]> {
            Some(slice)
        }

        fn f32_mut(slice: &mut [Self]) -> Option<&mut [f32]> {
            Some(slice)
        }
    }

    impl Sealed for bf16 {
        const KIND: Kind = Kind::Bf16;

        fn multiply(profile: Profile, a: Mat<'_, Self>, b: Mat<'_, Self>, c: MatMut<'_, f32>, update: Update) {
            driver::multiply_bf16(profile, a, b, c, update);
        }

        fn add_square(profile: Profile, x: Mat<'_, Self>, c: MatMut<'_, f32>) {
            driver::add_square_bf16(profile, x, c);
        }

        fn add_square_wide(profile: Profile, x: Mat<'_, Self>, c: MatMut<'_, f64>) {
            driver::add_square_wide_bf16(profile, x, c);
        }
    }

    impl Sealed for f16 {
        const KIND: Kind = Kind::F16;

        fn multiply(profile: Profile, a: Mat<'_, Self>, b: Mat<'_, Self>, c: MatMut<'_, f32>, update: Update) {
            driver::multiply_f16(profile, a, b, c, update);
        }
    }
}

/// f32, bf16 or f16; closed to other types.
///
/// Arithmetic is done in f32; [`Element::from_f32`] rounds to nearest, ties to even.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Default + std::fmt::Debug + PartialEq + 'static {
    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
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
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Free of branches, so that loops over it become vector code; NaN becomes the quiet NaN of its sign.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        Self::from_bits((if x.is_nan() { quiet } else { rounded }) as u16)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32_const()
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32_const(x)
    }
}
