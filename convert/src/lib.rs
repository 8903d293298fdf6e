//! retie-convert
