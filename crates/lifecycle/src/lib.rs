//! Events, state, modifier contract, lifecycle, session, recipes and metrics.
