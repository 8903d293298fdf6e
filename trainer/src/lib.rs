//! retie-trainer
