//! What a computation needs beside its inputs.

use crate::{Budget, Profile};

/// Which rows a router hands to experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Routing {
    /// Those it chose.
    #[default]
    Chosen,
    /// Every row to every expert, so that calibration sees all; the result stays that of the chosen.
    All,
}

/// Memory, instruction set and mode of a computation; threads are those of the current rayon pool.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Where buffers come from.
    pub budget: Budget,
    /// Which instruction set computes.
    pub profile: Profile,
    /// Which rows experts see.
    pub routing: Routing,
    /// Position of the first token that is given: as many before it were given earlier, and are seen through a cache.
    pub first_position: usize,
}

impl Engine {
    /// An engine on this processor's best profile.
    pub fn new(budget: Budget) -> Self {
        Self { budget, profile: Profile::detect(), routing: Routing::Chosen, first_position: 0 }
    }

    /// The same engine without block floating point.
    #[must_use]
    pub fn exact(self) -> Self {
        Self { profile: self.profile.exact(), ..self }
    }

    /// The same engine with another routing.
    #[must_use]
    pub fn with_routing(&self, routing: Routing) -> Self {
        Self { routing, ..self.clone() }
    }

    /// The same engine for tokens of which the first has this position.
    #[must_use]
    pub fn at_position(&self, first_position: usize) -> Self {
        Self { first_position, ..self.clone() }
    }
}
