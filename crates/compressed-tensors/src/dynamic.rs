//! Activations that are quantized by scales of their own on every call.

use crate::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::{Qparams, ScaleMap, fake_quantize},
    scales::Arithmetic,
};

/// Scales and zero points of one activation, and which element uses which.
///
/// `global_scale` is the calibrated `input_global_scale` of the tensor_group strategy. The scales are not rounded
/// back to the activation's type: with a global scale they stay f32.
///
/// # Errors
/// As [`Arithmetic::of`] and [`ScaleMap::dynamic`]; [`ErrorKind::MissingTensor`] where the global scale is absent;
/// [`ErrorKind::Shape`] where `values` does not have the shape's size.
pub fn dynamic_qparams(
    args: &QuantizationArgs,
    (values, float): (&[f32], Float),
    shape: &[usize],
    global_scale: Option<f32>,
) -> Result<(ScaleMap, Qparams)> {
    let global_scale = match args.strategy {
        QuantizationStrategy::TensorGroup => {
            let missing = || ErrorKind::MissingTensor { tensor: "input_global_scale".to_owned() };
            Some(global_scale.ok_or_else(missing)?)
        }
        _ => None,
    };
    if shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)) != Some(values.len()) {
        let expected = format!("{} elements", values.len());
        return Err(ErrorKind::Shape { tensor: "activation".to_owned(), found: shape.to_vec(), expected }.into());
    }
    let map = ScaleMap::dynamic(args, shape)?;
    let qparams = Qparams::from_ranges(&Arithmetic::of(args)?, &map.ranges(values), float, global_scale);
    Ok((map, qparams))
}

/// Quantizes and turns back one activation; returns the type of the result.
///
/// # Errors
/// As [`dynamic_qparams`], and [`ErrorKind::Shape`] for an `out` of another size.
pub fn fake_quantize_dynamic(
    args: &QuantizationArgs,
    (values, float): (&[f32], Float),
    shape: &[usize],
    global_scale: Option<f32>,
    out: &mut [f32],
) -> Result<Float> {
    let (map, qparams) = dynamic_qparams(args, (values, float), shape, global_scale)?;
    fake_quantize(&Arithmetic::of(args)?, (values, float), &map, &qparams, out)
}
