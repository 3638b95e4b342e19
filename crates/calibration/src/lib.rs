//! Calibration data: sources, chat templates, tokens, batches, intermediates cache.
