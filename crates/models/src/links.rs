//! Which modules feed which, as data: for smoothing, AWQ, rotations, fused scales and plans.

use graph::ModuleId;

/// How channels of a producer's output lie in its consumers' input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelMap {
    /// One to one.
    Same,
    /// Heads of `head_dim` channels, each read by `repeat` heads of the consumer one after the other (v to o).
    RepeatedHeads {
        /// D.
        head_dim: usize,
        /// H / K.
        repeat: usize,
    },
}

/// A producer whose output channels can be scaled if all its consumers' input channels are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The norm or linear layer that gives the channels.
    pub producer: ModuleId,
    /// Every module with a weight that takes them.
    pub consumers: Vec<ModuleId>,
    /// How channels correspond.
    pub channels: ChannelMap,
}

/// Linear layers that an inference engine runs as one, and which therefore share scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// Name of the one layer (`qkv_proj`).
    pub name: &'static str,
    /// Its parts, in order.
    pub parts: Vec<ModuleId>,
}

/// What an architecture says of its data flow; a test compares it with a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Links {
    /// Scalable producers with all their consumers, in running order.
    pub links: Vec<Link>,
    /// Layers that engines fuse.
    pub fused: Vec<Fused>,
    /// Norms whose weight is stored as its distance from this (1 for Gemma's `1 + w`).
    pub norm_offsets: Vec<(ModuleId, f32)>,
    /// Modules that add to the residual stream: the embedding, then the last layer or norm of each branch.
    pub residual_writers: Vec<ModuleId>,
    /// Modules that read the residual stream: norms, or linear layers where there is no norm between.
    pub residual_readers: Vec<ModuleId>,
    /// Per layer with routed experts: the container, and for each expert its linear layers in running order.
    pub experts: Vec<(ModuleId, Vec<Vec<ModuleId>>)>,
}
