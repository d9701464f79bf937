//! Which portions of the pending operations to try.

use super::Options;
use super::disk::Disk;
use super::operation::Change;
use super::tree::{DataChange, Portion};
use crate::random::Random;

/// A portion of each pending operation.
pub(super) type Choice = Vec<Portion>;

/// Gives choices for the disk as it is now, legal ones all.
pub(super) fn choices(disk: &Disk, options: &Options, random: &mut Random) -> Vec<Choice> {
    let chooser = Chooser { disk, needs: disk.needs() };
    let count = disk.pending.len();
    let mut choices = vec![chooser.all(&Portion::Nothing), chooser.all(&Portion::Whole)];
    choices.extend(chooser.names_and_data());
    for i in sample(count, options.singles, random).into_iter().filter(|&i| !disk.pending[i].durable) {
        let mut portions = chooser.torn(i, random);
        portions.push(Portion::Whole);
        for portion in portions {
            let mut alone = chooser.all(&Portion::Nothing);
            alone[i] = portion.clone();
            choices.push(chooser.with_needs(alone));
            let mut rest = chooser.all(&Portion::Whole);
            rest[i] = if portion == Portion::Whole { Portion::Nothing } else { portion };
            choices.push(chooser.without_orphans(rest));
        }
    }
    let bits: usize = (0..count).map(|i| chooser.units(i)).sum();
    if bits < 32 && 1 << bits <= options.random {
        choices.extend((0..1 << bits).map(|mask| chooser.without_orphans(chooser.by_bits(mask))));
    } else {
        choices.extend((0..options.random).map(|_| chooser.without_orphans(chooser.by_chance(random))));
    }
    choices
}

/// Picks the last operations and some of those before.
fn sample(count: usize, most: usize, random: &mut Random) -> Vec<usize> {
    let last = count.saturating_sub(most.div_ceil(2))..count;
    let earlier = last.start;
    let picked = (0..(most / 2).min(earlier)).map(|_| (random.next() % earlier as u64) as usize);
    picked.chain(last).collect()
}

struct Chooser<'d> {
    disk: &'d Disk,
    needs: Vec<Vec<usize>>,
}

impl Chooser<'_> {
    /// The same for all but those that cannot be lost.
    fn all(&self, portion: &Portion) -> Choice {
        let all =
            self.disk.pending.iter().map(|pending| if pending.durable { Portion::Whole } else { portion.clone() });
        all.collect()
    }

    /// Adds what the chosen ones need.
    fn with_needs(&self, mut choice: Choice) -> Choice {
        for i in (0..choice.len()).rev().filter(|&i| !self.needs[i].is_empty()) {
            if choice[i] != Portion::Nothing {
                self.needs[i].iter().for_each(|&need| choice[need] = Portion::Whole);
            }
        }
        choice
    }

    /// Takes away what needs something that is not chosen.
    fn without_orphans(&self, mut choice: Choice) -> Choice {
        for i in (0..choice.len()).filter(|&i| !self.needs[i].is_empty()) {
            if !self.disk.pending[i].durable && self.needs[i].iter().any(|&need| choice[need] != Portion::Whole) {
                choice[i] = Portion::Nothing;
            }
        }
        choice
    }

    /// The first names, or all, with all of the data or none.
    fn names_and_data(&self) -> Vec<Choice> {
        let is_name = |i: &usize| matches!(self.disk.operation(*i), Change::Name(_));
        let names: Vec<usize> = (0..self.needs.len()).filter(is_name).collect();
        let mut choices = Vec::new();
        for data in [Portion::Nothing, Portion::Whole] {
            for persisted in 0..=names.len() {
                let mut choice = self.all(&data);
                for (i, &name) in names.iter().enumerate().filter(|(_, name)| !self.disk.pending[**name].durable) {
                    choice[name] = if i < persisted { Portion::Whole } else { Portion::Nothing };
                }
                choices.push(choice);
            }
        }
        choices
    }

    /// The parts of an operation that may persist alone; none if it cannot be lost.
    fn units(&self, i: usize) -> usize {
        match self.disk.operation(i) {
            _ if self.disk.pending[i].durable => 0,
            Change::Data { change, .. } => change.units(),
            Change::Name(_) => 1,
            Change::Sync { .. } => 0,
        }
    }

    /// Some ways in which an operation may be there in part.
    fn torn(&self, i: usize, random: &mut Random) -> Vec<Portion> {
        let units = self.units(i);
        let mut torn = Vec::new();
        if let Change::Data { change: DataChange::Write { .. }, .. } = self.disk.operation(i) {
            torn.push(Portion::Length);
        }
        if units > 1 {
            torn.push(Portion::Units((0..units).map(|unit| unit < units / 2).collect()));
            torn.push(Portion::Units((0..units).map(|unit| unit >= units / 2).collect()));
            torn.push(Portion::Units((0..units).map(|_| random.chance(128)).collect()));
        }
        torn
    }

    /// The choice that a number stands for, a bit for each unit.
    fn by_bits(&self, mut mask: u64) -> Choice {
        let mut bit = || {
            let set = mask & 1 == 1;
            mask >>= 1;
            set
        };
        let portion = |i| match self.units(i) {
            0 => Portion::Whole,
            1 => whole_if(bit()),
            units => simplest((0..units).map(|_| bit()).collect()),
        };
        (0..self.needs.len()).map(portion).collect()
    }

    fn by_chance(&self, random: &mut Random) -> Choice {
        let dense = [24, 128, 232][(random.next() % 3) as usize];
        let mut portion = |i| match self.units(i) {
            0 => Portion::Whole,
            _ if !random.chance(dense) => Portion::Nothing,
            units if units > 1 && random.chance(96) => simplest((0..units).map(|_| random.chance(128)).collect()),
            _ if random.chance(8) && !self.torn(i, random).is_empty() => self.torn(i, random).swap_remove(0),
            _ => Portion::Whole,
        };
        (0..self.needs.len()).map(&mut portion).collect()
    }
}

fn whole_if(chosen: bool) -> Portion {
    if chosen { Portion::Whole } else { Portion::Nothing }
}

fn simplest(units: Vec<bool>) -> Portion {
    if units.iter().all(|&unit| unit == units[0]) { whole_if(units[0]) } else { Portion::Units(units.into()) }
}
