//! retie-model
