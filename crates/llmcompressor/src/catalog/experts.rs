//! Tensors that hold all experts of a layer.

use std::collections::HashMap;

use checkpoint::{Source, TensorEntry};
use compressed_tensors::experts::{ExpertLayout, ExpertPart, split_fused_experts};
use serde_json::Value;

use crate::error::{InContext, Result};

/// Names that some architectures use on disk, and the ones that their experts get.
const ALIASES: &[(&str, &str)] = &[
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
];

/// How the experts of each layer lie.
pub(super) struct Layouts {
    model_type: String,
    /// Shape of the down projection by the name that the layer's tensors share.
    shapes: HashMap<String, [Option<Vec<usize>>; 2]>,
}

impl Layouts {
    pub(super) fn of(source: &Source) -> Self {
        let mut shapes: HashMap<String, [Option<Vec<usize>>; 2]> = HashMap::new();
        for entry in source.tensors().filter(|it| it.shape.len() == 3) {
            let name = canonical(&entry.name);
            for (slot, part) in ["gate_up_proj", "down_proj"].into_iter().enumerate() {
                if let Some(prefix) = prefix_of(&name, part) {
                    shapes.entry(prefix.to_owned()).or_default()[slot] = Some(entry.shape.clone());
                }
            }
        }
        Self { model_type: model_type(source.config().ok()), shapes }
    }

    /// The experts' parts where `entry` is a fused tensor.
    pub(super) fn split(&self, entry: &TensorEntry) -> Result<Option<Vec<ExpertPart>>> {
        let name = canonical(&entry.name);
        let prefix = ["gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias"]
            .iter()
            .find_map(|part| prefix_of(&name, part));
        let Some(prefix) = prefix else { return Ok(None) };
        let layout = match self.shapes.get(prefix) {
            Some([Some(gate_up), Some(down)]) => {
                ExpertLayout::infer(&self.model_type, gate_up, down).context(&entry.name)?
            }
            // A bias without weights, or one of the two: nothing contradicts what the model type says.
            Some(_) => ExpertLayout::of_model_type(&self.model_type),
            None => return Ok(None),
        };
        split_fused_experts(&name, entry.dtype, &entry.shape, layout).context(&entry.name)
    }
}

/// The innermost model type: of the text model where several are nested.
fn model_type(config: Option<&Value>) -> String {
    let of = |value: &Value| value.get("model_type").and_then(Value::as_str).map(str::to_owned);
    config.and_then(|it| it.get("text_config").and_then(of).or_else(|| of(it))).unwrap_or_default()
}

fn canonical(name: &str) -> String {
    for (on_disk, canonical) in ALIASES {
        if let Some(prefix) = name.strip_suffix(on_disk) {
            return format!("{prefix}{canonical}");
        }
    }
    name.to_owned()
}

fn prefix_of<'n>(name: &'n str, part: &str) -> Option<&'n str> {
    name.strip_suffix(".weight").unwrap_or(name).strip_suffix(part)?.strip_suffix('.')
}
