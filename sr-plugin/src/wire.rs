//! The records of the interface, as they go over the wire. Members that are not there are left out: `null` is refused.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// Who the plugin is and what it can do.
#[derive(Clone, Debug, Serialize)]
pub struct QueryResult {
    /// The last part of the name that xapi knows it by.
    pub plugin: &'static str,
    /// Its name, for people.
    pub name: &'static str,
    /// What it is.
    pub description: &'static str,
    /// Who makes it.
    pub vendor: &'static str,
    /// Under which licence.
    pub copyright: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The version of the interface.
    pub required_api_version: &'static str,
    /// What it can do that no file name tells.
    pub features: Vec<&'static str>,
    /// What a device configuration may hold.
    pub configuration: BTreeMap<&'static str, &'static str>,
    /// Cluster software that it needs.
    pub required_cluster_stack: Vec<&'static str>,
}

/// How a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Fully available.
    Healthy(String),
    /// It cannot be reached, and an administrator may be able to change that.
    Unreachable(String),
}

impl Serialize for Health {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Healthy(text) => ("Healthy", text).serialize(serializer),
            Self::Unreachable(text) => ("Unreachable", text).serialize(serializer),
        }
    }
}

/// A repository.
#[derive(Clone, Debug, Serialize)]
pub struct SrStat {
    /// What all calls name it by.
    pub sr: String,
    /// Its name.
    pub name: String,
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// What it is for.
    pub description: String,
    /// Bytes that are free.
    pub free_space: i64,
    /// Bytes that there are.
    pub total_space: i64,
    /// Where its metrics are.
    pub datasources: Vec<String>,
    /// Whether cluster software keeps it.
    pub clustered: bool,
    /// How it is.
    pub health: Health,
}

/// A volume or snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Volume {
    /// What it is called in its repository.
    pub key: String,
    /// The same, where it is a UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Whether it may be written.
    pub read_write: bool,
    /// Whether several may use it at once.
    pub sharable: bool,
    /// The size of its disk.
    pub virtual_size: i64,
    /// The space that its own file takes.
    pub physical_utilisation: i64,
    /// Where its data is.
    pub uri: Vec<String>,
    /// What the toolstack has put there.
    pub keys: BTreeMap<String, String>,
    /// What it holds, where that is not just data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_type: Option<VolumeType>,
    /// Whether changes are tracked.
    pub cbt_enabled: bool,
}

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeType {
    /// Only which blocks have changed: its data has been destroyed.
    ChangedBlocks,
}

impl Serialize for VolumeType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // A bare string is understood by one of the two readers only.
        ("CBT_Metadata", ()).serialize(serializer)
    }
}

/// What probing found.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeResult {
    /// A configuration that leads there.
    pub configuration: BTreeMap<String, String>,
    /// Whether it is enough to attach.
    pub complete: bool,
    /// The repository that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sr: Option<SrStat>,
    /// What a person may want to know.
    pub extra_info: BTreeMap<String, String>,
}

/// Ranges of blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockList {
    /// Bytes in a block.
    pub blocksize: i64,
    /// First block and number of blocks of each.
    pub ranges: Vec<(i64, i64)>,
}

/// Which blocks have changed.
#[derive(Clone, Debug, Serialize)]
pub struct ChangedBlocks {
    /// Bytes that a bit stands for.
    pub granularity: i64,
    /// The bits, the first block in the highest bit of the first byte, in base 64.
    pub bitmap: String,
}
