//! The modules of a model as recipes see them, from headers and config alone.

use std::{collections::HashMap, sync::Arc};

use checkpoint::Source;
use compressed_tensors::DType;
use indexmap::IndexMap;
use lifecycle::{MemoryModel, ModuleFacts, model::ParameterFacts};
use models::{BoxedError, Model, ModelOptions, Tied, Weights};

use crate::{catalog::Catalog, error::Result, source::open_source};

/// The modules of `model`, and a warning where their classes are guessed.
///
/// # Errors
/// Faults of the checkpoint.
pub(super) fn model_facts(model: &str) -> Result<(MemoryModel, Option<String>)> {
    let source = open_source(model)?;
    let catalog = Catalog::of(&source)?;
    let config = source.config()?.clone();
    let guessed = by_names(&source, &catalog, root_class(&config));
    let built = Model::build(
        &config,
        Arc::new(Headers { source, catalog }),
        ModelOptions { dtype: None, tied: Tied::Separate },
    );
    Ok(match built {
        Ok(model) => (MemoryModel::from_facts(of_model(&model)), None),
        Err(error) => {
            let warning = format!("classes of modules are guessed from names and shapes, because {error}");
            (MemoryModel::from_facts(guessed), Some(warning))
        }
    })
}

/// Weights of which shapes are known and values are never asked for.
struct Headers {
    source: Source,
    catalog: Catalog,
}

impl Weights for Headers {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        match name.strip_suffix(".weight").and_then(|it| self.catalog.get(it)) {
            Some(it) => Some((it.matrix.dtype, vec![it.matrix.rows, it.matrix.cols])),
            None => self.source.get(name).map(|it| (it.dtype, it.shape.clone())),
        }
    }

    fn read_into(&self, _name: &str, _offset_bytes: u64, _out: &mut [u8]) -> Result<(), BoxedError> {
        Err("a check reads headers only".into())
    }
}

fn root_class(config: &serde_json::Value) -> Option<String> {
    config.get("architectures")?.get(0)?.as_str().map(str::to_owned)
}

/// The modules of an architecture that is known.
fn of_model(model: &Model) -> Vec<ModuleFacts> {
    let tree = model.tree();
    let facts = |id| {
        let name = tree.path(id).to_owned();
        let parameters = model.own_parameters(id).iter().map(|parameter| {
            let info = model.store().info(*parameter);
            let local = info.name.rsplit_once('.').map_or(info.name.as_str(), |it| it.1);
            (local.to_owned(), ParameterFacts { dtype: model.store().dtype(), shape: info.shape.clone() })
        });
        let parameters: IndexMap<_, _> = parameters.collect();
        let classes = model.classes(id).into_iter().map(str::to_owned).collect();
        ModuleFacts { name, aliases: model.other_names(id), classes, parameters, ..ModuleFacts::default() }
    };
    tree.ids().map(facts).collect()
}

/// The modules that the names of tensors imply, with the classes that their shapes suggest.
fn by_names(source: &Source, catalog: &Catalog, root_class: Option<String>) -> Vec<ModuleFacts> {
    let mut facts = Facts::default();
    facts.entry("").classes.extend(root_class);
    for module in &catalog.modules {
        let class = if module.name.contains("embed") { "Embedding" } else { "Linear" };
        let weight = ParameterFacts { dtype: module.matrix.dtype, shape: vec![module.matrix.rows, module.matrix.cols] };
        let entry = facts.entry(&module.name);
        entry.classes.push(class.to_owned());
        entry.parameters.insert("weight".to_owned(), weight);
    }
    for tensor in source.tensors().filter(|it| catalog.modules_of(&it.name).is_empty()) {
        let (module, local) = tensor.name.rsplit_once('.').unwrap_or(("", &tensor.name));
        let parameter = ParameterFacts { dtype: tensor.dtype, shape: tensor.shape.clone() };
        facts.entry(module).parameters.insert(local.to_owned(), parameter);
    }
    facts.modules
}

#[derive(Default)]
struct Facts {
    modules: Vec<ModuleFacts>,
    by_name: HashMap<String, usize>,
}

impl Facts {
    /// The module of that name, added behind those around it where it is new.
    fn entry(&mut self, name: &str) -> &mut ModuleFacts {
        let ends = name.match_indices('.').map(|it| it.0).chain([name.len()]);
        let mut idx = 0;
        for end in ends {
            let path = &name[..end];
            idx = match self.by_name.get(path) {
                Some(idx) => *idx,
                None => {
                    self.by_name.insert(path.to_owned(), self.modules.len());
                    self.modules.push(ModuleFacts { name: path.to_owned(), ..ModuleFacts::default() });
                    self.modules.len() - 1
                }
            };
        }
        &mut self.modules[idx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_around_a_named_one_come_before_it_and_once() {
        let mut facts = Facts::default();
        facts.entry("");
        facts.entry("model.layers.0.q").classes.push("Linear".to_owned());
        facts.entry("model.layers.1.q");
        assert_eq!(facts.entry("model.layers.0.q").classes, ["Linear"]);
        let names: Vec<&str> = facts.modules.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(
            names,
            ["", "model", "model.layers", "model.layers.0", "model.layers.0.q", "model.layers.1", "model.layers.1.q"]
        );
    }

    #[test]
    fn the_embedded_model_has_the_classes_of_its_architecture() {
        let fixture = testkit::fixture("tiny-llama");
        let (model, warning) = model_facts(fixture.to_str().unwrap()).unwrap();
        assert_eq!(warning, None);
        let facts = |name: &str| lifecycle::ModuleStore::module(&model, name).unwrap().clone();
        assert_eq!(facts("").classes, ["LlamaForCausalLM"]);
        let q = facts("model.layers.0.self_attn.q_proj");
        assert_eq!((q.classes, q.parameters["weight"].shape.len()), (vec!["Linear".to_owned()], 2));
        assert_eq!(facts("model.layers.0").classes, ["LlamaDecoderLayer"]);

        let source = open_source(fixture.to_str().unwrap()).unwrap();
        let catalog = Catalog::of(&source).unwrap();
        let guessed = by_names(&source, &catalog, Some("LlamaForCausalLM".to_owned()));
        let known: Vec<&ModuleFacts> = guessed.iter().filter(|it| !it.parameters.is_empty()).collect();
        assert!(known.len() > 28);
        for guess in known {
            let facts = facts(&guess.name);
            assert_eq!(guess.parameters, facts.parameters, "{}", guess.name);
            if guess.parameters["weight"].shape.len() == 2 {
                assert_eq!(guess.classes, facts.classes, "{}", guess.name);
            }
        }
    }
}
