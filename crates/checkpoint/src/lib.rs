//! A Hugging Face model directory on disk: distrustful reader, atomic resumable writer.
