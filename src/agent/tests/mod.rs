//! Real terminals.
