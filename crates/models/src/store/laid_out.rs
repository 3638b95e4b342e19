//! Weights of linear layers in the order in which they are multiplied.

use std::sync::Arc;

use tensor::{DType, Engine, LaidOut};

use super::{Held, ParameterId, Store};
use crate::error::{Error, Result};

impl Store {
    /// The weight of a linear layer in the order in which inputs of a type are multiplied with it: one that is held or was set, where
    /// memory has no limit; none where it is laid out for another type.
    /// Numbers that are narrower on disk than those computed with stay so.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn laid_out(&self, engine: &Engine, id: ParameterId, inputs: DType) -> Result<Option<Arc<LaidOut>>> {
        {
            let slot = &self.lock()[id.0];
            if let Some(laid_out) = &slot.laid_out {
                return Ok(Some(laid_out).filter(|it| it.inputs() == inputs).cloned());
            }
            if engine.budget.limit_bytes().is_some() || slot.holders == 0 && slot.changed.is_none() {
                return Ok(None);
            }
        }
        let placed = |error: Error| error.at(&self.infos[id.0].name);
        let tensor = match self.in_memory(id) {
            Some(tensor) => tensor,
            None => {
                let original = self.original(engine, id)?;
                let is_narrower =
                    self.infos[id.0].dtype == DType::F32 && matches!(original.dtype(), DType::BF16 | DType::F16);
                if is_narrower { original } else { self.converted(engine, id, original).map_err(placed)? }
            }
        };
        let Some(laid_out) = LaidOut::new(engine, &tensor, inputs).map_err(|error| placed(error.into()))? else {
            return Ok(None);
        };
        let laid_out = Arc::new(laid_out);
        let slot = &mut self.lock()[id.0];
        if slot.holders > 0 || slot.changed.is_some() {
            slot.laid_out = Some(Arc::clone(&laid_out));
            if slot.is_only_laid_out {
                slot.resident = None;
            }
        }
        Ok(Some(laid_out))
    }

    /// As [`Store::hold`], for runs alone: of a weight that is laid out nothing else stays in memory.
    pub fn hold_for_runs(&self, ids: impl IntoIterator<Item = ParameterId>) -> Held<'_> {
        let held = self.hold(ids);
        let mut slots = self.lock();
        held.ids.iter().for_each(|id| slots[id.0].is_only_laid_out = true);
        drop(slots);
        held
    }
}
