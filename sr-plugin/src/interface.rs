//! The interfaces: each method's name, help and parameters, and what does it.

pub mod plugin;
pub mod sr;
pub mod volume;

use crate::method::{Kind, Method, Parameter};

/// All methods.
pub fn methods() -> impl Iterator<Item = &'static Method> {
    plugin::METHODS.iter().chain(sr::METHODS).chain(volume::METHODS)
}

/// Finds a method by the name that an executable has, in whatever case.
pub fn method(name: &str) -> Option<&'static Method> {
    methods().find(|method| method.name.eq_ignore_ascii_case(name))
}

const fn text(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Text, about }
}

const fn integer(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Integer, about }
}

const SR: Parameter = text("sr", "The repository, as SR.attach named it");
const KEY: Parameter = text("key", "The volume");
const CONFIGURATION: Parameter =
    Parameter { name: "configuration", kind: Kind::Configuration, about: "Device configuration; see Plugin.Query" };
