//! Metrics for Prometheus: its text format, on demand or in a file for node_exporter's textfile collector.
//!
//! Source: <https://prometheus.io/docs/instrumenting/exposition_formats/> (text format 0.0.4).

use std::fmt::Display;
use std::fs;
use std::path::Path;

use vhd_core::FileError;

use crate::status::{RepositoryStatus, State, Status};

/// What a metric of one repository is called, what it is, and where its value comes from.
struct Metric<T> {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// `None` while it is not known, or does not apply.
    value: fn(&T) -> Option<u64>,
}

const OF_PROCESS: &[Metric<Status>] = &[
    Metric {
        name: "vhd_coalesce_start_time_seconds",
        kind: "gauge",
        help: "When the worker started, in seconds since 1970.",
        value: |status| Some(status.started),
    },
    Metric {
        name: "vhd_coalesce_paused",
        kind: "gauge",
        help: "Whether the worker has been told to wait.",
        value: |status| Some(u64::from(status.state == State::Paused)),
    },
    Metric {
        name: "vhd_coalesce_limit_bytes_per_second",
        kind: "gauge",
        help: "The limit of the worker's rate; absent when there is none.",
        value: |status| status.bytes_per_second.map(Into::into),
    },
    Metric {
        name: "vhd_coalesce_limit_in_flight",
        kind: "gauge",
        help: "The limit of operations at once; absent when there is none.",
        value: |status| status.in_flight.map(|limit| limit.get().into()),
    },
];

const OF_REPOSITORY: &[Metric<RepositoryStatus>] = &[
    Metric {
        name: "vhd_coalesce_bytes_moved_total",
        kind: "counter",
        help: "Bytes of data moved by merges.",
        value: |repository| Some(repository.bytes_moved_total),
    },
    Metric {
        name: "vhd_coalesce_nodes_merged_total",
        kind: "counter",
        help: "Images merged into others.",
        value: |repository| Some(repository.nodes_merged_total),
    },
    Metric {
        name: "vhd_coalesce_errors_total",
        kind: "counter",
        help: "Errors met.",
        value: |repository| Some(repository.errors_total),
    },
    Metric {
        name: "vhd_coalesce_unreachable",
        kind: "gauge",
        help: "Whether the repository cannot be reached, as when its file system is not mounted.",
        value: |repository| Some(u64::from(repository.unreachable.is_some())),
    },
    Metric {
        name: "vhd_coalesce_runs",
        kind: "gauge",
        help: "Runs of images that are being merged.",
        value: |repository| Some(repository.runs.len() as u64),
    },
    Metric {
        name: "vhd_coalesce_runs_left_bytes",
        kind: "gauge",
        help: "Bytes that those runs have still to move.",
        value: |repository| {
            Some(repository.runs.iter().map(|run| run.bytes_total.saturating_sub(run.bytes_done)).sum())
        },
    },
    Metric {
        name: "vhd_coalesce_waiting",
        kind: "gauge",
        help: "Images that could be merged but for something that passes.",
        value: |repository| scanned(repository, repository.waiting.len() as u64),
    },
    Metric {
        name: "vhd_coalesce_isolated",
        kind: "gauge",
        help: "Images that are left alone because something is damaged.",
        value: |repository| scanned(repository, repository.isolated.len() as u64),
    },
    Metric {
        name: "vhd_coalesce_backlog_nodes",
        kind: "gauge",
        help: "Images that are to be merged.",
        value: |repository| scanned(repository, repository.backlog_nodes),
    },
    Metric {
        name: "vhd_coalesce_backlog_bytes",
        kind: "gauge",
        help: "Bytes that are to be moved for that.",
        value: |repository| scanned(repository, repository.backlog_bytes),
    },
    Metric {
        name: "vhd_coalesce_deepest_chain_nodes",
        kind: "gauge",
        help: "Images in the deepest chain.",
        value: |repository| scanned(repository, repository.deepest_chain.into()),
    },
    Metric {
        name: "vhd_coalesce_free_bytes",
        kind: "gauge",
        help: "Free space in the repository's file system.",
        value: |repository| scanned(repository, repository.free_bytes),
    },
    Metric {
        name: "vhd_coalesce_physical_bytes",
        kind: "gauge",
        help: "Space that the repository's files occupy.",
        value: |repository| scanned(repository, repository.physical_bytes),
    },
    Metric {
        name: "vhd_coalesce_last_scan_time_seconds",
        kind: "gauge",
        help: "When the repository was scanned last, in seconds since 1970.",
        value: |repository| repository.last_scan,
    },
];

/// What a scan finds is not known before there was one, or where the folder cannot be reached, and is no zero then.
fn scanned(repository: &RepositoryStatus, value: u64) -> Option<u64> {
    repository.last_scan.filter(|_| repository.unreachable.is_none()).map(|_| value)
}

/// Puts a status into Prometheus's text format.
pub fn prometheus_text(status: &Status) -> String {
    let mut text = String::new();
    for metric in OF_PROCESS {
        add(&mut text, metric, [(String::new(), status)]);
    }
    for metric in OF_REPOSITORY {
        add(&mut text, metric, status.repositories.iter().map(|repository| (labels(repository), repository)));
    }
    text
}

fn add<'a, T: 'a>(text: &mut String, metric: &Metric<T>, of: impl IntoIterator<Item = (String, &'a T)>) {
    let Metric { name, kind, help, value } = metric;
    let values = of.into_iter().filter_map(|(labels, of)| Some(format!("{name}{labels} {}\n", value(of)?)));
    let values: String = values.collect();
    if !values.is_empty() {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{values}"));
    }
}

fn labels(repository: &RepositoryStatus) -> String {
    let path = escaped(repository.path.display());
    match repository.uuid {
        Some(uuid) => format!("{{repository=\"{path}\",uuid=\"{uuid}\"}}"),
        None => format!("{{repository=\"{path}\"}}"),
    }
}

fn escaped(value: impl Display) -> String {
    value.to_string().replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Writes a status to a file, whose name should end in `.prom`; its readers see the old one or the new one.
///
/// # Errors
/// What the system answers.
pub fn write_prometheus(path: &Path, status: &Status) -> Result<(), FileError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    fs::write(new, prometheus_text(status)).map_err(FileError::when(new, "write the metrics"))?;
    fs::rename(new, path).map_err(FileError::when(path, "put the metrics in their place"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::example;

    #[test]
    fn a_status_is_told_byte_for_byte_like_this() {
        let mut status = example();
        let mut second = status.repositories[0].clone();
        (second.path, second.uuid, second.last_scan) = ("/a \"b\"\\\n".into(), None, None);
        status.repositories.push(second);
        assert_eq!(prometheus_text(&status), include_str!("golden.prom"));
    }

    #[test]
    fn what_cannot_be_reached_has_no_numbers() {
        let mut status = example();
        status.repositories[0].unreachable = Some("gone".into());
        let text = prometheus_text(&status);
        assert!(text.contains("vhd_coalesce_unreachable{") && !text.contains("free_bytes"), "{text}");
    }

    #[test]
    fn limits_that_are_not_set_are_absent() {
        let mut status = example();
        (status.bytes_per_second, status.in_flight) = (None, None);
        assert!(!prometheus_text(&status).contains("limit"));
    }

    #[test]
    fn the_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vhd.prom");
        for state in [State::Idle, State::Paused] {
            let status = Status { state, ..example() };
            write_prometheus(&path, &status).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), prometheus_text(&status));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_prometheus(&folder.path().join("none/vhd.prom"), &example()).unwrap_err();
        assert!(error.to_string().ends_with("none/vhd.prom.new: cannot write the metrics"), "{error}");
    }
}
