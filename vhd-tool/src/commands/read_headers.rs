//! `read_headers` and `read_headers_interval`: which clusters of a disk hold data, as xapi asks before an export.

use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use vhd_core::{Chain, FileOffset, Layer, ReadError};

use crate::cli::{Context, Status};
use crate::error::CommandError;
use crate::output;

/// A cluster is 2 MiB.
const CLUSTER_BITS: u32 = 21;

/// Print in one line of JSON which clusters of 2 MiB are allocated in the image or in one that it reads from
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The line has no newline at its end: {\"virtual_size\":N,\"cluster_bits\":21,\"data_clusters\":[0,1,2,7]}, and with
`read_headers_interval` \"data_clusters\":[[0,2],[7,7]]. Of a raw parent, and of a fixed image, what is no hole is allocated.

Examples:
  vhd-tool read_headers disk.vhd
  vhd-tool read_headers_interval disk.vhd")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
}

/// How clusters are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listing {
    Each,
    Intervals,
}

pub(crate) fn run(args: &Args, listing: Listing, context: &Context) -> Result<Status, CommandError> {
    let chain = Chain::open(&args.file, &context.chain_options())?;
    let clusters = allocated_clusters(&chain)?;
    let mut out = output::stdout();
    print(&mut out, chain.size().0, &clusters, listing).and_then(|()| out.flush()).map_err(CommandError::stdout)?;
    Ok(Status::Done)
}

fn print(out: &mut impl Write, size: u64, clusters: &[bool], listing: Listing) -> io::Result<()> {
    write!(out, "{{\"virtual_size\":{size},\"cluster_bits\":{CLUSTER_BITS},\"data_clusters\":[")?;
    let mut separator = "";
    for run in runs(clusters) {
        match listing {
            Listing::Each => {
                for cluster in run {
                    write!(out, "{separator}{cluster}")?;
                    separator = ",";
                }
            }
            Listing::Intervals => write!(out, "{separator}[{},{}]", run.start(), run.end())?,
        }
        separator = ",";
    }
    write!(out, "]}}")
}

fn runs(clusters: &[bool]) -> impl Iterator<Item = RangeInclusive<usize>> + '_ {
    let mut next = 0;
    clusters.chunk_by(|a, b| a == b).filter_map(move |run| {
        let first = next;
        next += run.len();
        run[0].then_some(first..=next - 1)
    })
}

/// Which clusters a layer of the chain holds anything of.
fn allocated_clusters(chain: &Chain) -> Result<Vec<bool>, ReadError> {
    let mut clusters = vec![false; chain.size().0.div_ceil(1 << CLUSTER_BITS) as usize];
    let mut mark = |start: u64, end: u64| {
        let range = (start >> CLUSTER_BITS) as usize..end.div_ceil(1 << CLUSTER_BITS) as usize;
        let last = clusters.len();
        clusters[range.start.min(last)..range.end.min(last)].fill(true);
    };
    for layer in chain.layers() {
        match layer.as_vhd().and_then(|image| Some((image, image.header()?))) {
            Some((image, header)) => {
                let size = u64::from(header.block_size().get());
                for block in image.allocated_blocks() {
                    let start = u64::from(block?.0.0) * size;
                    mark(start, start + size);
                }
            }
            None => held_in_file(layer, &mut mark)?,
        }
    }
    Ok(clusters)
}

fn held_in_file(layer: &Layer, mark: &mut impl FnMut(u64, u64)) -> Result<(), ReadError> {
    let (mut from, end) = (FileOffset(0), layer.size().0);
    while let Some(data) = layer.container().next_data(from)?.filter(|data| data.start.0 < end) {
        mark(data.start.0, data.end.0.min(end));
        from = data.end;
    }
    Ok(())
}
