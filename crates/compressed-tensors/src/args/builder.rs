//! Quantization args built in code, and the rules between their fields.

use serde_json::{Map, Value, json};

use super::{ActivationOrdering, Dynamic, QuantizationArgs, QuantizationStrategy, QuantizationType};
use crate::{DType, ErrorKind, Result, wire::refuse};

/// Collects fields in code and validates them at the end.
#[derive(Clone, Debug)]
pub struct ArgsBuilder {
    pub(super) num_bits: i64,
    pub(super) r#type: QuantizationType,
    pub(super) symmetric: bool,
    pub(super) group_size: Option<i64>,
    pub(super) strategy: Option<QuantizationStrategy>,
    pub(super) block_structure: Option<[usize; 2]>,
    pub(super) dynamic: Dynamic,
    pub(super) actorder: Option<ActivationOrdering>,
    pub(super) scale_dtype: Option<DType>,
    pub(super) zp_dtype: Option<DType>,
    pub(super) observer: Option<String>,
    pub(super) observer_kwargs: Map<String, Value>,
}

impl Default for ArgsBuilder {
    fn default() -> Self {
        Self {
            num_bits: 8,
            r#type: QuantizationType::Int,
            symmetric: true,
            group_size: None,
            strategy: None,
            block_structure: None,
            dynamic: Dynamic::No,
            actorder: None,
            scale_dtype: None,
            zp_dtype: None,
            observer: None,
            observer_kwargs: Map::new(),
        }
    }
}

impl ArgsBuilder {
    /// Integer codes of `num_bits`.
    pub fn int(num_bits: i64) -> Self {
        Self { num_bits, ..Self::default() }
    }

    /// Float codes of `num_bits`.
    pub fn float(num_bits: i64) -> Self {
        Self { num_bits, r#type: QuantizationType::Float, ..Self::default() }
    }

    /// Lets the zero point move.
    #[must_use]
    pub fn asymmetric(mut self) -> Self {
        self.symmetric = false;
        self
    }

    /// Columns that share a scale; without a strategy it also sets that.
    #[must_use]
    pub fn group_size(mut self, columns: i64) -> Self {
        self.group_size = Some(columns);
        self
    }

    /// Which elements share a scale.
    #[must_use]
    pub fn strategy(mut self, strategy: QuantizationStrategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Tiles of `rows` by `columns` share a scale.
    #[must_use]
    pub fn block(mut self, rows: usize, columns: usize) -> Self {
        self.strategy = Some(QuantizationStrategy::Block);
        self.block_structure = Some([rows, columns]);
        self
    }

    /// When scales are found.
    #[must_use]
    pub fn dynamic(mut self, dynamic: Dynamic) -> Self {
        self.dynamic = dynamic;
        self
    }

    /// GPTQ's column order.
    #[must_use]
    pub fn actorder(mut self, actorder: ActivationOrdering) -> Self {
        self.actorder = Some(actorder);
        self
    }

    /// Type of the scale on disk.
    #[must_use]
    pub fn scale_dtype(mut self, dtype: DType) -> Self {
        self.scale_dtype = Some(dtype);
        self
    }

    /// Type of the zero point.
    #[must_use]
    pub fn zp_dtype(mut self, dtype: DType) -> Self {
        self.zp_dtype = Some(dtype);
        self
    }

    /// Name of the observer.
    #[must_use]
    pub fn observer(mut self, name: impl Into<String>) -> Self {
        self.observer = Some(name.into());
        self
    }

    /// The observer's arguments.
    #[must_use]
    pub fn observer_kwargs(mut self, kwargs: Map<String, Value>) -> Self {
        self.observer_kwargs = kwargs;
        self
    }

    /// Applies the cross-field rules in the reference's order.
    ///
    /// # Errors
    /// `InvalidField` for the first broken rule; `Unsupported` where no zero-point type follows.
    pub fn build(self) -> Result<QuantizationArgs> {
        let strategy = self.inferred_strategy()?;
        self.check_strategy(strategy)?;
        let zp_dtype = match self.zp_dtype {
            Some(dtype) => dtype,
            None if (self.r#type, self.num_bits) == (QuantizationType::Float, 4) => DType::F8E4M3,
            None => storage_dtype(self.r#type, self.num_bits)?,
        };
        Ok(QuantizationArgs {
            num_bits: self.num_bits,
            r#type: self.r#type,
            symmetric: self.symmetric,
            group_size: self.group_size,
            strategy,
            block_structure: self.block_structure,
            dynamic: self.dynamic,
            actorder: self.actorder,
            scale_dtype: self.scale_dtype,
            zp_dtype: Some(zp_dtype),
            observer: self.observer,
            observer_kwargs: self.observer_kwargs,
        })
    }

    fn inferred_strategy(&self) -> Result<QuantizationStrategy> {
        match (self.strategy, self.group_size) {
            (Some(strategy), _) => Ok(strategy),
            (None, None) => Ok(QuantizationStrategy::Tensor),
            (None, Some(1..)) => Ok(QuantizationStrategy::Group),
            (None, Some(-1)) => Ok(QuantizationStrategy::Channel),
            (None, Some(_)) => Err(refuse("group_size", &json!(self.group_size), "-1 or at least 1")),
        }
    }

    fn check_strategy(&self, strategy: QuantizationStrategy) -> Result<()> {
        use QuantizationStrategy as S;
        let named = json!(strategy.name());
        let grouped = matches!(strategy, S::Group | S::TensorGroup);
        if strategy == S::Token && self.dynamic == Dynamic::No {
            return Err(refuse("strategy", &named, "`dynamic` true with it, as token scales cannot be calibrated"));
        }
        if grouped && self.group_size.is_none_or(|size| size <= 0) {
            let expected = format!("at least 1 with strategy `{}`", strategy.name());
            return Err(refuse("group_size", &json!(self.group_size), expected));
        }
        if !grouped && self.group_size.is_some_and(|size| size > 0) {
            let expected = format!("`group` or `tensor_group` with group_size {}", self.group_size.unwrap_or(0));
            return Err(refuse("strategy", &named, expected));
        }
        if (strategy == S::Block) != self.block_structure.is_some() {
            let expected = if strategy == S::Block { "two positive integers" } else { "null without strategy `block`" };
            return Err(refuse("block_structure", &json!(self.block_structure), expected));
        }
        if self.block_structure.is_some_and(|tile| tile.contains(&0)) {
            return Err(refuse("block_structure", &json!(self.block_structure), "two positive integers"));
        }
        if self.group_size.is_some_and(|size| size < -1) {
            return Err(refuse("group_size", &json!(self.group_size), "-1 or at least 1"));
        }
        let dynamic = self.dynamic.to_json();
        match (self.dynamic, strategy) {
            (Dynamic::No, _) | (_, S::TensorGroup) | (Dynamic::Yes, S::Token | S::Tensor | S::Group) => Ok(()),
            (Dynamic::Local, _) => Err(refuse("dynamic", &dynamic, "`local` only with strategy `tensor_group`")),
            (Dynamic::Yes, _) => Err(refuse("dynamic", &dynamic, format!("false with strategy `{}`", strategy.name()))),
        }
    }
}

pub(super) fn storage_dtype(kind: QuantizationType, num_bits: i64) -> Result<DType> {
    match (kind, num_bits) {
        (QuantizationType::Float, 8) => Ok(DType::F8E4M3),
        (QuantizationType::Float, bits) => {
            Err(ErrorKind::Unsupported { what: format!("a storage type for {bits}-bit float codes") }.into())
        }
        (QuantizationType::Int, ..=8) => Ok(DType::I8),
        (QuantizationType::Int, ..=16) => Ok(DType::I16),
        (QuantizationType::Int, _) => Ok(DType::I32),
    }
}
