//! Safetensors folders.
