//! Observers and modifiers.
