//! Removes the experts whose router rows are smallest.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Converter, TensorShapes,
    modules::{bad_shape, check_lengths, invalid, missing, split},
};
use crate::{Array, ModuleTensors, Result, config::QuantizationConfig, numbers::read_f32};

/// Keys that hold the number of experts, in order of search.
const COUNT_KEYS: &[&str] = &["num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts"];

/// Keys that hold the number of experts of a token.
const TOP_K_KEYS: &[&str] = &["num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "num_experts_per_token"];

/// Keeps the experts whose router rows have the largest sum of magnitudes, the same number in each layer.
///
/// Rows of the router and experts keep their order; experts with tensors of their own are renumbered
/// without gaps, experts in one tensor are selected along its first dimension.
#[derive(Clone, Debug)]
pub struct MagnitudeExpertPruner {
    /// Path of each router with the experts that it keeps, ascending.
    routers: Vec<(String, Vec<usize>)>,
    n_experts: usize,
    n_kept: usize,
}

impl MagnitudeExpertPruner {
    /// A pruner that removes the part `sparsity` of the experts of each router.
    ///
    /// `routers` are the full names of the routers' weights (E, C) with their data.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`](crate::ErrorKind::InvalidField) for a sparsity outside 0 to 1,
    /// [`ErrorKind::MissingTensor`](crate::ErrorKind::MissingTensor) without a router,
    /// [`ErrorKind::Shape`](crate::ErrorKind::Shape) for routers that are no matrices or differ in experts.
    pub fn new<'a>(sparsity: f64, routers: impl IntoIterator<Item = (&'a str, &'a Array)>) -> Result<Self> {
        if !(0.0..=1.0).contains(&sparsity) {
            return Err(invalid("sparsity", sparsity, "a number from 0 to 1"));
        }
        let mut scored = Vec::new();
        let mut counts: Option<(usize, usize)> = None;
        for (name, weight) in routers {
            let &[n_experts, n_cols] = weight.shape.as_slice() else {
                return Err(bad_shape(name, &weight.shape, "a router weight (experts, columns)"));
            };
            let n_bytes = n_experts.checked_mul(n_cols).and_then(|it| weight.dtype.byte_len(it));
            if n_bytes != Some(weight.data.len()) {
                return Err(bad_shape(name, &weight.shape, format!("the shape of {} bytes", weight.data.len())));
            }
            let n_removed = (sparsity * n_experts as f64).round_ties_even() as usize;
            let n_kept = n_experts.saturating_sub(n_removed).max(1);
            let (first, _) = *counts.get_or_insert((n_experts, n_kept));
            if first != n_experts || n_experts == 0 || n_cols == 0 {
                return Err(bad_shape(name, &weight.shape, format!("{first} experts, as in the first router")));
            }
            let mut values = vec![0.0; weight.elements()];
            read_f32(weight.dtype, &weight.data, &mut values)?;
            let scores: Vec<f32> = values.chunks(n_cols).map(|row| row.iter().map(|it| it.abs()).sum()).collect();
            let mut order: Vec<usize> = (0..n_experts).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let mut kept = order[..n_kept].to_vec();
            kept.sort_unstable();
            scored.push((split(name).0.to_owned(), kept));
        }
        let (n_experts, n_kept) = counts.ok_or_else(|| missing("router weight"))?;
        Ok(Self { routers: scored, n_experts, n_kept })
    }

    /// Experts that are left in each layer.
    pub fn kept_experts(&self) -> usize {
        self.n_kept
    }

    /// The router whose path shares the longest prefix of whole segments with the module, the first of equals.
    fn kept_of(&self, module: &str) -> &[usize] {
        let common = |router: &str| router.split('.').zip(module.split('.')).take_while(|(a, b)| a == b).count();
        let mut best: (usize, &[usize]) = (0, &self.routers[0].1);
        for (router, kept) in &self.routers {
            if common(router) > best.0 {
                best = (common(router), kept);
            }
        }
        best.1
    }

    /// What happens to tensors of a module.
    fn role(&self, module: &str) -> Role {
        if let Some((_, kept)) = self.routers.iter().find(|(router, _)| router == module) {
            return Role::SelectRows(kept.clone());
        }
        let segments: Vec<&str> = module.split('.').collect();
        let is_experts = |it: &&str| it.contains("expert") && !it.contains("shared");
        let Some(at) = segments.iter().position(is_experts) else { return Role::Keep };
        let kept = self.kept_of(module);
        match segments.get(at + 1).and_then(|it| it.parse::<usize>().ok()) {
            None => Role::SelectRows(kept.to_vec()),
            Some(expert) => match kept.iter().position(|it| *it == expert) {
                None => Role::Remove,
                Some(number) => {
                    let number = number.to_string();
                    let mut segments = segments;
                    segments[at + 1] = &number;
                    Role::Rename(segments.join("."))
                }
            },
        }
    }

    fn new_names<T>(&self, tensors: &indexmap::IndexMap<String, T>) -> HashMap<String, Role> {
        let modules = tensors.keys().map(|name| split(name).0.to_owned());
        modules.map(|module| (module.clone(), self.role(&module))).collect()
    }
}

#[derive(Clone, Debug)]
enum Role {
    Keep,
    Remove,
    Rename(String),
    /// Of tensors with one entry per expert in the first dimension.
    SelectRows(Vec<usize>),
}

impl Converter for MagnitudeExpertPruner {
    fn process(&self, tensors: ModuleTensors) -> Result<ModuleTensors> {
        check_lengths(&tensors)?;
        let roles = self.new_names(&tensors);
        let mut pruned = ModuleTensors::new();
        for (name, tensor) in tensors {
            let (module, local) = split(&name);
            match &roles[module] {
                Role::Remove => {}
                Role::Keep => {
                    pruned.insert(name, tensor);
                }
                Role::Rename(module) => {
                    pruned.insert(format!("{module}.{local}"), tensor);
                }
                Role::SelectRows(kept) => {
                    let tensor =
                        if tensor.shape.first() == Some(&self.n_experts) { select(&tensor, kept) } else { tensor };
                    pruned.insert(name, tensor);
                }
            }
        }
        Ok(pruned)
    }

    fn validate(&self, tensors: &TensorShapes) -> Result<TensorShapes> {
        let roles = self.new_names(tensors);
        let mut planned = TensorShapes::new();
        for (name, it) in tensors {
            let (module, local) = split(name);
            let mut it = it.clone();
            let name = match &roles[module] {
                Role::Remove => continue,
                Role::Keep => name.clone(),
                Role::Rename(module) => format!("{module}.{local}"),
                Role::SelectRows(kept) => {
                    if it.shape.first() == Some(&self.n_experts) {
                        it.shape[0] = kept.len();
                    }
                    name.clone()
                }
            };
            planned.insert(name, it);
        }
        Ok(planned)
    }

    fn process_module(&self, _: &str, tensors: ModuleTensors) -> Result<ModuleTensors> {
        Ok(tensors)
    }

    fn plan_module(&self, _: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        Ok(tensors.clone())
    }

    fn dependencies(&self, _: &str, _: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn update_config(&self, config: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        Ok(config)
    }

    fn update_model_config(&self, config: &mut Value) -> Result<()> {
        let has_count = |it: &Value| COUNT_KEYS.iter().any(|key| it.get(*key).is_some());
        let section = match config.get("text_config") {
            Some(text) if !has_count(config) && has_count(text) => config.get_mut("text_config"),
            _ => Some(config),
        };
        let map = section.and_then(Value::as_object_mut);
        let map = map.ok_or_else(|| invalid("config.json", "no object", "an object"))?;
        let Some(key) = COUNT_KEYS.iter().find(|key| map.contains_key(**key)) else {
            return Err(invalid("config.json", "no number of experts", COUNT_KEYS.join(", ")));
        };
        let top_k = TOP_K_KEYS.iter().find_map(|key| map.get(*key)).and_then(Value::as_u64).unwrap_or(1);
        if (self.n_kept as u64) < top_k {
            return Err(invalid(
                "sparsity",
                format!("{} experts kept", self.n_kept),
                format!("{top_k} or more, as a token takes so many"),
            ));
        }
        map.insert((*key).to_owned(), self.n_kept.into());
        Ok(())
    }
}

/// Entries of the first dimension.
fn select(tensor: &Array, kept: &[usize]) -> Array {
    let n_bytes = tensor.data.len() / tensor.shape[0];
    let data = kept.iter().flat_map(|it| &tensor.data[it * n_bytes..(it + 1) * n_bytes]).copied().collect();
    let mut shape = tensor.shape.clone();
    shape[0] = kept.len();
    Array { dtype: tensor.dtype, shape, data }
}
