//! The end of a wave: modifiers change its modules, one after the other.

use lifecycle::{CompressionLifecycle, Signal};

use crate::{ModifierData, Wave, error::Result};

/// Lets these modifiers change a wave, in order; gives what they say of it.
///
/// # Errors
/// What a modifier refuses.
pub(crate) fn change(
    lifecycle: &mut CompressionLifecycle,
    modifiers: &[usize],
    wave: &Wave,
) -> Result<Vec<ModifierData>> {
    let outer = lifecycle.focus();
    let mut data = Vec::new();
    for &idx in modifiers {
        lifecycle.set_focus(Some(idx));
        let said = lifecycle.signal(Signal::SequentialEpochEnd { modules: wave.modules.clone() });
        lifecycle.set_focus(outer);
        let type_name = lifecycle.modifiers()[idx].modifier().type_name().to_owned();
        let named = |data| ModifierData { type_name: type_name.clone(), data };
        data.extend(said?.into_iter().map(named));
    }
    Ok(data)
}
