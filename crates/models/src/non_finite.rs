//! Values that are NaN or infinite, and the module that gives the first of them.

use std::sync::{Arc, Mutex, PoisonError};

use tensor::{Budget, DType, Tensor};

use crate::{HookGuard, Hooks, Model, Result, Tap};

/// Whether every element is a finite number; integers are.
///
/// # Errors
/// A copy of a view that is not dense, where the budget does not allow it.
pub fn is_finite(tensor: &Tensor, budget: &Budget) -> Result<bool> {
    let dense = tensor.dense(budget)?;
    let bytes = dense.as_bytes()?;
    // A number is finite unless all bits of its exponent are set.
    Ok(match tensor.dtype() {
        DType::F32 => all_finite(bytes, |it: [u8; 4]| u32::from_le_bytes(it) & 0x7f80_0000 != 0x7f80_0000),
        DType::BF16 => all_finite(bytes, |it: [u8; 2]| u16::from_le_bytes(it) & 0x7f80 != 0x7f80),
        DType::F16 => all_finite(bytes, |it: [u8; 2]| u16::from_le_bytes(it) & 0x7c00 != 0x7c00),
        _ => true,
    })
}

/// Bytes that are looked through before the first that is not finite ends it: without branches between, loops become vector code.
const STRETCH: usize = 1 << 14;

fn all_finite<const N: usize>(bytes: &[u8], is_finite: impl Fn([u8; N]) -> bool) -> bool {
    bytes.chunks(STRETCH).all(|stretch| stretch.as_chunks::<N>().0.iter().fold(true, |all, it| all & is_finite(*it)))
}

/// Hears what every module gives, and remembers the first that gives something else than finite numbers.
pub struct NonFiniteWatch {
    first: Arc<Mutex<Option<String>>>,
    _guards: Vec<HookGuard>,
}

impl NonFiniteWatch {
    /// Listens to `model` with `hooks`, behind those that were added before.
    pub fn new(model: &Model, hooks: &Hooks, budget: &Budget) -> Self {
        let first: Arc<Mutex<Option<String>>> = Arc::default();
        let listen = |id| {
            let (first, path, budget) = (Arc::clone(&first), model.tree().path(id).to_owned(), budget.clone());
            hooks.add(id, Tap::Output, move |heard| {
                for value in heard.values.iter().flatten() {
                    if !is_finite(value, &budget)? {
                        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                        first.get_or_insert_with(|| path.clone());
                    }
                }
                Ok(None)
            })
        };
        let guards = model.tree().ids().map(listen).collect();
        Self { first, _guards: guards }
    }

    /// The innermost module whose output was the first that is not finite.
    pub fn first(&self) -> Option<String> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn nan_and_infinity_are_found_in_every_float_and_the_largest_numbers_are_finite() {
        let budget = Budget::unlimited();
        let tensor = |dtype: DType, bytes: &[u8]| {
            let write = |out: &mut [u8]| {
                out.copy_from_slice(bytes);
                Ok::<(), tensor::Error>(())
            };
            Tensor::build_bytes(&budget, dtype, &[bytes.len() * 8 / dtype.bits()], write).unwrap()
        };
        let of = |dtype, bytes: &[u8]| is_finite(&tensor(dtype, bytes), &budget).unwrap();
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!of(DType::F32, &[1.0f32.to_le_bytes(), value.to_le_bytes()].concat()));
        }
        assert!(of(DType::F32, &f32::MAX.to_le_bytes()) && of(DType::F32, &f32::MIN_POSITIVE.to_le_bytes()));
        assert!(!of(DType::BF16, &[0x80, 0xff]) && of(DType::BF16, &[0x7f, 0x7f]));
        assert!(!of(DType::F16, &[0x00, 0x7c]) && of(DType::F16, &[0xff, 0x7b]));
        assert!(of(DType::I64, &[0xff; 8]));
    }
}
