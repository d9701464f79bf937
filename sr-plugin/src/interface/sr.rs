//! `SR`: repositories, from a folder or a device.

use std::collections::BTreeMap;
use std::path::Path;

use coalesce_worker::mount_of;
use serde::Deserialize;
use uuid::Uuid;

use super::{CONFIGURATION, SR, text};
use crate::failure::{Failure, Number};
use crate::host::{Attached, Host};
use crate::log::{self, Severity};
use crate::method::{Method, answer};
use crate::place::{self, Place};
use crate::sr::{Sr, SrRecord};
use crate::wire::{Health, SrStat, Volume};
use crate::{probe, worker};

/// The methods of this interface.
pub const METHODS: &[Method] = &[
    Method {
        name: "SR.probe",
        about: "Find repositories, and what a configuration lacks to lead to one",
        parameters: &[CONFIGURATION],
        run: |host, arguments| answer(probe::probe(host, &arguments.read::<Configured>()?.configuration)?),
    },
    Method {
        name: "SR.create",
        about: "Make a repository in a folder, or on a device. Nothing that is there already is touched",
        parameters: &[
            text("uuid", "Who it is to be"),
            CONFIGURATION,
            text("name", "Its name"),
            text("description", "What it is for"),
        ],
        run: |host, arguments| answer(create(host, arguments.read()?)?),
    },
    Method {
        name: "SR.attach",
        about: "Make a repository usable on this host; a device is mounted",
        parameters: &[CONFIGURATION],
        run: |host, arguments| answer(attach(host, arguments.read::<Configured>()?.configuration)?),
    },
    Method {
        name: "SR.detach",
        about: "Make a repository unusable on this host; nothing is lost",
        parameters: &[SR],
        run: |host, arguments| answer(detach(host, &arguments.read::<Named>()?.sr)?),
    },
    Method {
        name: "SR.destroy",
        about: "Remove a repository that has no volumes any more",
        parameters: &[SR],
        run: |host, arguments| answer(destroy(host, &arguments.read::<Named>()?.sr)?),
    },
    Method {
        name: "SR.stat",
        about: "Tell how a repository is",
        parameters: &[SR],
        run: |host, arguments| answer(stat(&host.attached_as(&arguments.read::<Named>()?.sr)?)),
    },
    Method {
        name: "SR.set_name",
        about: "Give a repository another name",
        parameters: &[SR, text("new_name", "The name")],
        run: |host, arguments| {
            let SetName { sr, new_name } = arguments.read()?;
            answer(set(&host.sr(&sr)?, |record| record.name = new_name)?)
        },
    },
    Method {
        name: "SR.set_description",
        about: "Give a repository another description",
        parameters: &[SR, text("new_description", "The description")],
        run: |host, arguments| {
            let SetDescription { sr, new_description } = arguments.read()?;
            answer(set(&host.sr(&sr)?, |record| record.description = new_description)?)
        },
    },
    Method {
        name: "SR.ls",
        about: "List all volumes and snapshots",
        parameters: &[SR],
        run: |host, arguments| answer(ls(&host.sr(&arguments.read::<Named>()?.sr)?)?),
    },
];

type Configuration = BTreeMap<String, String>;

#[derive(Deserialize)]
struct Named {
    sr: String,
}

#[derive(Deserialize)]
struct Configured {
    configuration: Configuration,
}

#[derive(Deserialize)]
struct SetName {
    sr: String,
    new_name: String,
}

#[derive(Deserialize)]
struct SetDescription {
    sr: String,
    new_description: String,
}

#[derive(Deserialize)]
struct Create {
    uuid: String,
    configuration: Configuration,
    name: String,
    description: String,
}

fn create(
    host: &Host,
    Create { uuid, mut configuration, name, description }: Create,
) -> Result<Configuration, Failure> {
    let uuid = place::parse_uuid(&uuid)?;
    let place = Place::of(&configuration)?;
    check_depth_limit(&configuration)?;
    place.make()?;
    let open = place.open(host, uuid)?;
    let made = place::check_locks(open.folder()).and_then(|()| make_record(open.folder(), uuid, name, description));
    open.close()?;
    made?;
    configuration.insert("sr_uuid".into(), uuid.to_string());
    Ok(configuration)
}

fn check_depth_limit(configuration: &Configuration) -> Result<(), Failure> {
    match configuration.get("depth_limit") {
        Some(limit) if !limit.parse::<u32>().is_ok_and(|limit| limit > 0) => Err(Failure::numbered(
            Number::BadRequest,
            format!("depth_limit: {limit}: give a number of levels, such as 30"),
        )),
        _ => Ok(()),
    }
}

fn make_record(folder: &Path, uuid: Uuid, name: String, description: String) -> Result<(), Failure> {
    let before = SrRecord::read(folder)?.unwrap_or_default();
    if before.uuid.is_some_and(|other| other != uuid) {
        let detail = format!("{} holds one with another uuid; attach it, or choose another folder", folder.display());
        return Err(Failure::numbered(Number::SrExists, detail));
    }
    SrRecord { uuid: Some(uuid), name, description, ..before }.write(folder)
}

fn attach(host: &Host, configuration: Configuration) -> Result<String, Failure> {
    let place = Place::of(&configuration)?;
    check_depth_limit(&configuration)?;
    let uuid = match configuration.get("sr_uuid") {
        Some(uuid) => place::parse_uuid(uuid)?,
        None => place.find_uuid(host)?,
    };
    let open = place.open(host, uuid)?;
    match attach_open(host, uuid, &place, &open, configuration) {
        Ok(sr) => {
            open.keep();
            worker::start(host, &sr);
            Ok(uuid.to_string())
        }
        Err(failure) => {
            open.close()?;
            Err(failure)
        }
    }
}

fn attach_open(
    host: &Host,
    uuid: Uuid,
    place: &Place,
    open: &place::Open,
    configuration: Configuration,
) -> Result<Sr, Failure> {
    let folder = open.folder().to_path_buf();
    if let Some(attached) = host.find(&uuid.to_string())? {
        if attached.folder() != folder {
            let detail = format!("{uuid} is attached from {}; detach that first", attached.folder().display());
            return Err(Failure::numbered(Number::SrInUse, detail));
        }
        attached.check_present()?;
    }
    place::check_locks(&folder)?;
    identify(uuid, place, &folder)?;
    let mount = Some(mount_of(&folder)?);
    let attached = Attached { folder, mounted: open.mounted().map(Path::to_path_buf), mount, configuration };
    let sr = Sr::new(uuid, attached.clone()).hold()?;
    // Calls that were killed when it was attached last are finished now. Which volumes may share data is found out again:
    // the folder may be a copy, and what was appended may have been lost with the power.
    sr.lock().and_then(|_locked| sr.forget_trees())?;
    host.attach(uuid, &attached)?;
    Ok(sr)
}

/// Refuses a folder that is not the repository's. One that another tool has filled with images says from now on who it is;
/// a folder with nothing in it may be the mount point of the repository's file system.
fn identify(uuid: Uuid, place: &Place, folder: &Path) -> Result<(), Failure> {
    let record = SrRecord::read(folder)?.unwrap_or_default();
    let unavailable = |detail: String| Err(Failure::numbered(Number::SrUnavailable, detail));
    match record.uuid {
        Some(recorded) if recorded == uuid => Ok(()),
        Some(other) => {
            unavailable(format!("{} holds {other}, and not {uuid}; correct the configuration", folder.display()))
        }
        None if place::holds_images(folder) && place::uuid_of(folder, place)? == uuid => {
            SrRecord { uuid: Some(uuid), ..record }.write(folder)
        }
        None => unavailable(format!(
            "{}: there is no sr.json that says it is {uuid}; mount its file system first, or make it a repository with \
             SR.create, which touches no image",
            folder.display()
        )),
    }
}

fn detach(host: &Host, sr: &str) -> Result<(), Failure> {
    match host.find(sr)? {
        Some(sr) => leave(host, sr, |_| Ok(())),
        // One that is not attached is detached already.
        None => Ok(()),
    }
}

fn destroy(host: &Host, sr: &str) -> Result<(), Failure> {
    leave(host, host.sr(sr)?, Sr::remove_all)
}

/// Makes a repository unusable on this host after one last thing has been done with it.
fn leave(host: &Host, sr: Sr, last: impl FnOnce(&Sr) -> Result<(), Failure>) -> Result<(), Failure> {
    let stopped = worker::stop(host, &sr)?;
    let done = last(&sr);
    let sr = sr.release();
    let left = done.and_then(|()| sr.mounted().map_or(Ok(()), place::unmount)).and_then(|()| host.forget(sr.uuid()));
    if left.is_err() {
        drop(stopped);
        worker::start(host, &sr);
    }
    left
}

/// Tells how an attached repository is; of one that cannot be reached, why.
fn stat(sr: &Sr) -> SrStat {
    match sr.clone().hold() {
        Ok(held) => describe(&held),
        Err(failure) => {
            SrStat { health: Health::Unreachable(failure.to_string()), free_space: 0, total_space: 0, ..describe(sr) }
        }
    }
}

fn describe(sr: &Sr) -> SrStat {
    let record =
        SrRecord::read(sr.folder()).ok().flatten().filter(|record| record.uuid.is_none_or(|uuid| uuid == sr.uuid()));
    let record = record.unwrap_or_default();
    let (health, free, total) = match place::space(sr.folder()) {
        Ok((free, total)) => (Health::Healthy(String::new()), free, total),
        Err(failure) => (Health::Unreachable(failure.to_string()), 0, 0),
    };
    let asked_for = sr.configuration().get("datasources").is_some_and(|value| value == "true");
    SrStat {
        sr: sr.uuid().to_string(),
        name: record.name,
        uuid: Some(sr.uuid().to_string()),
        description: record.description,
        free_space: free,
        total_space: total,
        datasources: if asked_for { vec![worker::datasource(sr)] } else { Vec::new() },
        clustered: false,
        health,
    }
}

/// Describes a repository that need not be attached.
pub(crate) fn stat_of(folder: &Path, uuid: Uuid) -> SrStat {
    describe(&Sr::new(
        uuid,
        Attached { folder: folder.into(), mounted: None, mount: None, configuration: BTreeMap::new() },
    ))
}

fn set(sr: &Sr, change: impl FnOnce(&mut SrRecord)) -> Result<(), Failure> {
    let _locked = sr.lock()?;
    let mut record = SrRecord::read(sr.folder())?.unwrap_or_default();
    record.uuid.get_or_insert(sr.uuid());
    change(&mut record);
    record.write(sr.folder())
}

fn ls(sr: &Sr) -> Result<Vec<Volume>, Failure> {
    let listed = sr.list()?;
    if !listed.gone.is_empty()
        && let Err(failure) = sr.lock().and_then(|locked| locked.forget_gone(&listed.gone))
    {
        // They are kept apart for longer, which harms nobody.
        log::line(Severity::Error, &format!("{}: {failure}", sr.folder().display()));
    }
    Ok(listed.volumes)
}
