//! A module whose tensors one converter turns into others, whole.

use std::sync::Arc;

use checkpoint::{TensorEntry, TensorSpec};
use compressed_tensors::{
    Array, ModuleTensors,
    converters::{Converter, TensorShape, TensorShapes},
};

use crate::{
    error::{InContext, Result},
    rewrite::{PlannedTensor, Unit, Worker},
};

/// Bytes of working memory per stored byte: packed codes are unpacked, transposed and packed again.
const WORK_PER_STORED_BYTE: u64 = 12;

/// Converts one module.
pub(super) struct ConvertModule {
    module: String,
    converter: Arc<dyn Converter>,
    tensors: Vec<(String, TensorEntry)>,
    outputs: Vec<PlannedTensor>,
}

impl ConvertModule {
    /// The conversion of module `name`, or nothing where the converter leaves it as it is.
    ///
    /// # Errors
    /// `Format` for tensors that do not make up a module.
    pub(super) fn plan(name: &str, tensors: &[TensorEntry], converter: &Arc<dyn Converter>) -> Result<Option<Self>> {
        let local = |it: &TensorEntry| it.name.rsplit_once('.').map_or(it.name.as_str(), |it| it.1).to_owned();
        let tensors: Vec<_> = tensors.iter().map(|it| (local(it), it.clone())).collect();
        let shape = |it: &TensorEntry| TensorShape { dtype: it.dtype, shape: it.shape.clone() };
        let stored: TensorShapes = tensors.iter().map(|(local, it)| (local.clone(), shape(it))).collect();
        let planned = converter.plan_module(name, &stored).context(format!("module `{name}`"))?;
        if planned == stored {
            return Ok(None);
        }
        let shard_idx = tensors.first().map_or(0, |it| it.1.shard_idx);
        let output = |(local, it): (&String, &TensorShape)| PlannedTensor {
            spec: TensorSpec { name: format!("{name}.{local}"), dtype: it.dtype, shape: it.shape.clone() },
            shard_idx,
        };
        let outputs = planned.iter().map(output).collect();
        Ok(Some(Self { module: name.to_owned(), converter: Arc::clone(converter), tensors, outputs }))
    }
}

impl Unit for ConvertModule {
    fn name(&self) -> &str {
        &self.module
    }

    fn outputs(&self) -> &[PlannedTensor] {
        &self.outputs
    }

    fn input_bytes(&self) -> u64 {
        self.tensors.iter().map(|it| it.1.n_bytes()).sum()
    }

    fn least_bytes(&self) -> u64 {
        WORK_PER_STORED_BYTE * self.input_bytes()
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        worker.slabs.check_interrupt()?;
        let mut tensors = ModuleTensors::new();
        for (local, entry) in &self.tensors {
            let data = worker.source.read(entry)?;
            tensors.insert(local.clone(), Array { dtype: entry.dtype, shape: entry.shape.clone(), data });
        }
        let made = self.converter.process_module(&self.module, tensors).context(format!("module `{}`", self.module))?;
        for (local, array) in made {
            worker.writer.write_at(&format!("{}.{local}", self.module), 0, &array.data)?;
        }
        worker.slabs.progress.advance(self.input_bytes());
        Ok(())
    }
}
