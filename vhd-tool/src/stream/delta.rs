//! What differs between two disks, as far as their layers tell.

use vhd_core::{Chain, FileIdentity, Layer, ReadError, Sector, SectorCount, SectorRange, resolve_layers};

/// Finds the sectors in which a disk may differ from a base.
///
/// Where the two chains share a layer, these are the sectors that the layers above it hold, in either chain, also where
/// they hold zeros. Where they share none, they are all that is data in either: nothing is compared.
#[derive(Debug)]
pub(super) struct Delta {
    base: Chain,
    /// How many layers each has above the first that they share.
    above: Option<(usize, usize)>,
}

impl Delta {
    /// Compares the layers of `disk` with those of `base`.
    pub(super) fn new(disk: &Chain, base: Chain) -> Self {
        let identities = |chain: &Chain| -> Vec<Option<FileIdentity>> {
            chain.layers().iter().map(|layer| FileIdentity::at(layer.path()).ok()).collect()
        };
        let (of_disk, of_base) = (identities(disk), identities(&base));
        let shared = of_disk.iter().enumerate().find_map(|(i, identity)| {
            let j = of_base.iter().position(|other| identity.is_some() && other == identity)?;
            Some((i, j))
        });
        Self { base, above: shared }
    }

    /// The base.
    pub(super) fn base(&self) -> &Chain {
        &self.base
    }

    /// Lists the sectors of `window` in which `disk` may differ from the base, in order.
    pub(super) fn ranges(&self, disk: &Chain, window: SectorRange) -> Result<Vec<SectorRange>, ReadError> {
        let base_end = Sector(self.base.sectors().0).clamp(window.start, window.end);
        let within = SectorRange::between(window.start, base_end);
        let beyond = SectorRange::between(base_end, window.end);
        let mut found = match self.above {
            Some((of_disk, of_base)) => {
                let mut found = held(&disk.layers()[..of_disk], within)?;
                found.extend(held(&self.base.layers()[..of_base], within)?);
                found
            }
            None => {
                let mut found = disk.data_ranges_in(within).collect::<Result<Vec<_>, _>>()?;
                for range in self.base.data_ranges_in(within) {
                    found.push(range?);
                }
                found
            }
        };
        // There the base reads as zeros.
        for range in disk.data_ranges_in(beyond) {
            found.push(range?);
        }
        Ok(union(found))
    }
}

/// Lists what some layers hold of a range.
fn held(layers: &[Layer], range: SectorRange) -> Result<Vec<SectorRange>, ReadError> {
    if layers.is_empty() || range.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for piece in range.split_at_multiples(SectorCount(4096)) {
        for extent in resolve_layers(layers, piece)? {
            found.push(extent.sectors);
        }
    }
    Ok(found)
}

/// Sorts ranges, and joins those that touch or overlap.
fn union(mut ranges: Vec<SectorRange>) -> Vec<SectorRange> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<SectorRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_where_they_touch() {
        let range = |start, end| SectorRange::between(Sector(start), Sector(end));
        let found = union(vec![range(8, 9), range(0, 4), range(2, 3), range(4, 6), range(9, 10)]);
        assert_eq!(found, [range(0, 6), range(8, 10)]);
    }
}
