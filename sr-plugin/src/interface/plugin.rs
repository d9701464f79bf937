//! `Plugin`: what this is, and how it fares.

use std::collections::BTreeMap;
use std::fmt::Write;

use coalesce_worker::{RepositoryStatus, Status};

use crate::failure::Failure;
use crate::host::Host;
use crate::method::{Method, answer};
use crate::wire::QueryResult;
use crate::worker;

/// The methods of this interface.
pub const METHODS: &[Method] = &[
    Method {
        name: "Plugin.Query",
        about: "Tell what the plugin is and can do",
        parameters: &[],
        run: |_, _| answer(query()),
    },
    Method {
        name: "Plugin.ls",
        about: "List the repositories that are attached to this host",
        parameters: &[],
        run: |host, _| answer(host.attached()?.iter().map(|sr| sr.uuid().to_string()).collect::<Vec<_>>()),
    },
    Method {
        name: "Plugin.diagnostics",
        about: "Tell how repositories and workers fare, for a bug report: no names, no data",
        parameters: &[],
        run: |host, _| answer(diagnostics(host)?),
    },
];

/// What the plugin is.
pub fn query() -> QueryResult {
    QueryResult {
        plugin: "vhd",
        name: "VHD repositories",
        description: "Volumes as chains of VHD images in a folder, merged in the background",
        vendor: "The vhd-core project",
        copyright: env!("CARGO_PKG_LICENSE"),
        version: env!("CARGO_PKG_VERSION"),
        required_api_version: "5.0",
        // What a file of its own tells is not declared.
        features: vec!["THIN_PROVISIONING", "VDI_COMPOSE", "VDI_CONFIG_CBT", "VDI_REVERT"],
        configuration: BTreeMap::from([
            ("uri", "file:///PATH of the folder, on any mounted file system"),
            ("device", "a block device; its file system is mounted, and made first where it has none"),
            ("depth_limit", "levels that a chain of snapshots may have (default 30)"),
            ("datasources", "true: SR.stat names the worker's file of metrics (default false)"),
        ]),
        required_cluster_stack: Vec::new(),
    }
}

fn diagnostics(host: &Host) -> Result<String, Failure> {
    let mut text = format!("sr-plugin {}\n", env!("CARGO_PKG_VERSION"));
    for sr in host.attached()? {
        let _ = writeln!(text, "\nSR {}", sr.uuid());
        match worker::status(host, &sr) {
            Err(why) => {
                let _ = writeln!(text, "  worker: {why}");
            }
            Ok((status, repository)) => describe(&mut text, &status, repository.as_ref()),
        }
    }
    Ok(text)
}

fn describe(text: &mut String, status: &Status, repository: Option<&RepositoryStatus>) {
    let _ = writeln!(text, "  worker: process {}, {} errors since its start", status.pid, status.errors_total);
    let Some(repository) = repository else {
        let _ = writeln!(text, "  the worker does not look after it");
        return;
    };
    if let Some(why) = &repository.unreachable {
        let _ = writeln!(text, "  unreachable: {why}");
        return;
    }
    let RepositoryStatus { backlog_nodes, backlog_bytes, deepest_chain, free_bytes, .. } = repository;
    let _ = writeln!(
        text,
        "  backlog: {backlog_nodes} images, {backlog_bytes} bytes; {} being merged, {} waiting, {} isolated",
        repository.runs.len(),
        repository.waiting.len(),
        repository.isolated.len()
    );
    let _ = writeln!(text, "  deepest chain: {deepest_chain}; free: {free_bytes} bytes");
    if let Some(error) = &repository.last_error {
        let _ = writeln!(text, "  last error: {error}");
    }
}
