//! Tests of the public interface; one file per kind.

mod model;
