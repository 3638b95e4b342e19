//! A tensor: a strided view of shared storage.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::buffer::{Data, HostBuffer};
use crate::error::{ErrorKind, Result};
use crate::{Budget, DType, Lease, Scalar, Spec};

/// Dtype, shape and strides over shared storage; clones and views share it, nothing writes into it.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
    storage: Storage,
}

/// Where the elements are.
#[derive(Clone)]
enum Storage {
    /// In this process's memory.
    Host(Arc<HostBuffer>),
}

impl Tensor {
    /// A tensor that owns `data`.
    pub(crate) fn own(data: Data, lease: Lease, shape: &[usize]) -> Result<Self> {
        let dtype = data.dtype();
        let found = data.bytes().len() * 8 / dtype.bits();
        let expected = elements_of(shape);
        if found != expected {
            return Err(ErrorKind::Length { found, expected }.into());
        }
        let storage = Storage::Host(Arc::new(HostBuffer::new(data, lease)));
        Ok(Self { dtype, shape: shape.to_vec(), strides: dense_strides(shape), offset: 0, storage })
    }

    /// A tensor whose elements `write` puts into a buffer of the budget; the buffer's contents before have no meaning.
    ///
    /// # Errors
    /// [`ErrorKind::Budget`], and what `write` finds.
    pub fn build<T: Scalar, E: From<crate::Error>>(
        budget: &Budget,
        shape: &[usize],
        write: impl FnOnce(&mut [T]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let (mut elements, lease) = budget.buffer::<T>(elements_of(shape))?;
        write(&mut elements)?;
        Ok(Self::own(T::wrap(elements), lease, shape)?)
    }

    /// A tensor whose little-endian bytes `write` fills in, as from a file.
    ///
    /// # Errors
    /// [`ErrorKind::DType`] where tensors do not hold the type, [`ErrorKind::Budget`], and what `write` finds.
    pub fn build_bytes<E: From<crate::Error>>(
        budget: &Budget,
        dtype: DType,
        shape: &[usize],
        write: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let Some((mut data, lease)) = Data::allocate(budget, dtype, elements_of(shape))? else {
            let expected = "one of F32, BF16, F16, F64, I64, I32, U32, I8, U8".to_owned();
            return Err(crate::Error::from(ErrorKind::DType { argument: "data", found: dtype, expected }).into());
        };
        write(data.bytes_mut())?;
        Ok(Self::own(data, lease, shape)?)
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Extent of each dimension.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        elements_of(&self.shape)
    }

    /// Elements from one index to the next, per dimension.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Bytes of the storage behind this view, shared ones included.
    pub fn storage_bytes(&self) -> u64 {
        let Storage::Host(buffer) = &self.storage;
        buffer.data().capacity_bytes()
    }

    /// Whether two views look at the same elements in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        self.storage_id() == other.storage_id()
            && self.offset == other.offset
            && self.shape == other.shape
            && self.strides == other.strides
    }

    /// A number that views of the same storage share, while it lives.
    pub fn storage_id(&self) -> usize {
        let Storage::Host(buffer) = &self.storage;
        Arc::as_ptr(buffer) as usize
    }

    /// The elements of a dense tensor of type `T`, in row-major order; for kernels and readers of results.
    ///
    /// # Errors
    /// [`ErrorKind::DType`] for another type, [`ErrorKind::Shape`] where the view is not dense ([`Tensor::dense`] helps).
    pub fn as_slice<T: Scalar>(&self) -> Result<&[T]> {
        let all = self.storage_slice::<T>()?;
        if !self.is_dense() {
            let expected = "a dense tensor".to_owned();
            return Err(ErrorKind::Shape { argument: "tensor", found: Spec::of(self).shape, expected }.into());
        }
        Ok(&all[self.offset..self.offset + self.elements()])
    }

    /// The elements of a dense tensor as little-endian bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where the view is not dense.
    pub fn as_bytes(&self) -> Result<&[u8]> {
        if !self.is_dense() {
            let expected = "a dense tensor".to_owned();
            return Err(ErrorKind::Shape { argument: "tensor", found: Spec::of(self).shape, expected }.into());
        }
        let Storage::Host(buffer) = &self.storage;
        let width = self.dtype.bits() / 8;
        Ok(&buffer.data().bytes()[self.offset * width..(self.offset + self.elements()) * width])
    }

    /// Bytes of the storage, where this is the only view of it.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        let Storage::Host(buffer) = &mut self.storage;
        Arc::get_mut(buffer).map(|it| it.data_mut().bytes_mut())
    }

    /// All elements of the storage; views index into them.
    pub(crate) fn storage_slice<T: Scalar>(&self) -> Result<&[T]> {
        let Storage::Host(buffer) = &self.storage;
        let expected = || T::DTYPE.to_string();
        T::slice(buffer.data())
            .ok_or_else(|| ErrorKind::DType { argument: "tensor", found: self.dtype, expected: expected() }.into())
    }

    /// The elements as f32, row-major: borrowed where they are dense f32, else converted.
    ///
    /// # Errors
    /// [`ErrorKind::DType`] for types that are not F32, BF16 or F16.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        if self.dtype == DType::F32 && self.is_dense() {
            return Ok(Cow::Borrowed(self.as_slice()?));
        }
        if self.is_dense() {
            match self.dtype {
                DType::BF16 => return widened(self.as_slice::<half::bf16>()?),
                DType::F16 => return widened(self.as_slice::<half::f16>()?),
                _ => {}
            }
        }
        let mut out = Vec::with_capacity(self.elements());
        match self.dtype {
            DType::F32 => self.visit::<f32>(|x| out.push(x))?,
            DType::BF16 => self.visit::<half::bf16>(|x| out.push(x.to_f32()))?,
            DType::F16 => self.visit::<half::f16>(|x| out.push(x.to_f32()))?,
            found => {
                let expected = "one of F32, BF16, F16".to_owned();
                return Err(ErrorKind::DType { argument: "tensor", found, expected }.into());
            }
        }
        Ok(Cow::Owned(out))
    }

    /// Calls `f` for each element in row-major order.
    fn visit<T: Scalar>(&self, mut f: impl FnMut(T)) -> Result<()> {
        let all = self.storage_slice::<T>()?;
        self.for_each_run(|start, len, stride| {
            for i in 0..len {
                f(all[start + i * stride]);
            }
        });
        Ok(())
    }

    /// Calls `f(start, len, stride)` for each run along the last dimension, in row-major order.
    fn for_each_run(&self, mut f: impl FnMut(usize, usize, usize)) {
        if self.elements() == 0 {
            return;
        }
        let Some((&len, outer)) = self.shape.split_last() else { return f(self.offset, 1, 1) };
        let stride = self.strides[outer.len()];
        let mut index = vec![0usize; outer.len()];
        loop {
            let start = self.offset + index.iter().zip(&self.strides).map(|(i, s)| i * s).sum::<usize>();
            f(start, len, stride);
            let Some(dim) = (0..outer.len()).rev().find(|&dim| index[dim] + 1 < outer[dim]) else { return };
            index[dim] += 1;
            index[dim + 1..].fill(0);
        }
    }

    /// Whether elements lie one after the other in row-major order.
    pub fn is_dense(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == expected;
            expected *= extent;
            fits
        }) || self.elements() == 0
    }

    /// The same elements, dense: this view where it is, else a copy.
    ///
    /// # Errors
    /// [`ErrorKind::Budget`].
    pub fn dense(&self, budget: &Budget) -> Result<Self> {
        if self.is_dense() {
            return Ok(self.clone());
        }
        let Some((mut data, lease)) = Data::allocate(budget, self.dtype, self.elements())? else {
            return not_held(self.dtype);
        };
        let Storage::Host(buffer) = &self.storage;
        let (source, width) = (buffer.data().bytes(), self.dtype.bits() / 8);
        let target = data.bytes_mut();
        let mut at = 0;
        self.for_each_run(|start, len, stride| {
            if stride == 1 {
                target[at..at + len * width].copy_from_slice(&source[start * width..(start + len) * width]);
                at += len * width;
            } else {
                for i in 0..len {
                    let from = (start + i * stride) * width;
                    target[at..at + width].copy_from_slice(&source[from..from + width]);
                    at += width;
                }
            }
        });
        Self::own(data, lease, &self.shape)
    }

    /// A dense tensor under another shape of as many elements.
    ///
    /// # Errors
    /// [`ErrorKind::Length`], or [`ErrorKind::Shape`] where the view is not dense.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        let (found, expected) = (self.elements(), elements_of(shape));
        if found != expected {
            return Err(ErrorKind::Length { found, expected }.into());
        }
        if !self.is_dense() {
            let expected = "a dense tensor".to_owned();
            return Err(ErrorKind::Shape { argument: "tensor", found: Spec::of(self).shape, expected }.into());
        }
        Ok(Self { shape: shape.to_vec(), strides: dense_strides(shape), ..self.clone() })
    }

    /// Indices `start..start + len` of dimension `dim`, without a copy.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] where there is no such dimension or index.
    pub fn slice(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let Some(&extent) = self.shape.get(dim) else {
            return Err(ErrorKind::Index { found: dim as i64, bound: self.shape.len() }.into());
        };
        if start.checked_add(len).is_none_or(|end| end > extent) {
            return Err(ErrorKind::Index { found: start.saturating_add(len) as i64, bound: extent + 1 }.into());
        }
        let mut view = self.clone();
        view.shape[dim] = len;
        view.offset += start * self.strides[dim];
        if len == 0 {
            view.offset = 0;
        }
        Ok(view)
    }

    /// Two dimensions exchanged, without a copy.
    ///
    /// # Errors
    /// [`ErrorKind::Index`] where there is no such dimension.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        let bound = self.shape.len();
        if a.max(b) >= bound {
            return Err(ErrorKind::Index { found: a.max(b) as i64, bound }.into());
        }
        let mut view = self.clone();
        view.shape.swap(a, b);
        view.strides.swap(a, b);
        Ok(view)
    }

    /// A new first dimension of `n` times the same elements, without a copy.
    #[must_use]
    pub fn repeat(&self, n: usize) -> Self {
        let mut view = self.clone();
        view.shape.insert(0, n);
        view.strides.insert(0, 0);
        view
    }

    /// Takes the elements out, with the lease that accounts them, where this is the only dense view of its storage.
    pub(crate) fn into_unique<T: Scalar>(self) -> std::result::Result<(Vec<usize>, HostBuffer), Self> {
        if self.dtype != T::DTYPE || self.offset != 0 || !self.is_dense() {
            return Err(self);
        }
        let elements = self.elements();
        let Self { dtype, shape, strides, offset, storage: Storage::Host(buffer) } = self;
        match Arc::try_unwrap(buffer) {
            Ok(buffer) if T::slice(buffer.data()).is_some_and(|all| all.len() == elements) => Ok((shape, buffer)),
            Ok(buffer) => Err(Self { dtype, shape, strides, offset, storage: Storage::Host(Arc::new(buffer)) }),
            Err(buffer) => Err(Self { dtype, shape, strides, offset, storage: Storage::Host(buffer) }),
        }
    }

    /// The counterpart of [`Tensor::into_unique`].
    pub(crate) fn from_unique(shape: Vec<usize>, buffer: HostBuffer) -> Self {
        let dtype = buffer.data().dtype();
        let strides = dense_strides(&shape);
        Self { dtype, shape, strides, offset: 0, storage: Storage::Host(Arc::new(buffer)) }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({})", Spec::of(self))
    }
}

fn widened<T: kernels::Element>(elements: &[T]) -> Result<Cow<'static, [f32]>> {
    let mut out = vec![0.0; elements.len()];
    kernels::cast::cast(kernels::Profile::detect(), elements, &mut out)?;
    Ok(Cow::Owned(out))
}

fn not_held<T>(found: DType) -> Result<T> {
    Err(ErrorKind::DType { argument: "tensor", found, expected: "a type that tensors hold".to_owned() }.into())
}

fn elements_of(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product, &n| product.saturating_mul(n))
}

fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1usize; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].saturating_mul(shape[dim]);
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        Budget::unlimited().tensor((0..elements_of(shape)).map(|i| i as f32).collect(), shape).unwrap()
    }

    #[test]
    fn views_share_storage_and_become_dense_by_a_copy() {
        let x = counted(&[2, 3]);
        let turned = x.transpose(0, 1).unwrap();
        assert!(!turned.is_dense() && turned.storage_id() == x.storage_id());
        assert!(turned.as_slice::<f32>().is_err());
        let dense = turned.dense(&Budget::unlimited()).unwrap();
        assert_eq!(dense.as_slice::<f32>().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(turned.to_f32().unwrap(), dense.to_f32().unwrap());
        let column = x.slice(1, 1, 1).unwrap();
        assert_eq!(column.to_f32().unwrap().as_ref(), [1.0, 4.0]);
        assert_eq!(x.slice(0, 1, 1).unwrap().as_slice::<f32>().unwrap(), [3.0, 4.0, 5.0]);
        assert_eq!(x.repeat(2).to_f32().unwrap().len(), 12);
        assert!(!x.repeat(2).is_dense());
    }

    #[test]
    fn dense_halves_become_the_f32_that_strided_ones_become() {
        use half::{bf16, f16};
        let budget = Budget::unlimited();
        let patterns = || (0..70_000u32).map(|bits| bits as u16);
        let bf16s: Vec<bf16> = patterns().map(bf16::from_bits).collect();
        let f16s: Vec<f16> = patterns().map(f16::from_bits).collect();
        for dense in [budget.tensor(bf16s, &[7, 10_000]).unwrap(), budget.tensor(f16s, &[7, 10_000]).unwrap()] {
            let column = |x: &Tensor, i| x.slice(1, i, 1).unwrap().to_f32().unwrap().into_owned();
            let wide = dense.to_f32().unwrap();
            for i in 0..10_000 {
                for (row, strided) in column(&dense, i).into_iter().enumerate() {
                    let found = wide[row * 10_000 + i];
                    assert!(found.to_bits() == strided.to_bits() || found.is_nan() && strided.is_nan(), "{row} {i}");
                }
            }
            let tail = dense.slice(0, 3, 2).unwrap();
            let (from, found) = (30_000, tail.to_f32().unwrap());
            assert!(found.iter().zip(&wide[from..]).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan()));
        }
    }

    #[test]
    fn a_slice_beyond_the_end_is_refused() {
        let error = counted(&[2, 3]).slice(1, 2, 2).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Index { found: 4, bound: 4 });
        assert!(counted(&[2]).slice(0, usize::MAX, 2).is_err());
    }

    #[test]
    fn a_type_that_tensors_do_not_hold_is_refused() {
        let build = Tensor::build_bytes::<crate::Error>(&Budget::unlimited(), DType::F4, &[2], |_| Ok(()));
        assert!(matches!(build.unwrap_err().kind(), ErrorKind::DType { found: DType::F4, .. }));
    }

    #[test]
    fn as_many_elements_as_the_shape_asks_for() {
        let error = Budget::unlimited().tensor(vec![0.0f32; 5], &[2, 3]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Length { found: 5, expected: 6 });
    }
}
