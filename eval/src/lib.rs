//! retie-eval
