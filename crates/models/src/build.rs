//! Builds a model's tree: modules under their names, parameters under theirs.

use compressed_tensors::experts::ExpertLayout;
use graph::{ModuleId, ModuleTree};
use tensor::DType;

use crate::context::Layer;
use crate::error::Result;
use crate::layers::Linear;
use crate::links::{ChannelMap, Fused, Link, Links};
use crate::store::{ParameterId, Stack, Wanted};

/// A model under construction; modules are added in the order in which Hugging Face lists them.
pub struct Builder {
    pub(crate) tree: ModuleTree,
    pub(crate) layers: Vec<Option<Box<dyn Layer>>>,
    pub(crate) parameters: Vec<Wanted>,
    pub(crate) owned: Vec<Vec<ParameterId>>,
    pub(crate) links: Links,
    /// The head whose weight is that of an embedding, and that weight.
    tied: Option<(ModuleId, ParameterId)>,
    at: ModuleId,
}

impl Builder {
    /// A model of class `class`.
    pub fn new(class: &'static str) -> Self {
        let tree = ModuleTree::new(class);
        let at = tree.root();
        Self {
            tree,
            layers: vec![None],
            parameters: Vec::new(),
            owned: vec![Vec::new()],
            links: Links::default(),
            tied: None,
            at,
        }
    }

    /// The root's layer, built by `build`.
    ///
    /// # Errors
    /// What `build` finds.
    pub fn root<L: Layer + 'static>(&mut self, build: impl FnOnce(&mut Self) -> Result<L>) -> Result<()> {
        let layer = build(self)?;
        self.layers[self.tree.root().index()] = Some(Box::new(layer));
        Ok(())
    }

    /// A module `name` of class `class` under the current one; `build` adds what it holds.
    ///
    /// # Errors
    /// A name that exists already, and what `build` finds.
    pub fn module<L: Layer + 'static>(
        &mut self,
        name: &str,
        class: &'static str,
        build: impl FnOnce(&mut Self) -> Result<L>,
    ) -> Result<ModuleId> {
        let (id, layer) = self.inside(name, class, build)?;
        self.layers[id.index()] = Some(Box::new(layer));
        Ok(id)
    }

    /// A module that only holds others, and what `build` gives.
    ///
    /// # Errors
    /// As [`Builder::module`].
    pub fn holder<T>(
        &mut self,
        name: &str,
        class: &'static str,
        build: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(ModuleId, T)> {
        self.inside(name, class, build)
    }

    fn inside<T>(
        &mut self,
        name: &str,
        class: &'static str,
        build: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(ModuleId, T)> {
        let id = self.tree.add(self.at, name, class)?;
        self.layers.push(None);
        self.owned.push(Vec::new());
        let outer = std::mem::replace(&mut self.at, id);
        let built = build(self);
        self.at = outer;
        Ok((id, built?))
    }

    /// A list `layers` of `n` modules, each built by `build` under its number.
    ///
    /// # Errors
    /// As [`Builder::module`].
    pub fn list<T>(
        &mut self,
        name: &str,
        n: usize,
        mut build: impl FnMut(&mut Self, usize, &str) -> Result<T>,
    ) -> Result<(ModuleId, Vec<T>)> {
        self.inside(name, "ModuleList", |b| (0..n).map(|idx| build(b, idx, &idx.to_string())).collect())
    }

    /// A parameter of the current module.
    pub fn parameter(&mut self, name: &str, shape: &[usize]) -> ParameterId {
        let path = self.path();
        let name = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let id = ParameterId(self.parameters.len());
        self.parameters.push(Wanted {
            path: name.clone(),
            written: name.clone(),
            shape: shape.to_vec(),
            names: vec![name],
            stack: None,
            dtype: None,
        });
        self.owned[self.at.index()].push(id);
        id
    }

    /// A parameter that is computed with in F32 whatever the model's type.
    pub(crate) fn single(&mut self, name: &str, shape: &[usize]) -> ParameterId {
        let id = self.parameter(name, shape);
        self.parameters[id.0].dtype = Some(DType::F32);
        id
    }

    /// Says which tensor may hold a parameter beside others.
    pub(crate) fn stacked(&mut self, id: ParameterId, tensor: String, canonical: String, layout: ExpertLayout) {
        let parameter = &mut self.parameters[id.0];
        parameter.stack = Some(Stack { tensor, canonical, part: parameter.written.clone(), layout });
    }

    /// Says under which name each parameter is written and first looked for, where `name_of` knows another than the model's.
    pub(crate) fn rename(&mut self, name_of: impl Fn(&str) -> Option<String>) {
        for parameter in &mut self.parameters {
            let Some(name) = name_of(&parameter.written) else { continue };
            parameter.names = vec![name.clone()];
            parameter.written = name;
        }
    }

    /// Adds a name under which each parameter may be on disk.
    pub(crate) fn alias(&mut self, name_of: impl Fn(&str) -> Option<String>) {
        for parameter in &mut self.parameters {
            parameter.names.extend(name_of(&parameter.written));
        }
    }

    /// The path of the current module.
    pub(crate) fn path(&self) -> &str {
        self.tree.path(self.at)
    }

    /// A linear layer of `[rows, columns]`.
    ///
    /// # Errors
    /// As [`Builder::module`].
    pub fn linear(&mut self, name: &str, [rows, columns]: [usize; 2], bias: Bias) -> Result<ModuleId> {
        self.linear_parts(name, [rows, columns], bias).map(|(id, _)| id)
    }

    /// As [`Builder::linear`], with the parameters it has.
    pub(crate) fn linear_parts(&mut self, name: &str, shape: [usize; 2], bias: Bias) -> Result<(ModuleId, Linear)> {
        self.linear_of(name, "Linear", shape, bias)
    }

    /// As [`Builder::linear_parts`], under a class of its own.
    pub(crate) fn linear_of(
        &mut self,
        name: &str,
        class: &'static str,
        shape: [usize; 2],
        bias: Bias,
    ) -> Result<(ModuleId, Linear)> {
        let (id, linear) = self.inside(name, class, |b| {
            let weight = b.parameter("weight", &shape);
            Ok(Linear { weight, bias: (bias == Bias::Given).then(|| b.parameter("bias", &shape[..1])) })
        })?;
        self.layers[id.index()] = Some(Box::new(linear.clone()));
        Ok((id, linear))
    }

    /// A linear layer without parameters of its own, whose weight is that of another module.
    ///
    /// # Errors
    /// As [`Builder::module`].
    pub fn tied_linear(&mut self, name: &str, weight: ParameterId) -> Result<ModuleId> {
        let id = self.module(name, "Linear", |_| Ok(Linear { weight, bias: None }))?;
        self.tied = Some((id, weight));
        Ok(id)
    }

    /// Gives a tied head a weight of its own, which is read from where the embedding's is.
    pub(crate) fn separate(&mut self) -> Option<Separated> {
        let (head, embedding) = self.tied.take()?;
        let written = format!("{}.weight", self.tree.path(head));
        let weight = ParameterId(self.parameters.len());
        self.parameters.push(Wanted { path: written.clone(), written, ..self.parameters[embedding.0].clone() });
        self.owned[head.index()].push(weight);
        self.layers[head.index()] = Some(Box::new(Linear { weight, bias: None }));
        Some(Separated { head: weight, embedding })
    }

    /// Says that `producer` feeds exactly `consumers`.
    pub fn link(&mut self, producer: ModuleId, consumers: &[ModuleId], channels: ChannelMap) {
        self.links.links.push(Link { producer, consumers: consumers.to_vec(), channels });
    }

    /// Says that engines run `parts` as one layer.
    pub fn fused(&mut self, name: &'static str, parts: &[ModuleId]) {
        self.links.fused.push(Fused { name, parts: parts.to_vec() });
    }

    /// What is known of the data flow so far.
    pub fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// Two weights that are one in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Separated {
    /// The output head's.
    pub head: ParameterId,
    /// The input embedding's.
    pub embedding: ParameterId,
}

/// Whether a linear layer has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It has.
    Given,
    /// It has not.
    Absent,
}

impl Bias {
    /// By a config's flag.
    pub(crate) fn from_flag(is_given: bool) -> Self {
        if is_given { Self::Given } else { Self::Absent }
    }
}
