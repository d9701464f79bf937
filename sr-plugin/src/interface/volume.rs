//! `Volume`: the disks of a repository.

mod blocks;
mod lives;

use serde::Deserialize;

use super::{KEY, SR, integer, text};
use crate::failure::Failure;
use crate::host::Host;
use crate::method::{Kind, Method, Parameter, answer};
use crate::sr::Sr;

const KEY2: Parameter = text("key2", "The other volume");

/// The methods of this interface.
pub const METHODS: &[Method] = &[
    Method {
        name: "Volume.create",
        about: "Make a volume that is all zeros, and takes space only for what is written",
        parameters: &[
            SR,
            text("name", "Its name"),
            text("description", "What it is for"),
            integer("size", "Bytes of its disk at least"),
            Parameter { name: "sharable", kind: Kind::Boolean, about: "Whether several may use it at once" },
        ],
        run: |host, arguments| answer(lives::create(host, arguments.read()?)?),
    },
    Method {
        name: "Volume.snapshot",
        about: "Freeze what a volume holds now in a new, read-only volume",
        parameters: &[SR, KEY],
        run: |host, arguments| answer(lives::snapshot(host, &arguments.read()?, lives::Twin::Snapshot)?),
    },
    Method {
        name: "Volume.clone",
        about: "Make a new volume that holds what this one holds now",
        parameters: &[SR, KEY],
        run: |host, arguments| answer(lives::snapshot(host, &arguments.read()?, lives::Twin::Clone)?),
    },
    Method {
        name: "Volume.copy",
        about: "Copy all data of a volume into a new one that depends on nothing, in this repository or another",
        parameters: &[SR, KEY, text("dest_sr", "The repository to copy to")],
        run: |host, arguments| answer(lives::copy(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.destroy",
        about: "Remove a volume; one that is gone is no error. What others need of it stays until they do not",
        parameters: &[SR, KEY],
        run: |host, arguments| answer(lives::destroy(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.revert",
        about: "Give a volume the content of a snapshot; what it held is lost",
        parameters: &[SR, text("snapshot", "The snapshot"), KEY],
        run: |host, arguments| answer(lives::revert(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.resize",
        about: "Make a volume larger; what is new reads as zeros",
        parameters: &[SR, KEY, integer("new_size", "Bytes of its disk at least")],
        run: |host, arguments| answer(lives::resize(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.compose",
        about: "Put a volume on another, whose content then shows where the first holds nothing; the other is no volume any more",
        parameters: &[
            SR,
            text("key", "The volume that becomes the child"),
            text("key2", "The volume that becomes its parent"),
        ],
        run: |host, arguments| answer(lives::compose(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.data_destroy",
        about: "Destroy the data of a snapshot, and keep which blocks have changed",
        parameters: &[SR, KEY],
        run: |host, arguments| answer(lives::data_destroy(host, &arguments.read()?)?),
    },
    Method {
        name: "Volume.stat",
        about: "Tell all about a volume",
        parameters: &[SR, KEY],
        run: |host, arguments| {
            let Named { sr, key } = arguments.read()?;
            answer(host.sr(&sr)?.volume(&key)?)
        },
    },
    Method {
        name: "Volume.set_name",
        about: "Give a volume another name",
        parameters: &[SR, KEY, text("new_name", "The name")],
        run: |host, arguments| {
            let SetName { sr, key, new_name } = arguments.read()?;
            answer(set(&host.sr(&sr)?, &key, |metadata| metadata.name = new_name)?)
        },
    },
    Method {
        name: "Volume.set_description",
        about: "Give a volume another description",
        parameters: &[SR, KEY, text("new_description", "The description")],
        run: |host, arguments| {
            let SetDescription { sr, key, new_description } = arguments.read()?;
            answer(set(&host.sr(&sr)?, &key, |metadata| metadata.description = new_description)?)
        },
    },
    Method {
        name: "Volume.set",
        about: "Put something of the toolstack's with a volume",
        parameters: &[SR, KEY, text("k", "What it is called"), text("v", "What it is")],
        run: |host, arguments| {
            let Set { sr, key, k, v } = arguments.read()?;
            answer(set(&host.sr(&sr)?, &key, |metadata| drop(metadata.keys.insert(k, v)))?)
        },
    },
    Method {
        name: "Volume.unset",
        about: "Remove something of the toolstack's from a volume",
        parameters: &[SR, KEY, text("k", "What it is called")],
        run: |host, arguments| {
            let Unset { sr, key, k } = arguments.read()?;
            answer(set(&host.sr(&sr)?, &key, |metadata| drop(metadata.keys.remove(&k)))?)
        },
    },
    Method {
        name: "Volume.compare",
        about: "Tell which sectors of two volumes differ",
        parameters: &[SR, KEY, KEY2],
        run: |host, arguments| {
            let Pair { sr, key, key2 } = arguments.read()?;
            answer(blocks::compare(&host.sr(&sr)?, &key, &key2)?)
        },
    },
    Method {
        name: "Volume.similar_content",
        about: "List the volumes that share data with this one, those that share most first",
        parameters: &[SR, KEY],
        run: |host, arguments| {
            let Named { sr, key } = arguments.read()?;
            answer(blocks::similar_content(&host.sr(&sr)?, &key)?)
        },
    },
    Method {
        name: "Volume.enable_cbt",
        about: "Track from now on which blocks of a volume change between its snapshots",
        parameters: &[SR, KEY],
        run: |host, arguments| {
            let Named { sr, key } = arguments.read()?;
            answer(host.sr(&sr)?.lock()?.set_tracking(&key, true)?)
        },
    },
    Method {
        name: "Volume.disable_cbt",
        about: "Track changes of a volume no longer",
        parameters: &[SR, KEY],
        run: |host, arguments| {
            let Named { sr, key } = arguments.read()?;
            answer(host.sr(&sr)?.lock()?.set_tracking(&key, false)?)
        },
    },
    Method {
        name: "Volume.list_changed_blocks",
        about: "Tell which blocks of 64 KiB have changed between two snapshots, or a snapshot and the volume",
        parameters: &[
            SR,
            text("key", "The one to compare with"),
            text("key2", "The one that has changed"),
            integer("offset", "The first byte to look at"),
            integer("length", "Bytes to look at; -1 for all to the end"),
        ],
        run: |host, arguments| answer(blocks::list_changed_blocks(host, &arguments.read()?)?),
    },
];

#[derive(Deserialize)]
struct Named {
    sr: String,
    key: String,
}

#[derive(Deserialize)]
struct SetName {
    sr: String,
    key: String,
    new_name: String,
}

#[derive(Deserialize)]
struct SetDescription {
    sr: String,
    key: String,
    new_description: String,
}

#[derive(Deserialize)]
struct Set {
    sr: String,
    key: String,
    k: String,
    v: String,
}

#[derive(Deserialize)]
struct Unset {
    sr: String,
    key: String,
    k: String,
}

#[derive(Deserialize)]
struct Pair {
    sr: String,
    key: String,
    key2: String,
}

fn set(sr: &Sr, key: &str, change: impl FnOnce(&mut crate::metadata::Metadata)) -> Result<(), Failure> {
    let _locked = sr.lock()?;
    let mut metadata = sr.existing(key)?;
    change(&mut metadata);
    sr.set_metadata(key, &metadata)
}

/// Wakes the worker once a call has left something to merge.
fn done(host: &Host, sr: &Sr) {
    crate::worker::wake(host, sr);
}
