//! The two footers, by what they are made of: also where only one of them is left.

use std::mem::offset_of;

use super::{Report, chain_of_causes, kind};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, FooterError};
use crate::format::RawFooter;
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset};

const SIZE: usize = FOOTER_SIZE.0 as usize;

macro_rules! fields {
    ($($field:ident)*) => { &[$((stringify!($field), offset_of!(RawFooter, $field))),*] };
}

/// The fields, and where each begins.
const FIELDS: &[(&str, usize)] = fields! {
    cookie features version data_offset timestamp creator_application creator_version creator_host_os original_size
    current_size cylinders heads sectors_per_track disk_type checksum unique_id saved_state hidden reserved
};

/// What stands where a footer should.
struct Found {
    bytes: [u8; SIZE],
    footer: Result<Footer, FooterError>,
}

impl Found {
    /// Reads the last `length` bytes of the file, or as many of those at its start.
    fn read(container: &Container, at: FileOffset, length: usize) -> Result<Self, StorageError> {
        let mut bytes = [0; SIZE];
        if at.0 + length as u64 <= container.len()?.0 {
            container.read_at(&mut bytes[..length], at)?;
        }
        Ok(Self { bytes, footer: Footer::try_from(&bytes) })
    }

    /// Says what is wrong, beside a footer that is whole.
    fn fault(&self, whole: &Footer) -> String {
        let Err(error) = &self.footer else { return String::new() };
        let fields = differing(&self.bytes, &whole.to_bytes());
        // Something else altogether has no fields to name.
        if fields.len() * 2 > FIELDS.len() {
            return chain_of_causes(error);
        }
        format!("{}; other than in the whole one: {}", chain_of_causes(error), fields.join(", "))
    }
}

/// Names the fields in which two footers differ.
fn differing(one: &[u8; SIZE], other: &[u8; SIZE]) -> Vec<&'static str> {
    let ends = FIELDS[1..].iter().map(|(_, start)| *start).chain([SIZE]);
    let fields = FIELDS.iter().zip(ends).filter(|((_, start), end)| one[*start..*end] != other[*start..*end]);
    fields.map(|((name, _), _)| *name).collect()
}

/// Checks both footers; tells whether either can be used.
pub(super) fn check(container: &Container, report: &mut Report) -> Result<bool, StorageError> {
    let len = container.len()?;
    let end_at = FileOffset(len.0.saturating_sub(FOOTER_SIZE.0));
    let end = Found::read(container, end_at, SIZE)?;
    let start = Found::read(container, FileOffset(0), SIZE)?;
    let old_end = Found::read(container, FileOffset(len.0.saturating_sub(511)), 511)?;
    let counts = match (&end.footer, &old_end.footer) {
        (Ok(footer), _) => footer,
        (Err(_), Ok(footer)) => {
            let text =
                "the footer at the end has 511 bytes, as Virtual PC wrote it before 2004; many readers refuse it";
            report.add(&kind::FOOTER_511, Some(end_at + ByteCount(1)), text);
            footer
        }
        (Err(_), Err(_)) => match &start.footer {
            Ok(copy) if copy.disk_type() != DiskType::Fixed => {
                let text =
                    format!("no footer at the end of the file, the copy at the start is used: {}", end.fault(copy));
                report.add(&kind::FOOTER_END_LOST, Some(end_at), text);
                return Ok(true);
            }
            _ => {
                let text = match &end.footer {
                    Err(error) => {
                        format!("not a VHD, or both its footers are lost: at the end, {}", chain_of_causes(error))
                    }
                    Ok(_) => String::new(),
                };
                report.add(&kind::FOOTER_LOST, Some(end_at), text);
                return Ok(false);
            }
        },
    };
    // At the start of a fixed disk is the guest's first sector, and no footer of this very disk.
    let is_copy = |copy: &Footer| copy.unique_id() == counts.unique_id();
    if counts.disk_type() == DiskType::Fixed && !start.footer.as_ref().is_ok_and(is_copy) {
        return Ok(true);
    }
    match &start.footer {
        Err(_) => {
            let text = format!("the copy of the footer at the start is lost: {}", start.fault(counts));
            report.add(&kind::FOOTER_COPY_LOST, Some(FileOffset(0)), text);
        }
        Ok(copy) if copy.to_bytes() != counts.to_bytes() => {
            let fields = differing(&copy.to_bytes(), &counts.to_bytes()).join(", ");
            let text = format!(
                "the footer at the end and its copy at the start differ in {fields}; the one at the end counts"
            );
            report.add(&kind::FOOTER_COPY_DIFFERS, Some(FileOffset(0)), text);
        }
        Ok(_) => {}
    }
    Ok(true)
}
