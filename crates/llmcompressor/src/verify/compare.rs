//! Every tensor of the source against what became of it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Read,
    path::Path,
};

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{numbers::read_f32, scheme::QuantizationScheme};
use serde::Deserialize;

use super::{FaultKind, ModuleCheck, Verdict};
use crate::{
    Counted,
    catalog::{Catalog, Method, StoredModule, is_activation_parameter},
    error::{ErrorKind, InContext, Result},
    slabs::{Slabs, least_common_multiple},
    tied::{heads, shared_embedding},
};

/// Sums over the elements of a weight, in f64.
#[derive(Clone, Copy, Debug, Default)]
struct Distance {
    signal: f64,
    noise: f64,
    max_error: f64,
    n_non_finite: usize,
}

/// What a run says of itself: tensors that are not the source's on purpose.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    /// Dense tensors that were written anew.
    rewritten: HashSet<String>,
    /// Modules that are no approximation of the source's.
    transformed: HashSet<String>,
    /// Tensors of the source that have another name in the output.
    renamed: HashMap<String, String>,
}

impl Told {
    /// From the report of an output; nothing is told where there is none, or one of another kind.
    fn by(output: &Source) -> Self {
        let report = fs::read(output.dir().join("report.json")).ok();
        report.and_then(|it| serde_json::from_slice(&it).ok()).unwrap_or_default()
    }

    /// The name that a tensor of the source has in the output.
    fn name<'a>(&'a self, tensor: &'a str) -> &'a str {
        self.renamed.get(tensor).map_or(tensor, String::as_str)
    }

    /// What became of a module of the source.
    fn made<'c>(&self, from: &StoredModule, output: &'c Catalog) -> Option<&'c StoredModule> {
        let tensor = format!("{}.weight", from.name);
        let name = self.name(&tensor);
        output.get(name.strip_suffix(".weight").unwrap_or(name))
    }

    /// Whether `made` should be `from` bit for bit: both plain, in an output that is compressed elsewhere.
    ///
    /// In an output without any compression a weight may come from codes that are gone, so it is judged by distance.
    fn is_copy(&self, from: &StoredModule, made: &StoredModule, output: &Catalog) -> bool {
        from.tensors.iter().map(|it| self.name(it)).eq(made.tensors.iter().map(String::as_str))
            && made.scheme.is_none()
            && matches!(output.method, Method::CompressedTensors(_))
    }
}

pub(super) fn check(
    source: &Source,
    output: &Source,
    output_catalog: &Catalog,
    slabs: &Slabs<'_>,
    verdict: &mut Verdict,
) -> Result<()> {
    let source_catalog = Catalog::of(source)?;
    let told = Told::by(output);
    let total: u64 = source.tensors().map(TensorEntry::n_bytes).sum();
    slabs.progress.begin("comparing", total, Counted::Bytes);
    let mut explained: HashSet<&str> = HashSet::new();
    for module in &source_catalog.modules {
        let Some(made) = told.made(module, output_catalog) else { continue };
        explained.extend(made.tensors.iter().map(String::as_str));
        // Plain on both sides under one name: compared below, bit for bit.
        if told.is_copy(module, made, output_catalog) {
            continue;
        }
        compare_module(source, output, module, made, &told, slabs, verdict)?;
        // Taken out of a stack as it was.
        let is_plain = [module, made].iter().all(|it| it.scheme.is_none() && !it.is_foreign());
        let is_told = made.tensors.iter().any(|it| told.rewritten.contains(it));
        let differs = verdict.modules.last().is_some_and(|it| it.sqnr_db.is_some());
        if is_plain && !is_told && differs && matches!(output_catalog.method, Method::CompressedTensors(_)) {
            verdict.fault(FaultKind::Changed, made.name.clone(), "its values differ from the source's");
        }
    }
    // A head that the source keeps in its embedding has a weight of its own where one of the two has changed.
    if let Some(embedding) = shared_embedding(source, &source_catalog) {
        for head in heads(output_catalog) {
            explained.extend(head.tensors.iter().map(String::as_str));
            compare_module(source, output, embedding, head, &told, slabs, verdict)?;
            let is_copy = head.scheme.is_none() && !head.tensors.iter().any(|it| told.rewritten.contains(it));
            if is_copy && verdict.modules.last().is_some_and(|it| it.sqnr_db.is_some()) {
                verdict.fault(FaultKind::Changed, head.name.clone(), "it differs from the source's embedding");
            }
        }
    }
    // The fault of a module that cannot be read is named already; its tensors would only repeat it.
    let unreadable: HashSet<&str> = output_catalog.unreadable.iter().map(|it| it.0.as_str()).collect();
    let is_named = |tensor: &str| tensor.rsplit_once('.').is_some_and(|it| unreadable.contains(it.0));
    for entry in source.tensors().filter(|it| !is_named(&it.name)) {
        let made = output.get(told.name(&entry.name));
        if let Some(made) = made.filter(|it| told.rewritten.contains(&it.name)) {
            check_rewritten(output, entry, made, verdict)?;
            continue;
        }
        compare_tensor(source, output, entry, &told, [&source_catalog, output_catalog], slabs, verdict)?;
    }
    let split: HashSet<&str> =
        source_catalog.expert_biases.iter().flat_map(|it| &it.1).map(|it| it.name.as_str()).collect();
    let renamed: HashSet<&str> =
        told.renamed.iter().filter(|it| source.get(it.0).is_some()).map(|it| it.1.as_str()).collect();
    for entry in output.tensors().filter(|it| !is_named(&it.name)) {
        let name = entry.name.as_str();
        let is_new_scale = name.ends_with("_scale") || name.ends_with("_zero_point");
        let is_known = source.get(name).is_some() || split.contains(name) || renamed.contains(name);
        if !is_known && !explained.contains(name) && !is_new_scale {
            verdict.fault(FaultKind::Extra, name, "the source has no such tensor");
        }
    }
    slabs.progress.end();
    compare_companions(source, output, verdict)
}

fn compare_module(
    source: &Source,
    output: &Source,
    from: &StoredModule,
    made: &StoredModule,
    told: &Told,
    slabs: &Slabs<'_>,
    verdict: &mut Verdict,
) -> Result<()> {
    let (a, b) = (&from.matrix, &made.matrix);
    if (a.rows, a.cols) != (b.rows, b.cols) {
        let text = format!("it is {} x {}, the source's {} x {}", b.rows, b.cols, a.rows, a.cols);
        verdict.fault(FaultKind::Layout, made.name.clone(), text);
        return Ok(());
    }
    let quantum = least_common_multiple(a.row_quantum(), b.row_quantum());
    // Two slabs of bytes and their f32 values are held at once.
    let row_bytes = a.row_bytes() + b.row_bytes() + 8 * a.cols;
    let parts = slabs.map(a.rows, row_bytes, quantum, |rows| {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let n = rows.len() * a.cols;
        slabs.buffers.with(|bytes| -> Result<()> {
            a.read_rows(source, rows.clone(), bytes)?;
            x.resize(n, 0.0);
            read_f32(a.dtype, bytes, &mut x).context(&from.name)?;
            b.read_rows(output, rows.clone(), bytes)?;
            y.resize(n, 0.0);
            read_f32(b.dtype, bytes, &mut y).context(&made.name)
        })?;
        slabs.progress.advance((rows.len() * a.row_bytes()) as u64);
        Ok(distance(&x, &y))
    })?;
    let whole = parts.into_iter().fold(Distance::default(), |sum, it| Distance {
        signal: sum.signal + it.signal,
        noise: sum.noise + it.noise,
        max_error: sum.max_error.max(it.max_error),
        n_non_finite: sum.n_non_finite + it.n_non_finite,
    });
    let sqnr_db = (whole.noise > 0.0).then(|| 10.0 * (whole.signal / whole.noise).log10());
    if whole.n_non_finite > 0 {
        let text = format!("{} values are NaN or infinite where the source is finite", whole.n_non_finite);
        verdict.fault(FaultKind::Distance, made.name.clone(), text);
    } else if sqnr_db.is_some_and(|db| db < 0.0) && !told.transformed.contains(&made.name) {
        let text = format!("its error is larger than the weight itself (SQNR {:.2} dB)", sqnr_db.unwrap_or_default());
        verdict.fault(FaultKind::Distance, made.name.clone(), text);
    }
    let scheme = made.scheme.as_ref().map_or("dense".to_owned(), |it| it.group.clone());
    let max_error = whole.max_error;
    verdict.modules.push(ModuleCheck {
        module: made.name.clone(),
        scheme,
        shape: [a.rows, a.cols],
        sqnr_db,
        max_error,
    });
    Ok(())
}

fn distance(x: &[f32], y: &[f32]) -> Distance {
    let mut sum = Distance::default();
    for (x, y) in x.iter().zip(y) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        let error = x - y;
        if !error.is_finite() {
            sum.n_non_finite += usize::from(x.is_finite());
            continue;
        }
        sum.signal += x * x;
        sum.noise += error * error;
        sum.max_error = sum.max_error.max(error.abs());
    }
    sum
}

/// A dense tensor that was written anew: it has the source's type and shape and no value that is not finite.
fn check_rewritten(output: &Source, entry: &TensorEntry, made: &TensorEntry, verdict: &mut Verdict) -> Result<()> {
    if made.dtype != entry.dtype || made.shape != entry.shape {
        let text = format!("it is {} {:?}, the source's {} {:?}", made.dtype, made.shape, entry.dtype, entry.shape);
        verdict.fault(FaultKind::Changed, entry.name.clone(), text);
        return Ok(());
    }
    let mut values = vec![0.0; made.shape.iter().product()];
    read_f32(made.dtype, &output.read(made)?, &mut values).context(&entry.name)?;
    let count = values.iter().filter(|it| !it.is_finite()).count();
    if count > 0 {
        verdict.fault(FaultKind::Distance, entry.name.clone(), format!("{count} values are NaN or infinite"));
    }
    Ok(())
}

/// A tensor of the source that is not part of a compressed weight.
fn compare_tensor(
    source: &Source,
    output: &Source,
    entry: &TensorEntry,
    told: &Told,
    [source_catalog, output_catalog]: [&Catalog; 2],
    slabs: &Slabs<'_>,
    verdict: &mut Verdict,
) -> Result<()> {
    let modules = source_catalog.modules_of(&entry.name);
    let (made, lost): (Vec<&StoredModule>, Vec<&StoredModule>) =
        modules.iter().partition(|it| told.made(it, output_catalog).is_some());
    let is_rewritten =
        |it: &&StoredModule| told.made(it, output_catalog).is_some_and(|made| !told.is_copy(it, made, output_catalog));
    if let (Some(first), false) = (lost.first(), made.is_empty()) {
        verdict.fault(FaultKind::Dropped, first.name.clone(), format!("`{}` of the source holds it", entry.name));
    }
    if made.iter().any(is_rewritten) {
        return Ok(());
    }
    let parts = source_catalog.expert_biases.iter().find(|it| it.0.name == entry.name).map(|it| &it.1);
    if let Some(parts) = parts.filter(|it| it.first().is_some_and(|part| output.get(&part.name).is_some())) {
        let bytes = source.read(entry)?;
        for part in parts {
            let data = part.extract(&bytes[part.source.clone()]).context(&entry.name)?;
            match output.get(&part.name) {
                Some(made) if told.rewritten.contains(&made.name) && made.dtype == entry.dtype => {}
                Some(made) if output.read(made)? == data => verdict.n_equal_tensors += 1,
                Some(_) => verdict.fault(FaultKind::Changed, part.name.clone(), "it differs from the source"),
                None => verdict.fault(FaultKind::Dropped, part.name.clone(), "it is missing"),
            }
        }
        return Ok(());
    }
    let Some(made) = output.get(told.name(&entry.name)) else {
        if is_void(&entry.name, source_catalog, output_catalog) {
            return Ok(());
        }
        verdict.fault(FaultKind::Dropped, entry.name.clone(), "the source has it, the output does not");
        return Ok(());
    };
    if made.dtype != entry.dtype || made.shape != entry.shape {
        let text = format!("it is {} {:?}, the source's {} {:?}", made.dtype, made.shape, entry.dtype, entry.shape);
        verdict.fault(FaultKind::Changed, entry.name.clone(), text);
        return Ok(());
    }
    let equal = slabs.map(entry.n_bytes() as usize, 2, 1, |range| {
        let (mut a, mut b) = (vec![0; range.len()], vec![0; range.len()]);
        source.read_into(entry, range.start as u64, &mut a)?;
        output.read_into(made, range.start as u64, &mut b)?;
        slabs.progress.advance(range.len() as u64);
        Ok(a == b)
    })?;
    match equal.into_iter().all(|it| it) {
        true => verdict.n_equal_tensors += 1,
        false => verdict.fault(FaultKind::Changed, entry.name.clone(), "its bytes differ from the source's"),
    }
    Ok(())
}

/// Whether a tensor holds scales of activations under a scheme that its module has no longer.
fn is_void(tensor: &str, source: &Catalog, output: &Catalog) -> bool {
    if !is_activation_parameter(tensor) {
        return false;
    }
    let module = tensor.rsplit_once('.').map_or("", |it| it.0);
    let scheme = |it: &StoredModule| it.scheme.as_ref().map(|it| it.scheme.clone());
    match (source.get(module), output.get(module)) {
        (Some(from), Some(made)) => {
            (from.scheme.is_some() || from.is_foreign()) && !same_but_targets(scheme(from), scheme(made))
        }
        // A cache's scales stand beside no weight.
        _ => !matches!(output.method, Method::CompressedTensors(_)),
    }
}

fn same_but_targets(a: Option<QuantizationScheme>, b: Option<QuantizationScheme>) -> bool {
    let bare = |it: QuantizationScheme| QuantizationScheme { targets: Vec::new(), format: None, ..it };
    a.map(bare) == b.map(bare)
}

fn compare_companions(source: &Source, output: &Source, verdict: &mut Verdict) -> Result<()> {
    for companion in source.companions().iter().filter(|it| it.treatment.is_copied()) {
        // What a run writes itself may stand in the source too, from an earlier run.
        if matches!(companion.name.as_str(), "report.json" | "report.html" | "recipe.yaml") {
            continue;
        }
        let copy = output.dir().join(&companion.name);
        if !copy.is_file() {
            verdict.fault(FaultKind::Companion, companion.name.clone(), "the source has it, the output does not");
        } else if !same_bytes(&companion.path, &copy)? {
            verdict.fault(FaultKind::Companion, companion.name.clone(), "its bytes differ from the source's");
        }
    }
    Ok(())
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &Path| {
        let file = fs::File::open(path).map_err(|source| ErrorKind::File { path: path.to_owned(), source })?;
        Ok::<_, crate::Error>(file)
    };
    let (mut a_file, mut b_file) = (open(a)?, open(b)?);
    let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a_file.read(&mut x).map_err(|source| ErrorKind::File { path: a.to_owned(), source })?;
        if n == 0 {
            let rest = b_file.read(&mut y).map_err(|source| ErrorKind::File { path: b.to_owned(), source })?;
            return Ok(rest == 0);
        }
        if b_file.read_exact(&mut y[..n]).is_err() || x[..n] != y[..n] {
            return Ok(false);
        }
    }
}
