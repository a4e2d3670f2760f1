//! The real program on a node of its own. Needs root.

mod fixture;
mod lifecycle;
mod streams;
