//! Loops for each kind of code.

/// Picks the loop of a rounding, so that the kind is not asked for each number: `$call` with a function of a value, its scale
/// and its zero point as `$quantize`.
macro_rules! with_quantize {
    ($grid:expr, |$quantize:ident| $call:expr) => {{
        let (lowest, highest) = $grid.codes();
        macro_rules! with {
            (symmetric, $narrow:expr) => {{
                let $quantize = |w: f32, scale: f32, _: f32| {
                    $crate::gptq_sweep::symmetric(
                        |y| $crate::gptq_sweep::round_int(y, lowest, highest),
                        $narrow,
                        w,
                        scale,
                    )
                };
                $call
            }};
            (asymmetric, $narrow:expr) => {{
                let $quantize = |w: f32, scale: f32, zero: f32| {
                    $crate::gptq_sweep::asymmetric(
                        |y| $crate::gptq_sweep::round_int(y, lowest, highest),
                        $narrow,
                        w,
                        scale,
                        zero,
                    )
                };
                $call
            }};
        }
        match ($grid.scale_type, $grid.zero_points.is_some()) {
            ($crate::gptq_sweep::ScaleType::F32, false) => with!(symmetric, |x| x),
            ($crate::gptq_sweep::ScaleType::F32, true) => with!(asymmetric, |x| x),
            ($crate::gptq_sweep::ScaleType::Bf16, false) => {
                with!(symmetric, |x| $crate::gptq_sweep::ScaleType::Bf16.round(x))
            }
            ($crate::gptq_sweep::ScaleType::Bf16, true) => {
                with!(asymmetric, |x| $crate::gptq_sweep::ScaleType::Bf16.round(x))
            }
            ($crate::gptq_sweep::ScaleType::F16, false) => {
                with!(symmetric, |x| $crate::gptq_sweep::ScaleType::F16.round(x))
            }
            ($crate::gptq_sweep::ScaleType::F16, true) => {
                with!(asymmetric, |x| $crate::gptq_sweep::ScaleType::F16.round(x))
            }
        }
    }};
}

pub(super) use with_quantize;
