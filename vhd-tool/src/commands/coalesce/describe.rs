//! What a merge will do, or has done, as data and as text.

use std::io::{self, Write};
use std::path::Path;

use coalesce_worker::{Coalesce, CoalesceError, Ending, Outcome};
use serde::Serialize;
use vhd_core::ByteCount;

use coalesce_worker::size::Human;

/// A plan.
#[derive(Serialize)]
pub(super) struct Planned {
    /// Newest first.
    sources: Vec<String>,
    target: String,
    pieces: u64,
    data: u64,
    zeros: u64,
    tables_read: u64,
    tables_written: u64,
    bytes_read: u64,
    bytes_written: u64,
    blocks: usize,
    new_blocks: u64,
    space_needed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    space_free: Option<u64>,
    then: Then,
    pub(super) notes: Vec<String>,
}

/// What becomes of the files.
#[derive(Serialize)]
struct Then {
    relink: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rename: Option<Renamed>,
    delete: Vec<String>,
}

#[derive(Serialize)]
struct Renamed {
    from: String,
    to: String,
}

/// A merge that is done.
#[derive(Serialize)]
pub(super) struct Merged {
    target: String,
    data: u64,
    reads: u64,
    writes: u64,
    relinked: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    renamed: Option<Renamed>,
    deleted: Vec<String>,
    notes: Vec<String>,
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Planned {
    pub(super) fn of(coalesce: &Coalesce<'_>, notes: Vec<String>) -> Result<Self, CoalesceError> {
        let plan = coalesce.plan();
        let sources: Vec<String> = coalesce.sources().iter().map(|layer| text(layer.path())).collect();
        let target = text(coalesce.target());
        let none = Then { relink: Vec::new(), rename: None, delete: Vec::new() };
        let then = match coalesce.ending() {
            Ending::Keep => none,
            Ending::Relink(children) => {
                Then { relink: children.iter().map(|child| text(child)).collect(), delete: sources.clone(), ..none }
            }
            Ending::Stand => Then { delete: sources.clone(), ..none },
            Ending::TakeName => {
                let rename = Renamed { from: target.clone(), to: sources[0].clone() };
                Then { rename: Some(rename), delete: sources[1..].to_vec(), ..none }
            }
        };
        Ok(Self {
            sources,
            target,
            pieces: plan.extents,
            data: plan.data.0,
            zeros: plan.zeros.0,
            tables_read: plan.tables_read.0,
            tables_written: plan.tables_written.0,
            bytes_read: plan.bytes_read().0,
            bytes_written: plan.bytes_written().0,
            blocks: plan.units().len(),
            new_blocks: plan.new_blocks,
            space_needed: plan.space_needed.0,
            space_free: coalesce.free_space()?.map(|free| free.0),
            then,
            notes,
        })
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let human = |bytes| Human(ByteCount(bytes));
        for (i, source) in self.sources.iter().enumerate() {
            writeln!(out, "{} {source}", if i == 0 { "merge       " } else { "   and       " })?;
        }
        writeln!(out, "into         {}", self.target)?;
        writeln!(
            out,
            "read         {} bytes: {} of data ({}) in {} pieces, {} of tables",
            self.bytes_read,
            self.data,
            human(self.data),
            self.pieces,
            self.tables_read
        )?;
        writeln!(
            out,
            "write        {} bytes: {} of data, {} of tables",
            self.bytes_written, self.data, self.tables_written
        )?;
        if self.zeros > 0 {
            writeln!(out, "zero         {} bytes, past the end of a smaller image", self.zeros)?;
        }
        writeln!(out, "blocks       {} touched, of which {} are new", self.blocks, self.new_blocks)?;
        let free = self.space_free.map_or("the target cannot grow".into(), |free| format!("{} free", human(free)));
        writeln!(out, "space needed {} bytes ({}); {free}", self.space_needed, human(self.space_needed))?;
        self.then.print(out)?;
        for note in &self.notes {
            writeln!(out, "note         {note}")?;
        }
        Ok(())
    }
}

impl Then {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        for child in &self.relink {
            writeln!(out, "relink       {child}")?;
        }
        if let Some(Renamed { from, to }) = &self.rename {
            writeln!(out, "rename       {from} to {to}")?;
        }
        for file in &self.delete {
            writeln!(out, "delete       {file}")?;
        }
        if self.relink.is_empty() && self.rename.is_none() && self.delete.is_empty() {
            writeln!(out, "keep         all files, under their names")?;
        }
        Ok(())
    }
}

impl Merged {
    pub(super) fn of(outcome: &Outcome, former_target: &Path, notes: Vec<String>) -> Self {
        // Where the target took the node's name, its old name is gone, but nothing was deleted.
        let renamed = outcome.target != former_target;
        let deleted = outcome.deleted.iter().filter(|path| *path != former_target);
        Self {
            target: text(&outcome.target),
            data: outcome.moved.data.0,
            reads: outcome.moved.by.reads,
            writes: outcome.moved.by.writes,
            relinked: outcome.relinked.iter().map(|path| text(path)).collect(),
            renamed: renamed.then(|| Renamed { from: text(former_target), to: text(&outcome.target) }),
            deleted: deleted.map(|path| text(path)).collect(),
            notes,
        }
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { target, reads, writes, .. } = self;
        writeln!(out, "moved {} into {target}: {reads} reads, {writes} writes", Human(ByteCount(self.data)))?;
        for child in &self.relinked {
            writeln!(out, "relinked {child}")?;
        }
        if let Some(Renamed { from, to }) = &self.renamed {
            writeln!(out, "renamed {from} to {to}")?;
        }
        for file in &self.deleted {
            writeln!(out, "deleted {file}")?;
        }
        Ok(())
    }
}
