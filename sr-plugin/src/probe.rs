//! Finding repositories, step by step: devices, what is on them, and folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::failure::Failure;
use crate::host::Host;
use crate::interface::sr::stat_of;
use crate::place::{self, Place};
use crate::wire::ProbeResult;

type Configuration = BTreeMap<String, String>;

/// Finds what a configuration leads to; of an empty one, where it could lead.
///
/// # Errors
/// A configuration that makes no sense.
pub(crate) fn probe(host: &Host, configuration: &Configuration) -> Result<Vec<ProbeResult>, Failure> {
    if !configuration.contains_key("uri") && !configuration.contains_key("device") {
        return Ok(devices());
    }
    let place = Place::of(configuration)?;
    if let Place::Device(device) = &place
        && let Some(file_system) = place::type_on(device)?
    {
        return at_device(host, &place, configuration, &file_system);
    }
    if let Place::Device(_) = &place {
        return Ok(vec![empty(configuration, "nothing is on the device")]);
    }
    let Ok(open) = place.open_to_look(host) else { return Ok(Vec::new()) };
    in_folder(&place, open.folder(), configuration)
}

fn at_device(
    host: &Host,
    place: &Place,
    configuration: &Configuration,
    file_system: &str,
) -> Result<Vec<ProbeResult>, Failure> {
    // One that is attached already is mounted where it belongs.
    let attached = host.attached()?;
    let same = |other: &Configuration| other.get("device") == configuration.get("device");
    if let Some(sr) = attached.iter().find(|sr| same(sr.configuration())) {
        return in_folder(place, sr.folder(), configuration);
    }
    let Ok(open) = place.open_to_look(host) else {
        return Ok(vec![empty(configuration, &format!("{file_system}, which cannot be mounted"))]);
    };
    let found = in_folder(place, open.folder(), configuration);
    open.close()?;
    found
}

fn in_folder(place: &Place, folder: &Path, configuration: &Configuration) -> Result<Vec<ProbeResult>, Failure> {
    if !place::is_repository(folder) {
        return Ok(vec![empty(configuration, "no repository yet; SR.create makes one")]);
    }
    let uuid = place::uuid_of(folder, place)?;
    let mut complete = configuration.clone();
    complete.insert("sr_uuid".into(), uuid.to_string());
    let sr = Some(stat_of(folder, uuid));
    Ok(vec![ProbeResult { configuration: complete, complete: true, sr, extra_info: BTreeMap::new() }])
}

/// A place at which a repository can be made.
fn empty(configuration: &Configuration, what: &str) -> ProbeResult {
    let mut configuration = configuration.clone();
    configuration.remove("sr_uuid");
    let extra_info = BTreeMap::from([("content".to_owned(), what.to_owned())]);
    ProbeResult { configuration, complete: true, sr: None, extra_info }
}

/// Block devices that nobody uses, as far as the kernel tells.
fn devices() -> Vec<ProbeResult> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else { return Vec::new() };
    let mut found: Vec<ProbeResult> = entries
        .filter_map(|entry| {
            let (name, path) = entry.ok().map(|entry| (entry.file_name(), entry.path()))?;
            let number = |file: &str| fs::read_to_string(path.join(file)).ok()?.trim().parse::<u64>().ok();
            let size = number("size").filter(|size| *size > 0)? * 512;
            let is_held = fs::read_dir(path.join("holders")).is_ok_and(|mut holders| holders.next().is_some());
            let is_whole_with_parts = fs::read_dir(&path)
                .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("partition").exists()));
            let device = format!("/dev/{}", name.to_str()?.replace('!', "/"));
            if is_held || is_whole_with_parts || is_in_use(&device) || number("ro") == Some(1) {
                return None;
            }
            let extra_info = BTreeMap::from([("size".to_owned(), size.to_string())]);
            let configuration = BTreeMap::from([("device".to_owned(), device)]);
            Some(ProbeResult { configuration, complete: false, sr: None, extra_info })
        })
        .collect();
    found.sort_by(|one, other| one.configuration.cmp(&other.configuration));
    found
}

fn is_in_use(device: &str) -> bool {
    let listed = |file: &str| {
        fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line.split(' ').next() == Some(device)))
    };
    listed("/proc/mounts") || listed("/proc/swaps")
}
