//! The contract as a table: methods, their parameters in the order of the human form, and what they answer.

/// A type of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Integer,
    Boolean,
    /// Strings by name.
    Map,
    /// Nothing: `null`.
    Unit,
    List(&'static Type),
    Pair(&'static Type),
    Base64,
    Health,
    /// What a volume holds.
    Content,
    QueryResult,
    SrStat,
    Volume,
    ProbeResult,
    BlockList,
    ChangedBlocks,
}

/// A method.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: &'static str,
    /// Besides `dbg`, which is the first of all.
    pub(crate) parameters: &'static [(&'static str, Type)],
    pub(crate) result: Type,
}

impl Method {
    /// All parameters, `dbg` included.
    pub(crate) fn all_parameters(&self) -> impl DoubleEndedIterator<Item = (&'static str, Type)> {
        std::iter::once(("dbg", Type::Text)).chain(self.parameters.iter().copied())
    }

    pub(crate) fn has(&self, parameter: &str) -> bool {
        self.parameters.iter().any(|(name, _)| *name == parameter)
    }
}

/// Finds a method.
pub(crate) fn method(name: &str) -> &'static Method {
    METHODS.iter().find(|method| method.name == name).expect("tests call what the contract has")
}

const fn takes(name: &'static str, parameters: &'static [(&'static str, Type)], result: Type) -> Method {
    Method { name, parameters, result }
}

const SR: (&str, Type) = ("sr", Type::Text);
const KEY: (&str, Type) = ("key", Type::Text);
const KEY2: (&str, Type) = ("key2", Type::Text);
const CONFIGURATION: (&str, Type) = ("configuration", Type::Map);
const NAME: (&str, Type) = ("name", Type::Text);
const DESCRIPTION: (&str, Type) = ("description", Type::Text);
const NEW_NAME: (&str, Type) = ("new_name", Type::Text);
const NEW_DESCRIPTION: (&str, Type) = ("new_description", Type::Text);

/// All methods of a volume plugin, under the names that their files have.
pub(crate) const METHODS: &[Method] = &[
    takes("Plugin.Query", &[], Type::QueryResult),
    takes("Plugin.ls", &[], Type::List(&Type::Text)),
    takes("Plugin.diagnostics", &[], Type::Text),
    takes("SR.probe", &[CONFIGURATION], Type::List(&Type::ProbeResult)),
    takes("SR.create", &[("uuid", Type::Text), CONFIGURATION, NAME, DESCRIPTION], Type::Map),
    takes("SR.attach", &[CONFIGURATION], Type::Text),
    takes("SR.detach", &[SR], Type::Unit),
    takes("SR.destroy", &[SR], Type::Unit),
    takes("SR.stat", &[SR], Type::SrStat),
    takes("SR.set_name", &[SR, NEW_NAME], Type::Unit),
    takes("SR.set_description", &[SR, NEW_DESCRIPTION], Type::Unit),
    takes("SR.ls", &[SR], Type::List(&Type::Volume)),
    takes(
        "Volume.create",
        &[SR, NAME, DESCRIPTION, ("size", Type::Integer), ("sharable", Type::Boolean)],
        Type::Volume,
    ),
    takes("Volume.snapshot", &[SR, KEY], Type::Volume),
    takes("Volume.clone", &[SR, KEY], Type::Volume),
    takes("Volume.copy", &[SR, KEY, ("dest_sr", Type::Text)], Type::Volume),
    takes("Volume.destroy", &[SR, KEY], Type::Unit),
    takes("Volume.revert", &[SR, ("snapshot", Type::Text), KEY], Type::Unit),
    takes("Volume.set_name", &[SR, KEY, NEW_NAME], Type::Unit),
    takes("Volume.set_description", &[SR, KEY, NEW_DESCRIPTION], Type::Unit),
    takes("Volume.set", &[SR, KEY, ("k", Type::Text), ("v", Type::Text)], Type::Unit),
    takes("Volume.unset", &[SR, KEY, ("k", Type::Text)], Type::Unit),
    takes("Volume.resize", &[SR, KEY, ("new_size", Type::Integer)], Type::Unit),
    takes("Volume.stat", &[SR, KEY], Type::Volume),
    takes("Volume.compare", &[SR, KEY, KEY2], Type::BlockList),
    takes("Volume.similar_content", &[SR, KEY], Type::List(&Type::Text)),
    takes("Volume.enable_cbt", &[SR, KEY], Type::Unit),
    takes("Volume.disable_cbt", &[SR, KEY], Type::Unit),
    takes("Volume.data_destroy", &[SR, KEY], Type::Unit),
    takes(
        "Volume.list_changed_blocks",
        &[SR, KEY, KEY2, ("offset", Type::Integer), ("length", Type::Integer)],
        Type::ChangedBlocks,
    ),
    takes("Volume.compose", &[SR, KEY, KEY2], Type::Unit),
];
