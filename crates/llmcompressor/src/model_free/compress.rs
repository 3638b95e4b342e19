//! Quantizes one weight, or weights that share a global scale, in slabs of rows.

use std::sync::Arc;

use checkpoint::TensorSpec;
use compressed_tensors::{
    args::QuantizationStrategy,
    format::CompressionFormat,
    scheme::QuantizationScheme,
    weight_compressor::{FirstPass, Given, MinMax, SlabOutputs, SlabReport, WeightCompressor},
};
use modifiers::observers::{SearchResult, WeightSearch};

use super::{
    options::Tolerance,
    search::{Searched, search_of},
};
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
    /// Where the observer searches.
    search: Option<WeightSearch>,
    /// Full names of the compressor's outputs, in its order.
    names: Vec<String>,
}

/// What must be known of a whole weight before its rows are compressed.
#[derive(Default)]
struct Whole<'a> {
    range: Option<MinMax>,
    global_scale: Option<f32>,
    searched: Option<Searched<'a>>,
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
            let search = match &scheme.weights {
                Some(args) => search_of(args, matrix.dtype, [matrix.rows, matrix.cols])
                    .context(format!("module `{}`", module.name))?,
                None => None,
            };
            let names: Vec<_> = compressor.outputs().iter().map(|it| format!("{}.{}", module.name, it.name)).collect();
            for (spec, name) in compressor.outputs().iter().zip(&names) {
                let spec = TensorSpec { name: name.clone(), dtype: spec.dtype, shape: spec.shape.clone() };
                outputs.push(PlannedTensor { spec, shard_idx: matrix.tensor().shard_idx });
            }
            let replaced = module.tensors.clone();
            let (module, matrix) = (module.name.clone(), matrix.clone());
            members.push(Member { module, replaced, matrix, compressor, search, names });
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

    /// What the members need to know of their whole weights; the global scale is that of all together.
    fn scan<'a>(&'a self, worker: &'a Worker<'_>) -> Result<Vec<Whole<'a>>> {
        let wholes: Result<Vec<Whole<'_>>> = self.members.iter().map(|it| it.whole(worker)).collect();
        let mut wholes = wholes?;
        let shared = wholes.iter().filter_map(Whole::shared_range).reduce(MinMax::merge);
        if let Some(shared) = shared {
            for (whole, member) in wholes.iter_mut().zip(&self.members) {
                whole.global_scale = member.compressor.global_scale(&shared);
            }
        }
        Ok(wholes)
    }
}

impl Whole<'_> {
    fn shared_range(&self) -> Option<MinMax> {
        self.searched.as_ref().map_or(self.range, Searched::range)
    }
}

impl Member {
    fn quantum(&self) -> usize {
        let searched = self.search.as_ref().map_or(1, WeightSearch::row_quantum);
        least_common_multiple(least_common_multiple(self.compressor.row_quantum(), self.matrix.row_quantum()), searched)
    }

    /// Bytes of a row, and of what is found in it.
    fn row_bytes(&self) -> usize {
        self.matrix.row_bytes().saturating_add(self.search.as_ref().map_or(0, WeightSearch::row_bytes))
    }

    fn map_slabs<R: Send>(
        &self,
        worker: &Worker<'_>,
        work: impl Fn(usize, &[u8]) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        worker.slabs.map(self.matrix.rows, self.row_bytes(), self.quantum(), |rows| {
            worker.slabs.buffers.with(|slab| {
                self.matrix.read_rows(worker.source, rows.clone(), slab)?;
                work(rows.start, slab)
            })
        })
    }

    fn whole<'a>(&'a self, worker: &'a Worker<'_>) -> Result<Whole<'a>> {
        let mut whole = Whole::default();
        let Some(search) = &self.search else {
            if self.compressor.first_pass() == FirstPass::WholeRange {
                whole.range = Some(self.scan(worker)?);
            }
            return Ok(whole);
        };
        if search.first_pass() == FirstPass::WholeRange {
            whole.range = Some(self.scan(worker)?);
        }
        let shares_a_scale = self.compressor.global_scale(&MinMax::EMPTY).is_some();
        let pass = |work: &(dyn Fn(usize, &[u8]) -> Result<()> + Sync)| self.map_slabs(worker, work).map(drop);
        whole.searched = Some(Searched::new(search, whole.range.as_ref(), shares_a_scale, &worker.slabs.spare, pass)?);
        Ok(whole)
    }

    fn scan(&self, worker: &Worker<'_>) -> Result<MinMax> {
        let ranges = self.map_slabs(worker, |first_row, slab| Ok(self.compressor.scan(first_row, slab)))?;
        Ok(ranges.into_iter().fold(MinMax::EMPTY, MinMax::merge))
    }

    fn compress(
        &self,
        worker: &Worker<'_>,
        whole: &Whole<'_>,
        pool: &Pool<SlabOutputs>,
        non_finite: Tolerance,
    ) -> Result<()> {
        let one_scale = whole.searched.as_ref().and_then(Searched::whole);
        self.map_slabs(worker, |first_row, slab| {
            pool.with(|outputs| {
                let report = self.compress_slab(first_row, slab, whole, one_scale.as_ref(), outputs)?;
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
        let rest = match &one_scale {
            Some(found) => self.compressor.finish_with(found.given(0, self.matrix.rows), whole.global_scale),
            None if whole.searched.is_some() => {
                self.compressor.finish_with(Given { scales: &[], zero_points: None }, whole.global_scale)
            }
            None => self.compressor.finish(whole.range.as_ref(), whole.global_scale),
        };
        for (idx, bytes) in rest.context(self.context())? {
            worker.writer.write_at(&self.names[idx], 0, &bytes)?;
        }
        Ok(())
    }

    fn compress_slab(
        &self,
        first_row: usize,
        slab: &[u8],
        whole: &Whole<'_>,
        one_scale: Option<&SearchResult>,
        outputs: &mut SlabOutputs,
    ) -> Result<SlabReport> {
        let compressor = &self.compressor;
        let report = match &whole.searched {
            None => compressor.compress_rows(first_row, slab, whole.range.as_ref(), whole.global_scale, outputs),
            Some(searched) => {
                let own = match one_scale {
                    Some(_) => None,
                    None => Some(searched.slab(first_row, slab, whole.global_scale)?),
                };
                let n_rows = slab.len() / self.matrix.row_bytes().max(1);
                let given = own.as_ref().or(one_scale).map(|it| it.given(0, n_rows));
                let given = given.unwrap_or(Given { scales: &[], zero_points: None });
                compressor.compress_rows_with(first_row, slab, given, whole.global_scale, outputs)
            }
        };
        report.context(self.context())
    }

    fn context(&self) -> String {
        format!("module `{}`", self.module)
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
            let slab = member.row_bytes() as u64 * rows as u64;
            let searched = member.search.as_ref().map_or(0, |it| it.row_quantum().min(rows) as u64);
            // A search reads a tile of rows as f32, and one tile of it again.
            let searched = searched * member.matrix.cols as u64 * 8;
            3 * slab + searched + member.matrix.scratch_bytes(rows)
        };
        self.members.iter().map(least).max().unwrap_or(0)
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        let wholes = self.scan(worker)?;
        for (member, whole) in self.members.iter().zip(wholes) {
            member.compress(worker, &whole, &self.outputs_pool, self.non_finite)?;
        }
        Ok(())
    }
}
