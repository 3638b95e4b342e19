//! What a layer sees while it runs or is traced.

use std::collections::{BTreeSet, HashMap};

use graph::{Host, MarkKind, ModuleId, SequentialTracer, Timing, Value};
use tensor::{Engine, Op, Spec, Tensor, expert_rows, grouped_linear, indices};

use crate::Model;
use crate::error::{Error, ErrorKind, Result};
use crate::hooks::{Hooks, Tap};
use crate::layers::Linear;
use crate::store::ParameterId;

/// What a module computes, over values that are computed or traced.
pub trait Layer: Send + Sync {
    /// The module's results for `inputs`.
    ///
    /// # Errors
    /// Whatever an operation or a module refuses.
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>>;

    /// Whether it is cheap enough to run again with its consumer.
    fn timing(&self) -> Timing {
        Timing::Early
    }

    /// Its parameters, if it is a linear layer.
    fn as_linear(&self) -> Option<&Linear> {
        None
    }

    /// Its body and head, if it is a causal language model.
    fn as_causal(&self) -> Option<Causal> {
        None
    }
}

/// The parts of a causal language model.
#[derive(Clone, Debug, PartialEq)]
pub struct Causal {
    /// The module that gives hidden states.
    pub body: ModuleId,
    /// The linear layer that makes them logits.
    pub head: ModuleId,
    /// What is done to the logits, one after the other.
    pub after_head: Vec<Op>,
}

/// With what a model runs.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// Memory, instruction set, routing.
    pub engine: &'a Engine,
    /// Hooks that are heard; none for a run that nobody hears.
    pub hooks: Option<&'a Hooks>,
}

/// A run or a trace of a model, as its layers see it.
pub struct Cx<'a> {
    model: &'a Model,
    mode: Mode<'a>,
    scope: Option<ModuleId>,
}

enum Mode<'a> {
    Compute(Run<'a>),
    Trace(&'a mut SequentialTracer),
}

/// A group of linear layers that run as one, each on its own rows.
#[derive(Clone, Debug)]
pub struct Group {
    modules: Vec<ModuleId>,
    linears: Vec<Linear>,
}

impl Group {
    pub(crate) fn new(members: Vec<(ModuleId, Linear)>) -> Self {
        let (modules, linears) = members.into_iter().unzip();
        Self { modules, linears }
    }

    /// Its modules, in order.
    pub fn modules(&self) -> &[ModuleId] {
        &self.modules
    }
}

impl<'a> Cx<'a> {
    pub(crate) fn compute(model: &'a Model, run: Run<'a>) -> Self {
        Self { model, mode: Mode::Compute(run), scope: None }
    }

    pub(crate) fn trace(model: &'a Model, tracer: &'a mut SequentialTracer) -> Self {
        Self { model, mode: Mode::Trace(tracer), scope: None }
    }

    /// Calls a module that gives one value.
    ///
    /// # Errors
    /// What the module refuses, placed at the innermost module.
    pub fn call<const N: usize>(&mut self, module: ModuleId, inputs: [Value; N]) -> Result<Value> {
        let mut values = self.call_all(module, Vec::from(inputs))?;
        match (values.pop(), values.len()) {
            (Some(value), 0) => Ok(value),
            (_, others) => {
                Err(Error::from(ErrorKind::Arity { found: others, expected: "1" }).at(self.model.tree().path(module)))
            }
        }
    }

    /// Calls a module.
    ///
    /// # Errors
    /// What the module refuses, placed at the innermost module.
    pub fn call_all(&mut self, module: ModuleId, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let model = self.model;
        self.call_placed(module, inputs).map_err(|error| error.at(model.tree().path(module)))
    }

    fn call_placed(&mut self, module: ModuleId, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let layer = self.model.layer(module)?;
        let outer = self.scope.replace(module);
        let outputs = match &mut self.mode {
            Mode::Compute(run) => {
                let run = *run;
                let inputs = hear_values(self.model, run, module, Tap::Input, inputs)?;
                let outputs = match instead(run, module, &inputs)? {
                    Some(output) => vec![output],
                    None => layer.forward(self, inputs)?,
                };
                hear_values(self.model, run, module, Tap::Output, outputs)?
            }
            Mode::Trace(tracer) if tracer.is_inside_leaf() => layer.forward(self, inputs)?,
            Mode::Trace(tracer) if tracer.is_leaf(module) => {
                tracer.enter_leaf();
                let outputs = layer.forward(self, inputs.clone());
                let Mode::Trace(tracer) = &mut self.mode else { return Err(ErrorKind::NotCallable.into()) };
                tracer.leave_leaf();
                let specs = outputs?.iter().map(Value::spec).collect();
                tracer.module(self.model.tree(), &[module], &inputs, specs, layer.timing())?
            }
            Mode::Trace(tracer) => {
                tracer.enter(module, &inputs)?;
                let outputs = layer.forward(self, inputs)?;
                let Mode::Trace(tracer) = &mut self.mode else { return Err(ErrorKind::NotCallable.into()) };
                tracer.exit(&outputs)?;
                outputs
            }
        };
        self.scope = outer;
        Ok(outputs)
    }

    /// Computes an operation that gives one value.
    ///
    /// # Errors
    /// What the operation refuses.
    pub fn apply<const N: usize>(&mut self, op: Op, inputs: [Value; N]) -> Result<Value> {
        let mut values = self.apply_all(op, Vec::from(inputs))?;
        match (values.pop(), values.len()) {
            (Some(value), 0) => Ok(value),
            (_, others) => Err(ErrorKind::Arity { found: others, expected: "1" }.into()),
        }
    }

    /// Computes an operation.
    ///
    /// # Errors
    /// What the operation refuses.
    pub fn apply_all(&mut self, op: Op, inputs: Vec<Value>) -> Result<Vec<Value>> {
        match &mut self.mode {
            Mode::Compute(run) => {
                let inputs = inputs.into_iter().map(Value::into_tensor).collect::<graph::Result<_>>()?;
                let outputs = compute(*run, &op, self.scope, inputs)?;
                Ok(outputs.into_iter().map(Value::from).collect())
            }
            Mode::Trace(tracer) => Ok(tracer.function(op, &inputs)?),
        }
    }

    /// A parameter of the current module.
    ///
    /// # Errors
    /// Those of [`Store::get`](crate::Store::get).
    pub fn parameter(&mut self, id: ParameterId) -> Result<Value> {
        let store = self.model.store();
        match &mut self.mode {
            Mode::Compute(run) => store.get(run.engine, id).map(Value::from),
            Mode::Trace(tracer) => {
                let info = store.info(id);
                let spec = Spec::new(info.dtype, info.shape.iter().map(|&n| n.into()).collect());
                Ok(tracer.parameter(&info.name, spec)?)
            }
        }
    }

    /// `x @ w^T (+ bias)` of a run whose store keeps the weight laid out; none in a trace and elsewhere.
    ///
    /// # Errors
    /// Those of [`Store::get`](crate::Store::get), and shapes that do not agree.
    pub fn product(&mut self, x: &Value, linear: &Linear) -> Result<Option<Value>> {
        let (Mode::Compute(run), Value::Computed(x)) = (&self.mode, x) else { return Ok(None) };
        let store = self.model.store();
        let Some(weight) = store.laid_out(run.engine, linear.weight, x.dtype())? else { return Ok(None) };
        let bias = linear.bias.map(|bias| store.get(run.engine, bias)).transpose()?;
        let y = weight.linear(run.engine, x, (0, weight.rows()), bias.as_ref());
        Ok(Some(y.map_err(Error::from)?.into()))
    }

    /// Rows of a table by id: ids (...) -> (..., C); a table that is not in memory is read row by row.
    ///
    /// # Errors
    /// [`tensor::ErrorKind::Index`] for an id beyond the table, and those of [`Store::get`](crate::Store::get).
    pub fn embed(&mut self, table: ParameterId, ids: Value) -> Result<Value> {
        let store = self.model.store();
        if let (Mode::Compute(run), Value::Computed(given), None) = (&self.mode, &ids, store.in_memory(table)) {
            let numbers = indices(given, store.info(table).shape[0])?;
            let unique: BTreeSet<u32> = numbers.iter().copied().collect();
            let rows = store.gather(run.engine, table, &unique)?;
            let place_of: HashMap<u32, u32> = unique.into_iter().zip(0..).collect();
            let places = numbers.iter().map(|id| place_of[id]).collect();
            let places = run.engine.budget.tensor::<u32>(places, given.shape())?;
            return self.apply(Op::Embedding, [places.into(), rows.into()]);
        }
        let table = self.parameter(table)?;
        self.apply(Op::Embedding, [ids, table])
    }

    /// Calls each linear layer of a group on its rows: rows (R, C), offsets (E + 1) -> (R, O).
    ///
    /// # Errors
    /// What a linear layer refuses, placed at the first of them.
    pub fn call_group(&mut self, group: &Group, rows: Value, offsets: Value) -> Result<Value> {
        let model = self.model;
        self.group_placed(group, rows, offsets)
            .map_err(|error| error.at(group.modules.first().map_or("", |&module| model.tree().path(module))))
    }

    fn group_placed(&mut self, group: &Group, rows: Value, offsets: Value) -> Result<Value> {
        if let Mode::Compute(run) = &self.mode {
            let (rows, offsets) = (rows.into_tensor()?, offsets.into_tensor()?);
            return compute_group(self.model, *run, group, &rows, &offsets).map(Value::from);
        }
        let mut inputs = vec![rows.clone(), offsets.clone()];
        let Mode::Trace(tracer) = &mut self.mode else { return Err(ErrorKind::NotCallable.into()) };
        let is_leaf = group.modules.iter().all(|&module| tracer.is_leaf(module)) && !tracer.is_inside_leaf();
        if is_leaf {
            tracer.enter_leaf();
        }
        for linear in &group.linears {
            inputs.push(self.parameter(linear.weight)?);
        }
        for bias in group.linears.iter().filter_map(|linear| linear.bias) {
            inputs.push(self.parameter(bias)?);
        }
        let op = Op::GroupedLinear { experts: group.modules.len() };
        let Mode::Trace(tracer) = &mut self.mode else { return Err(ErrorKind::NotCallable.into()) };
        let mut outputs = tracer.function(op, &inputs)?;
        if is_leaf {
            tracer.leave_leaf();
            let specs = outputs.iter().map(Value::spec).collect();
            outputs = tracer.module(self.model.tree(), &group.modules, &[rows, offsets], specs, Timing::Early)?;
        }
        outputs.pop().ok_or_else(|| ErrorKind::Arity { found: 0, expected: "1" }.into())
    }
}

/// An operation, with what is heard of attention.
fn compute(run: Run<'_>, op: &Op, scope: Option<ModuleId>, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
    if let (Op::Attention(_), Some(hooks), Some(module)) = (op, run.hooks, scope) {
        for (idx, tap) in [Tap::Query, Tap::Key, Tap::Value].into_iter().enumerate() {
            if hooks.has(module, tap) {
                let mut value = [Some(inputs[idx].clone())];
                hooks.hear(module, tap, &mut value)?;
                let [heard] = value;
                inputs[idx] = heard.unwrap_or_else(|| inputs[idx].clone());
            }
        }
    }
    Ok(op.forward(run.engine, inputs)?)
}

/// Lets hooks hear tensors and gives what they make of them.
pub(crate) fn hear(
    model: &Model,
    run: Run<'_>,
    module: ModuleId,
    tap: Tap,
    tensors: Vec<Tensor>,
) -> Result<Vec<Tensor>> {
    let Some(hooks) = run.hooks.filter(|hooks| hooks.has(module, tap)) else { return Ok(tensors) };
    let mut values: Vec<_> = tensors.into_iter().map(Some).collect();
    let is_replaced = hooks.hear(module, tap, &mut values)?;
    if is_replaced && model.tree().children(module).next().is_some() {
        return Err(ErrorKind::Replacement.into());
    }
    Ok(values.into_iter().flatten().collect())
}

/// What a hook gives in the place of a module's own output.
fn instead(run: Run<'_>, module: ModuleId, inputs: &[Value]) -> Result<Option<Value>> {
    let Some(hooks) = run.hooks.filter(|hooks| hooks.has(module, Tap::Instead)) else { return Ok(None) };
    let tensors = inputs.iter().cloned().map(Value::into_tensor).collect::<graph::Result<Vec<_>>>()?;
    let mut values: Vec<_> = tensors.into_iter().map(Some).collect();
    let is_replaced = hooks.hear(module, Tap::Instead, &mut values)?;
    Ok(values.into_iter().next().flatten().filter(|_| is_replaced).map(Value::from))
}

fn hear_values(model: &Model, run: Run<'_>, module: ModuleId, tap: Tap, values: Vec<Value>) -> Result<Vec<Value>> {
    if run.hooks.is_none() {
        return Ok(values);
    }
    let tensors = values.into_iter().map(Value::into_tensor).collect::<graph::Result<_>>()?;
    Ok(hear(model, run, module, tap, tensors)?.into_iter().map(Value::from).collect())
}

/// Rows of each expert as its hooks leave them; an expert without rows is not heard.
fn heard_rows(
    model: &Model,
    run: Run<'_>,
    modules: &[ModuleId],
    rows: &Tensor,
    offsets: &Tensor,
) -> Result<Vec<Tensor>> {
    let mut heard = Vec::with_capacity(modules.len());
    for (idx, &module) in modules.iter().enumerate() {
        let mut own = vec![expert_rows(rows, offsets, idx)?];
        if own[0].elements() > 0 {
            own = hear(model, run, module, Tap::Input, own)?;
        }
        heard.extend(own);
    }
    Ok(heard)
}

fn compute_group(model: &Model, run: Run<'_>, group: &Group, rows: &Tensor, offsets: &Tensor) -> Result<Tensor> {
    let inputs = heard_rows(model, run, &group.modules, rows, offsets)?;
    let store = model.store();
    let get = |id: ParameterId| store.get(run.engine, id);
    let weights = group.linears.iter().map(|linear| get(linear.weight)).collect::<Result<Vec<_>>>()?;
    let biases = group.linears.iter().filter_map(|linear| linear.bias).map(get).collect::<Result<Vec<_>>>()?;
    let out = grouped_linear(run.engine, &inputs, &weights, &biases)?;
    let Some(hooks) = run.hooks.filter(|hooks| group.modules.iter().any(|&it| hooks.has(it, Tap::Output))) else {
        return Ok(out);
    };
    let mut start = 0;
    for (&module, input) in group.modules.iter().zip(&inputs) {
        let n_rows = input.shape()[0];
        if n_rows > 0 && hooks.hear(module, Tap::Output, &mut [Some(out.slice(0, start, n_rows)?)])? {
            return Err(Error::from(ErrorKind::Replacement).at(model.tree().path(module)));
        }
        start += n_rows;
    }
    Ok(out)
}

/// Runs the nodes of a graph on a model.
pub(crate) struct Runner<'a> {
    pub(crate) model: &'a Model,
    pub(crate) run: Run<'a>,
}

impl Runner<'_> {
    fn group(&self, modules: &[ModuleId]) -> Result<Group> {
        let member = |&module: &ModuleId| self.model.linear(module).map(|linear| (module, linear.clone()));
        modules
            .iter()
            .map(member)
            .collect::<Option<Vec<_>>>()
            .map(Group::new)
            .ok_or_else(|| ErrorKind::NotCallable.into())
    }
}

impl Host for Runner<'_> {
    type Error = Error;

    fn parameter(&mut self, name: &str) -> Result<Tensor> {
        let store = self.model.store();
        let id = store.find(name).ok_or_else(|| Error::from(ErrorKind::MissingTensor).at(name))?;
        store.get(self.run.engine, id)
    }

    fn call_function(&mut self, op: &Op, scope: Option<ModuleId>, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let path = scope.map_or("", |module| self.model.tree().path(module));
        compute(self.run, op, scope, inputs).map_err(|error| error.at(path))
    }

    fn call_module(&mut self, modules: &[ModuleId], inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let is_group =
            modules.len() > 1 || inputs.len() == 2 && modules.iter().all(|&it| self.model.linear(it).is_some());
        if let ([module], false) = (modules, is_group) {
            let inputs = inputs.into_iter().map(Value::from).collect();
            let outputs = Cx::compute(self.model, self.run).call_all(*module, inputs)?;
            return Ok(outputs.into_iter().map(Value::into_tensor).collect::<graph::Result<_>>()?);
        }
        let [rows, offsets] = inputs.as_slice() else {
            return Err(ErrorKind::Arity { found: inputs.len(), expected: "rows and offsets" }.into());
        };
        compute_group(self.model, self.run, &self.group(modules)?, rows, offsets).map(|out| vec![out])
    }

    fn hear_inputs(&mut self, modules: &[ModuleId], inputs: &[Tensor]) -> Result<()> {
        let is_group =
            modules.len() > 1 || inputs.len() == 2 && modules.iter().all(|&it| self.model.linear(it).is_some());
        match (modules, inputs) {
            ([module], _) if !is_group => hear(self.model, self.run, *module, Tap::Input, inputs.to_vec()).map(drop),
            (_, [rows, offsets]) => heard_rows(self.model, self.run, modules, rows, offsets).map(drop),
            _ => Err(ErrorKind::Arity { found: inputs.len(), expected: "rows and offsets" }.into()),
        }
    }

    fn mark(&mut self, kind: MarkKind, module: ModuleId, values: &[Option<Tensor>]) -> Result<()> {
        let tap = if kind == MarkKind::Enter { Tap::Input } else { Tap::Output };
        let Some(hooks) = self.run.hooks.filter(|hooks| hooks.has(module, tap)) else { return Ok(()) };
        if hooks.hear(module, tap, &mut values.to_vec())? {
            return Err(Error::from(ErrorKind::Replacement).at(self.model.tree().path(module)));
        }
        Ok(())
    }
}
