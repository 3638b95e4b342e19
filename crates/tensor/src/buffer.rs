//! Memory of a tensor: typed elements on the host, given back to the budget's pool when nobody holds them.

use half::{bf16, f16};

use crate::{Budget, DType, Lease, elements::Elements};

/// An element type that tensors hold on the host.
pub trait Scalar: bytemuck::Pod + Default + Send + Sync + std::fmt::Debug + PartialEq + sealed::Typed {
    /// Its name.
    const DTYPE: DType;
}

pub(crate) mod sealed {
    use super::{Data, Elements};

    /// How a type lies in [`Data`]; closed to other crates.
    pub trait Typed: Sized {
        fn wrap(elements: Elements<Self>) -> Data;
        fn slice(data: &Data) -> Option<&[Self]>;
        fn slice_mut(data: &mut Data) -> Option<&mut [Self]>;
        fn take(data: Data) -> Option<Elements<Self>>;
    }
}

macro_rules! scalars {
    ($($variant:ident: $t:ty = $dtype:ident),* $(,)?) => {
        /// Elements of one type.
        #[derive(Debug)]
        pub enum Data { $(#[doc = stringify!($t)] $variant(Elements<$t>)),* }

        impl Data {
            pub(crate) fn capacity_bytes(&self) -> u64 {
                match self { $(Self::$variant(v) => (v.capacity() * size_of::<$t>()) as u64),* }
            }

            pub(crate) fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$dtype),* }
            }

            pub(crate) fn bytes(&self) -> &[u8] {
                match self { $(Self::$variant(v) => bytemuck::cast_slice(v)),* }
            }

            pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
                match self { $(Self::$variant(v) => bytemuck::cast_slice_mut(v)),* }
            }

            /// A buffer of `len` elements of `dtype`, or none where tensors do not hold that type.
            pub(crate) fn allocate(budget: &Budget, dtype: DType, len: usize) -> crate::Result<Option<(Self, Lease)>> {
                Ok(match dtype {
                    $(DType::$dtype => {
                        let (elements, lease) = budget.buffer::<$t>(len)?;
                        Some((Self::$variant(elements), lease))
                    })*
                    _ => None,
                })
            }
        }

        $(
            impl sealed::Typed for $t {
                fn wrap(elements: Elements<Self>) -> Data {
                    Data::$variant(elements)
                }
                fn slice(data: &Data) -> Option<&[Self]> {
                    if let Data::$variant(v) = data { Some(v) } else { None }
                }
                fn slice_mut(data: &mut Data) -> Option<&mut [Self]> {
                    if let Data::$variant(v) = data { Some(v) } else { None }
                }
                fn take(data: Data) -> Option<Elements<Self>> {
                    if let Data::$variant(v) = data { Some(v) } else { None }
                }
            }
            impl Scalar for $t {
                const DTYPE: DType = DType::$dtype;
            }
        )*
    };
}

scalars! {
    F32: f32 = F32,
    Bf16: bf16 = BF16,
    F16: f16 = F16,
    F64: f64 = F64,
    I64: i64 = I64,
    I32: i32 = I32,
    U32: u32 = U32,
    I8: i8 = I8,
    U8: u8 = U8,
}

/// Elements with the lease that accounts them.
#[derive(Debug)]
pub(crate) struct HostBuffer {
    data: Option<Data>,
    lease: Option<Lease>,
}

impl HostBuffer {
    pub(crate) fn new(data: Data, lease: Lease) -> Self {
        Self { data: Some(data), lease: Some(lease) }
    }

    pub(crate) fn data(&self) -> &Data {
        self.data.as_ref().expect("only drop takes the data")
    }

    pub(crate) fn data_mut(&mut self) -> &mut Data {
        self.data.as_mut().expect("only drop takes the data")
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let (Some(data), Some(lease)) = (self.data.take(), self.lease.take()) {
            lease.give_back(data);
        }
    }
}
