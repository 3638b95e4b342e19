//! What a pipeline asks of whoever keeps finished modules.

use lifecycle::CompressionLifecycle;
use serde_json::Value;

use crate::{Error, Wave};

/// What a modifier reports of a wave.
#[derive(Clone, Debug, PartialEq)]
pub struct ModifierData {
    /// Its type.
    pub type_name: String,
    /// What it says.
    pub data: Value,
}

/// Takes modules over that no modifier will change any more.
pub trait Committer {
    /// How it fails.
    type Error: From<Error>;

    /// The turn of one modifier begins, which runs alone over the whole model; what it changes and a later one will change again
    /// is not final at the end of its waves.
    ///
    /// # Errors
    /// What keeps it from beginning.
    fn turn(&mut self, _modifier: usize, _lifecycle: &CompressionLifecycle) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether there is something of the wave to change or to commit.
    fn concerns(&self, wave: &Wave) -> bool;

    /// Whether all of it was committed by an earlier run.
    fn is_done(&self, wave: &Wave) -> bool;

    /// Puts what later waves saw of a committed wave in the model's place, and gives the snapshot of the lifecycle behind it.
    ///
    /// # Errors
    /// A read that fails.
    fn replay(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<Option<Value>, Self::Error>;

    /// Commits the modules of a wave, and puts what later waves see of them in the model's place.
    ///
    /// # Errors
    /// A module that cannot be stored, a write that fails.
    fn commit(
        &mut self,
        wave: &Wave,
        lifecycle: &mut CompressionLifecycle,
        data: Vec<ModifierData>,
    ) -> Result<(), Self::Error>;

    /// The wave has run: its parameters are not needed any more.
    ///
    /// # Errors
    /// A store of another kind.
    fn release(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<(), Self::Error>;

    /// Called before every batch: the place to stop.
    ///
    /// # Errors
    /// A request to stop.
    fn check(&self) -> Result<(), Self::Error>;
}
