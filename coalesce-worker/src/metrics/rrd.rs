//! Metrics for xcp-rrdd, the daemon that keeps a Xen host's statistics: a file in its protocol, version 2.
//!
//! ```text
//!        0  DATASOURCES
//!       11  CRC-32 of the timestamp and the values
//!       15  CRC-32 of the metadata
//!       19  n, the number of data sources
//!       23  timestamp: seconds since 1970, a double
//!       31  n values of 8 bytes
//!  31 + 8n  m, the length of the metadata
//!  35 + 8n  m bytes of metadata: JSON, whose order is that of the values
//!           zeros, up to a multiple of 4096
//! ```
//! All numbers are big-endian.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISO_HDLC, Crc};
use serde::{Serialize, Serializer};
use vhd_core::FileError;

use crate::status::{RepositoryStatus, Status};

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const MAGIC: &[u8; 11] = b"DATASOURCES";
/// Where the timestamp is.
const TIMESTAMP: usize = 23;
const PAGE: usize = 4096;

/// What a data source is called, what it is, and where its value comes from.
struct Kind {
    name: &'static str,
    description: &'static str,
    units: &'static str,
    /// `gauge`: a level; `derive`: a counter, whose growth per second is kept.
    kind: &'static str,
    value: fn(&RepositoryStatus) -> u64,
}

const KINDS: [Kind; 6] = [
    Kind {
        name: "coalesce_backlog_nodes",
        description: "Images that are to be merged",
        units: "nodes",
        kind: "gauge",
        value: |repository| repository.backlog_nodes,
    },
    Kind {
        name: "coalesce_backlog_bytes",
        description: "Bytes that are to be moved to merge them",
        units: "B",
        kind: "gauge",
        value: |repository| repository.backlog_bytes,
    },
    Kind {
        name: "coalesce_copied",
        description: "Bytes moved by merges per second",
        units: "B/s",
        kind: "derive",
        value: |repository| repository.bytes_moved_total,
    },
    Kind {
        name: "chain_depth_max",
        description: "Images in the deepest chain",
        units: "nodes",
        kind: "gauge",
        value: |repository| repository.deepest_chain.into(),
    },
    Kind {
        name: "free_space",
        description: "Free space",
        units: "B",
        kind: "gauge",
        value: |repository| repository.free_bytes,
    },
    Kind {
        name: "physical_utilisation",
        description: "Space that the images occupy",
        units: "B",
        kind: "gauge",
        value: |repository| repository.physical_bytes,
    },
];

/// The file that xcp-rrdd reads, for as long as a worker runs. Its name is the plugin's: it neither ends in `.tmp` nor
/// starts with `tap-`.
#[derive(Debug)]
pub struct RrdFile {
    path: PathBuf,
    published: Option<(File, Vec<u8>)>,
}

impl RrdFile {
    /// Will write to `path`: `/dev/shm/metrics/` and the plugin's name. Changes nothing yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), published: None }
    }

    /// Writes what is known at `now`; every five seconds is as often as it is read. Best not before the first scan, as
    /// this format has no word for a value that is not known.
    ///
    /// The file is written complete and then gets its name. From then on only values change, in their places: the daemon
    /// keeps it open and recognises values that are half written by their CRC. Where there are other repositories than
    /// before, or the file has gone, there is a new one.
    ///
    /// # Errors
    /// What the system answers.
    pub fn update(&mut self, status: &Status, now: SystemTime) -> Result<(), FileError> {
        let bytes = encode(status, now);
        if let Some((file, present)) = &self.published
            && is_at(file, &self.path)
            && changes_only_values(present, &bytes)
        {
            let end = values_end(status);
            file.write_all_at(&bytes[..end], 0).map_err(FileError::when(&self.path, "write the metrics"))?;
        } else {
            self.published = None;
            let file = publish(&self.path, &bytes)?;
            self.published = Some((file, bytes));
        }
        Ok(())
    }

    /// Deletes the file, by which the daemon knows that there will be no more.
    ///
    /// # Errors
    /// What the system answers.
    pub fn remove(self) -> Result<(), FileError> {
        match self.published {
            Some((file, _)) if is_at(&file, &self.path) => remove(&self.path),
            _ => Ok(()),
        }
    }
}

fn publish(path: &Path, bytes: &[u8]) -> Result<File, FileError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".tmp");
    let new = Path::new(&new);
    let open = || OpenOptions::new().write(true).create(true).truncate(true).open(new);
    let mut file = open().map_err(FileError::when(new, "make it"))?;
    file.write_all(bytes).map_err(FileError::when(new, "write the metrics"))?;
    // The daemon would go on with the old file if it did not see it go.
    remove(path)?;
    fs::rename(new, path).map_err(FileError::when(path, "put the metrics in their place"))?;
    Ok(file)
}

fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::when(path, "remove the metrics")(error))
        }
        _ => Ok(()),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let at_path = fs::metadata(path).map(identity);
    file.metadata().is_ok_and(|metadata| at_path.is_ok_and(|at_path| at_path == identity(metadata)))
}

fn changes_only_values(present: &[u8], new: &[u8]) -> bool {
    let metadata = |bytes: &[u8]| (bytes.len(), bytes[15..TIMESTAMP].to_vec());
    metadata(present) == metadata(new)
}

fn values_end(status: &Status) -> usize {
    TIMESTAMP + 8 + 8 * KINDS.len() * status.repositories.len()
}

fn encode(status: &Status, now: SystemTime) -> Vec<u8> {
    let sources = sources(status);
    let metadata = serde_json::to_vec(&Metadata { datasources: InOrder(&sources) });
    let metadata = metadata.expect("text alone, in a map with text for keys, can always be put into JSON");
    let timestamp = now.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut values = timestamp.to_be_bytes().to_vec();
    values.extend(sources.iter().flat_map(|source| i64::try_from(source.value).unwrap_or(i64::MAX).to_be_bytes()));

    let mut bytes = MAGIC.to_vec();
    bytes.extend(CRC.checksum(&values).to_be_bytes());
    bytes.extend(CRC.checksum(&metadata).to_be_bytes());
    bytes.extend((sources.len() as u32).to_be_bytes());
    bytes.extend(values);
    bytes.extend((metadata.len() as u32).to_be_bytes());
    bytes.extend(metadata);
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    bytes
}

struct Source {
    name: String,
    value: u64,
    about: About,
}

/// What the metadata says about a data source. Every member must be text.
#[derive(Serialize)]
struct About {
    description: &'static str,
    owner: String,
    value_type: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    default: &'static str,
    units: &'static str,
    min: &'static str,
    max: &'static str,
}

#[derive(Serialize)]
struct Metadata<'a> {
    datasources: InOrder<'a>,
}

struct InOrder<'a>(&'a [Source]);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|source| (&source.name, &source.about)))
    }
}

fn sources(status: &Status) -> Vec<Source> {
    let mut suffixes = HashSet::new();
    let mut sources = Vec::new();
    for repository in &status.repositories {
        let suffix = suffix(repository, &mut suffixes);
        sources.extend(KINDS.iter().map(|kind| Source {
            name: format!("{}_{suffix}", kind.name),
            value: (kind.value)(repository),
            about: About {
                description: kind.description,
                owner: repository.uuid.map_or_else(|| "host".into(), |uuid| format!("sr {uuid}")),
                value_type: "int64",
                kind: kind.kind,
                default: "true",
                units: kind.units,
                min: "0.0",
                max: "inf",
            },
        }));
    }
    sources
}

/// What tells the names of one repository's data sources from another's: the first eight digits of its UUID, as other
/// plugins have it, or eight that stay the same for a path.
fn suffix(repository: &RepositoryStatus, taken: &mut HashSet<String>) -> String {
    let first = match repository.uuid {
        Some(uuid) => uuid.simple().to_string()[..8].to_string(),
        None => format!("{:08x}", CRC.checksum(repository.path.as_os_str().as_encoded_bytes())),
    };
    let others = (2..).map(|number| format!("{first}_{number}"));
    let free = std::iter::once(first.clone()).chain(others).find(|suffix| taken.insert(suffix.clone()));
    free.expect("numbers do not end")
}

#[cfg(test)]
mod tests;
