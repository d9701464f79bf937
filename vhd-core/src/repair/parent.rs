//! A change of the parent that has not ended: locators and header speak of different files.

use std::path::PathBuf;

use uuid::Uuid;

use super::{HeaderDoubt, Plan, RepairError};
use crate::chain::ParentRefusal;
use crate::check;
use crate::gate::{FileIdentity, Gate};
use crate::header::HeaderError;
use crate::image::{Image, ReadOnly};
use crate::metadata::ParentLink;
use crate::new_file::folder_of;

/// The files that an image names as its parent.
#[derive(Debug, Default)]
struct Named {
    /// Those that have the unique id in its header, each once.
    found: Vec<(PathBuf, FileIdentity)>,
    /// Why others are not it.
    tried: Vec<ParentRefusal>,
}

impl Plan<'_> {
    /// Links the image to the one file among those that it names, in locators or header, whose unique id is that of the
    /// parent in the header. So it does where locators cannot be read.
    ///
    /// `doubt`: what was wrong with the header, which is right only if there is such a file.
    pub(super) fn mend_parent(&mut self, doubt: Option<HeaderError>) -> Result<(), RepairError> {
        let image = self.open()?;
        let Some(header) = image.header().filter(|_| image.is_differencing()) else { return Ok(()) };
        let report = check::container(self.container.clone())?;
        let codes = ["locator-differs", "locator-text", "locator-place", "locator-room"];
        let code = codes.into_iter().find(|code| report.findings().iter().any(|finding| finding.code == *code));
        if code.is_none() && doubt.is_none() {
            return Ok(());
        }
        let expected = header.parent_unique_id();
        let Named { found, tried } = self.named(&image, expected)?;
        let [(parent, _)] = found.as_slice() else {
            let path = self.container.path().into();
            return match (doubt, code) {
                (Some(source), _) => {
                    let offset = image.footer().header_offset().unwrap_or_default();
                    Err(RepairError::Header { path, offset, doubt: HeaderDoubt::Parent, source })
                }
                (None, Some("locator-differs")) => {
                    Err(RepairError::Parent { path, parent: expected, found: found.len(), tried })
                }
                // The other locators may still lead there.
                (None, _) => Ok(()),
            };
        };
        let Some(code) = code else { return Ok(()) };
        let link = ParentLink::new(folder_of(self.container.path()), parent, expected)?;
        let mut writable = Image::writable_from_container(self.container.clone())?;
        writable.relink(&link)?;
        writable.close()?;
        let text = format!("linked to {}, which has the unique id {expected} that the header names", parent.display());
        self.note(code, text);
        Ok(())
    }

    /// Opens the files that the image names; nobody has the nil id, which stands for a raw parent.
    fn named(&self, image: &Image<ReadOnly>, expected: Uuid) -> Result<Named, RepairError> {
        let gate = Gate::new(&self.options.parents, self.container.path())?;
        let mut named = Named::default();
        for path in image.parent_paths()? {
            let opened = gate.admit(&path).map_err(ParentRefusal::from).and_then(|admitted| {
                let parent = Image::<ReadOnly>::from_container(admitted.container)?;
                Ok((parent.footer().unique_id(), admitted.identity))
            });
            match opened {
                Err(refusal) => named.tried.push(refusal),
                Ok((found, identity)) if found == expected && !expected.is_nil() => {
                    // Several names of one file are one parent.
                    if !named.found.iter().any(|(_, other)| *other == identity) {
                        named.found.push((path, identity));
                    }
                }
                Ok((found, _)) => named.tried.push(ParentRefusal::Identity { path, found, expected }),
            }
        }
        Ok(named)
    }
}
