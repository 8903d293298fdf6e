//! retie-data
