//! Quantizes one weight, or weights that share a global scale, in slabs of rows.

use std::sync::Arc;

use checkpoint::TensorSpec;
use compressed_tensors::{
    args::QuantizationStrategy,
    format::CompressionFormat,
    scheme::QuantizationScheme,
    weight_compressor::{FirstPass, MinMax, SlabOutputs, SlabReport, WeightCompressor},
};

use super::options::Tolerance;
use crate::{
    catalog::{Matrix, StoredModule},
    error::{ErrorKind, InContext, Result},
    rewrite::{PlannedTensor, Unit, Worker},
    slabs::{Pool, least_common_multiple},
};

/// Quantizes modules that are committed together: one, or all that share a global scale.
pub(crate) struct CompressModules {
    name: String,
    members: Vec<Member>,
    outputs: Vec<PlannedTensor>,
    non_finite: Tolerance,
    /// Shared by all units of a run: buffers of their own would add up to the whole model.
    outputs_pool: Arc<Pool<SlabOutputs>>,
}

struct Member {
    module: String,
    /// Stored tensors that the outputs replace.
    replaced: Vec<String>,
    matrix: Matrix,
    compressor: WeightCompressor,
    /// Full names of the compressor's outputs, in its order.
    names: Vec<String>,
}

/// What must be known of a whole weight before its rows are compressed.
#[derive(Clone, Copy, Default)]
struct Whole {
    range: Option<MinMax>,
    global_scale: Option<f32>,
}

impl CompressModules {
    /// Plans the outputs of `modules`, all under `scheme` and `format`.
    ///
    /// # Errors
    /// `Format` with the module's name for shapes and dtypes that the scheme cannot take.
    pub(crate) fn new(
        modules: &[&StoredModule],
        scheme: &QuantizationScheme,
        format: CompressionFormat,
        non_finite: Tolerance,
        outputs_pool: &Arc<Pool<SlabOutputs>>,
    ) -> Result<Self> {
        let mut members = Vec::with_capacity(modules.len());
        let mut outputs = Vec::new();
        for module in modules {
            let matrix = &module.matrix;
            let compressor = WeightCompressor::new(scheme, format, matrix.dtype, matrix.rows, matrix.cols)
                .context(format!("module `{}`", module.name))?;
            let names: Vec<_> = compressor.outputs().iter().map(|it| format!("{}.{}", module.name, it.name)).collect();
            for (spec, name) in compressor.outputs().iter().zip(&names) {
                let spec = TensorSpec { name: name.clone(), dtype: spec.dtype, shape: spec.shape.clone() };
                outputs.push(PlannedTensor { spec, shard_idx: matrix.tensor().shard_idx });
            }
            let replaced = module.tensors.clone();
            members.push(Member { module: module.name.clone(), replaced, matrix: matrix.clone(), compressor, names });
        }
        let name = modules.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join("+");
        Ok(Self { name, members, outputs, non_finite, outputs_pool: Arc::clone(outputs_pool) })
    }

    /// Whether weights under `scheme` have a global scale, which fused ones share.
    pub(crate) fn shares_a_scale(scheme: &QuantizationScheme) -> bool {
        scheme.weights.as_ref().is_some_and(|it| it.strategy == QuantizationStrategy::TensorGroup)
    }

    /// Stored tensors that the outputs replace; modules of one fused tensor name it each.
    pub(crate) fn replaced_tensors(&self) -> impl Iterator<Item = &String> {
        self.members.iter().flat_map(|it| &it.replaced)
    }

    /// Bytes that the outputs of `module` take.
    pub(crate) fn output_bytes(&self, module: &str) -> u64 {
        let member = self.members.iter().find(|it| it.module == module);
        let specs = member.into_iter().flat_map(|it| it.compressor.outputs());
        specs.filter_map(|it| it.dtype.byte_len(it.shape.iter().product())).map(|it| it as u64).sum()
    }

    /// Ranges of the members that need one, each over its own weight.
    fn scan(&self, worker: &Worker<'_>) -> Result<Vec<Whole>> {
        let mut wholes = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let mut whole = Whole::default();
            if matches!(member.compressor.first_pass(), FirstPass::WholeRange) {
                whole.range = Some(member.scan(worker)?);
            }
            wholes.push(whole);
        }
        let shared = wholes.iter().filter_map(|it| it.range).reduce(MinMax::merge);
        if let Some(shared) = shared {
            for (whole, member) in wholes.iter_mut().zip(&self.members) {
                whole.global_scale = member.compressor.global_scale(&shared);
            }
        }
        Ok(wholes)
    }
}

impl Member {
    fn quantum(&self) -> usize {
        least_common_multiple(self.compressor.row_quantum(), self.matrix.row_quantum())
    }

    fn map_slabs<R: Send>(
        &self,
        worker: &Worker<'_>,
        work: impl Fn(usize, &[u8]) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        worker.slabs.map(self.matrix.rows, self.matrix.row_bytes(), self.quantum(), |rows| {
            worker.slabs.buffers.with(|slab| {
                self.matrix.read_rows(worker.source, rows.clone(), slab)?;
                work(rows.start, slab)
            })
        })
    }

    fn scan(&self, worker: &Worker<'_>) -> Result<MinMax> {
        let ranges = self.map_slabs(worker, |first_row, slab| Ok(self.compressor.scan(first_row, slab)))?;
        Ok(ranges.into_iter().fold(MinMax::EMPTY, MinMax::merge))
    }

    fn compress(
        &self,
        worker: &Worker<'_>,
        whole: Whole,
        pool: &Pool<SlabOutputs>,
        non_finite: Tolerance,
    ) -> Result<()> {
        self.map_slabs(worker, |first_row, slab| {
            pool.with(|outputs| {
                let report = self
                    .compressor
                    .compress_rows(first_row, slab, whole.range.as_ref(), whole.global_scale, outputs)
                    .context(format!("module `{}`", self.module))?;
                if non_finite == Tolerance::Refuse {
                    self.check_finite(worker, &report)?;
                }
                for (idx, name) in self.names.iter().enumerate() {
                    if let Some(range) = self.compressor.output_range(idx, first_row, report.rows) {
                        worker.writer.write_at(name, range.start as u64, outputs.bytes(idx))?;
                    }
                }
                worker.slabs.progress.advance(slab.len() as u64);
                Ok(())
            })
        })?;
        let rest = self.compressor.finish(whole.range.as_ref(), whole.global_scale);
        for (idx, bytes) in rest.context(format!("module `{}`", self.module))? {
            worker.writer.write_at(&self.names[idx], 0, &bytes)?;
        }
        Ok(())
    }

    fn check_finite(&self, worker: &Worker<'_>, report: &SlabReport) -> Result<()> {
        let Some(first) = report.first_non_finite else { return Ok(()) };
        let tensor = self.matrix.tensor();
        Err(ErrorKind::NonFinite {
            file: worker.source.shards()[tensor.shard_idx].file_name.clone(),
            tensor: format!("{}.weight", self.module),
            count: report.n_non_finite,
            first,
        }
        .into())
    }
}

impl Unit for CompressModules {
    fn name(&self) -> &str {
        &self.name
    }

    fn outputs(&self) -> &[PlannedTensor] {
        &self.outputs
    }

    fn input_bytes(&self) -> u64 {
        self.members.iter().map(|it| it.matrix.dense_bytes()).sum()
    }

    fn least_bytes(&self) -> u64 {
        let least = |member: &Member| {
            let rows = member.quantum().min(member.matrix.rows);
            // The slab, what it becomes, and f32 working copies of one tile of rows.
            let slab = member.matrix.row_bytes() as u64 * rows as u64;
            3 * slab + member.matrix.scratch_bytes(rows)
        };
        self.members.iter().map(least).max().unwrap_or(0)
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        let wholes = self.scan(worker)?;
        for (member, whole) in self.members.iter().zip(wholes) {
            member.compress(worker, whole, &self.outputs_pool, self.non_finite)?;
        }
        Ok(())
    }
}
