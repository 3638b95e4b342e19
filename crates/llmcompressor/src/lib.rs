//! Compress Hugging Face checkpoints for serving: quantization, pruning, transforms.
