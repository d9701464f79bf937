//! Single merges: endings, sizes, refusals.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coalesce_worker::{Coalesce, CoalesceError, Direction, Ending, Outcome, Repository, Request};
use testkit::filesystem::Tmpfs;
use testkit::model::{Model, Start};
use testkit::{golden, guest_sha256, pattern, scratch, worker};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, ParentLink, Sector,
    SectorCount, SectorRange, Volume, create_file,
};

fn request(node: &Path, into: Option<&Path>) -> Request {
    Request { node: node.into(), into: into.map(Path::to_path_buf), direction: Direction::Down, keep: false }
}

fn repository(file: &Path) -> Repository {
    worker::repository_of(file, &ChainOptions::default())
}

fn execute(request: &Request) -> Result<Outcome, CoalesceError> {
    worker::coalesce(request, &ChainOptions::default())
}

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &ChainOptions::default()).unwrap()).unwrap()
}

fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn write(repository: &mut Model, volume: &Path, start: u64, count: u64, tag: u16) {
    let range = SectorRange::new(Sector(start), SectorCount(count));
    repository.change(volume, |open, content| {
        let data = pattern::fill(range, tag);
        open.write(range, &data).unwrap();
        content[start as usize * 512..][..data.len()].copy_from_slice(&data);
    });
}

/// The images of a volume, top first.
fn layers(volume: &Path) -> Vec<PathBuf> {
    let chain = Chain::open(volume, &ChainOptions::default()).unwrap();
    chain.layers().iter().map(|layer| layer.path().to_path_buf()).collect()
}

/// Base of 600 sectors, then a node of 100, then a leaf of 400: between 100 and 400 the leaf reads zeros, not the base.
#[test]
fn a_smaller_node_in_the_middle_hides_what_lies_below() {
    let block = |size| BlockSize::new(size).unwrap();
    for start in [Start::Dynamic(block(4096)), Start::Dynamic(block(65536)), Start::Fixed, Start::OnRaw(block(8192))] {
        let mut repository = Model::default();
        repository.create(start, 600);
        let volume = repository.volumes().remove(0);
        write(&mut repository, &volume, 0, 600, 1);
        for (round, sectors) in [(2, 100), (3, 400)] {
            repository.snapshot(&volume);
            let twin = repository.volumes().into_iter().find(|path| *path != volume).unwrap();
            repository.delete(&twin);
            repository.resize(&volume, sectors);
            write(&mut repository, &volume, 3 * u64::from(round), 20, round);
        }
        repository.verify();
        let chain = layers(&volume);
        let base = if matches!(start, Start::OnRaw(_)) { &chain[chain.len() - 2] } else { &chain[chain.len() - 1] };
        let opened = worker::repository_of(&volume, &ChainOptions::default());
        let planned = Coalesce::prepare(&opened, &request(&volume, Some(base))).unwrap();
        assert!(planned.plan().zeros.0 > 0, "{start:?}");
        drop(planned);
        execute(&request(&volume, Some(base))).unwrap();
        repository.verify();
        assert_eq!(layers(&volume).len(), chain.len() - 2);
    }
}

#[test]
fn a_smaller_target_grows_first() {
    let mut repository = Model::default();
    repository.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 100);
    let volume = repository.volumes().remove(0);
    write(&mut repository, &volume, 0, 100, 1);
    repository.snapshot(&volume);
    let twin = repository.volumes().into_iter().find(|path| *path != volume).unwrap();
    repository.delete(&twin);
    repository.resize(&volume, 50_000);
    write(&mut repository, &volume, 49_000, 1000, 2);
    let outcome = execute(&request(&volume, None)).unwrap();
    assert_eq!(outcome.target, volume.canonicalize().unwrap());
    repository.verify();
    assert_eq!(layers(&volume).len(), 1);
}

#[test]
fn a_raw_base_takes_the_data_and_the_children() {
    let folder = golden::unpack(&["on-raw.vhd", "raw-parent.img"]);
    let path = |name: &str| folder.path().join(name);
    let before = hash(&path("on-raw.vhd"));
    let of_raw = repository(&path("on-raw.vhd"));
    let taking_its_name = Coalesce::prepare(&of_raw, &request(&path("on-raw.vhd"), None)).unwrap_err();
    assert!(matches!(taking_its_name, CoalesceError::RawTarget { .. }), "{taking_its_name}");

    let unique_id = Image::open(&path("on-raw.vhd"), Lock::None).unwrap().footer().unique_id();
    let parent = ParentLink::new(folder.path(), &path("on-raw.vhd"), unique_id).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    create_file(&path("leaf.vhd"), &NewImage::new(ByteCount(5_000_192), kind), Existing::Keep).unwrap();
    let outcome = execute(&request(&path("on-raw.vhd"), None)).unwrap();
    assert_eq!(outcome.relinked.len(), 1);
    assert_eq!(hash(&path("leaf.vhd")), before);
    assert_eq!(layers(&path("leaf.vhd"))[1], path("raw-parent.img").canonicalize().unwrap());
    assert_eq!(testkit::sha256(&fs::read(path("raw-parent.img")).unwrap()), before, "the raw disk is the content");
}

/// The base takes its permissions, too: whoever opens the volume finds it as it was.
#[test]
fn a_base_that_takes_the_name_of_a_volume_takes_its_owner() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let path = |name: &str| folder.path().join(name);
    std::os::unix::fs::chown(path("leaf.vhd"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(path("leaf.vhd"), fs::Permissions::from_mode(0o640)).unwrap();
    let repository = repository(&path("leaf.vhd"));
    let prepared = Coalesce::prepare(&repository, &request(&path("leaf.vhd"), Some(&path("base.vhd")))).unwrap();
    assert!(prepared.free_space().unwrap().is_some_and(|free| free > ByteCount(0)));
    worker::execute(prepared).unwrap();
    let found = fs::metadata(path("leaf.vhd")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1234, 5678, 0o640));
}

/// It would have to be copied.
#[test]
fn a_base_in_another_folder_does_not_take_the_name_of_a_volume() {
    let folder = scratch::folder();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("bases")).unwrap();
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("bases/base.vhd"), &NewImage::new(ByteCount(4 << 20), kind), Existing::Keep).unwrap();
    Image::open_writable(&path("bases/base.vhd")).unwrap().set_hidden(true).unwrap();
    child(&path("leaf.vhd"), &path("bases/base.vhd"));
    let repository = repository(&path("leaf.vhd"));
    let error = Coalesce::prepare(&repository, &request(&path("leaf.vhd"), None)).unwrap_err();
    assert!(matches!(error, CoalesceError::OtherFolder { .. }), "{error}");
}

#[test]
fn the_newest_version_of_a_sector_wins() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let before = hash(&path("leaf.vhd"));
    execute(&request(&path("leaf.vhd"), Some(&path("base.vhd")))).unwrap();
    assert_eq!(hash(&path("leaf.vhd")), before);
    assert_eq!(contents(folder.path()).len(), 1);
    assert_eq!(testkit::peers::qemu_sha256(&path("leaf.vhd")), before, "qemu reads the merged image");
    assert_eq!(testkit::peers::vhdi_sha256(&[&path("leaf.vhd")]), before, "libvhdi reads the merged image");
}

#[test]
fn what_would_harm_somebody_is_refused_and_nothing_is_changed() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let before = contents(folder.path());
    let refused = |node: &str, into: Option<&str>| {
        let into = into.map(path);
        let error = execute(&request(&path(node), into.as_deref())).unwrap_err();
        assert!(contents(folder.path()) == before, "{error}");
        error
    };
    for into in [None, Some("base.vhd")] {
        let error = refused("leaf.vhd", into);
        assert!(matches!(&error, CoalesceError::OtherChild { child, .. } if child.ends_with("sibling.vhd")), "{error}");
    }
    assert!(matches!(refused("base.vhd", None), CoalesceError::NoParent { .. }));
    assert!(matches!(refused("mid.vhd", Some("leaf.vhd")), CoalesceError::NotAnAncestor { .. }));
    for busy in ["base.vhd", "mid.vhd", "leaf.vhd"] {
        let user = Image::open_writable(&path(busy)).unwrap();
        let error = execute(&request(&path("mid.vhd"), None)).unwrap_err();
        // A file that a writer holds is not read past it.
        drop(user);
        assert!(format!("{error}: {:?}", std::error::Error::source(&error)).contains(busy), "{error}");
        assert!(contents(folder.path()) == before, "{error}");
    }
}

#[test]
fn a_damaged_child_still_counts_as_a_child() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let mut broken = fs::read(path("sibling.vhd")).unwrap();
    let end = broken.len() - 512;
    broken[..512].fill(0);
    broken[end..].fill(0);
    fs::write(path("sibling.vhd"), broken).unwrap();
    let error = execute(&request(&path("leaf.vhd"), None)).unwrap_err();
    assert!(matches!(&error, CoalesceError::OtherChild { child, .. } if child.ends_with("sibling.vhd")), "{error}");
}

/// It shares its parent with others; that it holds nothing changes nothing about that.
#[test]
fn an_empty_volume_beside_others_is_not_merged_away() {
    let folder = golden::unpack(&["base.vhd"]);
    let path = |name: &str| folder.path().join(name);
    worker::snapshot(&path("base.vhd"), &path("snap.vhd")).unwrap();
    let error = execute(&request(&path("snap.vhd"), None)).unwrap_err();
    assert!(matches!(error, CoalesceError::OtherChild { .. }), "{error}");
    assert!(path("snap.vhd").exists());
}

fn fill(path: &Path, blocks: std::ops::Range<u64>, tag: u16) {
    let volume = Volume::open(path, &ChainOptions::default()).unwrap();
    for block in blocks {
        let range = SectorRange::new(Sector(block * 4096), SectorCount(4096));
        volume.write(range, &pattern::fill(range, tag)).unwrap();
    }
    volume.close().unwrap();
}

#[test]
fn what_does_not_fit_is_refused_with_the_shortfall() {
    let disk = Tmpfs::new(ByteCount(20 << 20));
    let path = |name: &str| disk.path().join(name);
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
    fill(&path("v.vhd"), 0..2, 1);
    worker::snapshot(&path("v.vhd"), &path("s.vhd")).unwrap();
    fs::remove_file(path("s.vhd")).unwrap();
    fill(&path("v.vhd"), 3..7, 2);
    let before = contents(disk.path());
    let keep = Request { keep: true, ..request(&path("v.vhd"), None) };
    let error = execute(&keep).unwrap_err();
    let CoalesceError::NoSpace { needed, free, .. } = &error else { panic!("{error}") };
    assert!(needed.0 > 8 << 20 && free < needed, "{error}");
    assert!(contents(disk.path()) == before);
    // Nor is there room for the first step.
    disk.leave_free(ByteCount(2 << 20));
    let error = execute(&request(&path("v.vhd"), None)).unwrap_err();
    assert!(matches!(error, CoalesceError::NoSpace { .. }), "{error}");
    assert!(contents(disk.path()) == before);
    assert_eq!(testkit::scene::state_files(disk.path()), [""; 0]);
}

/// Much goes into holes of blocks that are there already, which the plan cannot know: space runs out on the way. The
/// target has its footer at the end all the same.
#[test]
fn a_disk_that_fills_up_in_mid_merge_loses_nothing() {
    let disk = Tmpfs::new(ByteCount(20 << 20));
    let path = |name: &str| disk.path().join(name);
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
    let volume = Volume::open(&path("v.vhd"), &ChainOptions::default()).unwrap();
    for block in 0..8 {
        volume.write(SectorRange::new(Sector(block * 4096), SectorCount(8)), &[1; 4096]).unwrap();
    }
    volume.close().unwrap();
    worker::snapshot(&path("v.vhd"), &path("s.vhd")).unwrap();
    fs::remove_file(path("s.vhd")).unwrap();
    fill(&path("v.vhd"), 0..6, 2);
    fill(&path("v.vhd"), 9..10, 2);
    let (before, layers_before) = (hash(&path("v.vhd")), layers(&path("v.vhd")));
    let error = execute(&request(&path("v.vhd"), None)).unwrap_err();
    assert!(matches!(error, CoalesceError::Merge(_)), "{error}");
    assert_eq!(hash(&path("v.vhd")), before);
    assert_eq!(layers(&path("v.vhd")), layers_before);
    for path in &layers_before {
        let report = vhd_core::check::file(path).unwrap();
        assert!(report.worst() < Some(vhd_core::check::Severity::Warning), "{:?}", report.findings());
    }

    disk.leave_free(ByteCount(40 << 20));
    let repository = repository(&path("v.vhd"));
    let prepared = Coalesce::prepare(&repository, &request(&path("v.vhd"), None)).unwrap();
    assert_eq!(prepared.ending(), &Ending::TakeName);
    worker::execute(prepared).unwrap();
    assert_eq!(hash(&path("v.vhd")), before);
}

/// Data begins with a page: a bitmap takes the whole page before it.
#[test]
fn a_plan_tells_the_space_that_new_blocks_take() {
    for block_size in [4096, 64 << 10, 2 << 20] {
        let disk = Tmpfs::new(ByteCount(64 << 20));
        let path = |name: &str| disk.path().join(name);
        let kind = NewKind::Dynamic { block_size: BlockSize::new(block_size).unwrap() };
        create_file(&path("v.vhd"), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
        worker::snapshot(&path("v.vhd"), &path("s.vhd")).unwrap();
        fs::remove_file(path("s.vhd")).unwrap();
        fill(&path("v.vhd"), 1..9, 2);
        let repository = repository(&path("v.vhd"));
        let prepared = Coalesce::prepare(&repository, &request(&path("v.vhd"), None)).unwrap();
        let (target, needed) = (prepared.target().to_path_buf(), prepared.plan().space_needed);
        let space = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
        let before = space(&target);
        worker::execute(prepared).unwrap();
        let taken = space(&path("v.vhd")) - before;
        // The table of blocks, and the border pages, are beside them.
        assert!(needed.0 <= taken && taken <= needed.0 + 128 * 1024, "{needed} for {taken} of {block_size}");
    }
}

fn child(path: &Path, parent: &Path) {
    let image = Image::open(parent, Lock::None).unwrap();
    let link = ParentLink::new(path.parent().unwrap(), parent, image.footer().unique_id()).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link };
    create_file(path, &NewImage::new(image.footer().current_size(), kind), Existing::Keep).unwrap();
}

fn refused_for(error: &CoalesceError, name: &str) {
    let named = matches!(error, CoalesceError::OtherChild { child, .. } if child.ends_with(name));
    assert!(named, "{error}");
}

#[test]
fn children_count_whatever_they_are_called_and_wherever_they_lie() {
    let folder = golden::unpack(&["base.vhd"]);
    let real = folder.path().canonicalize().unwrap();
    let path = |name: &str| real.join(name);
    fs::create_dir(path("bases")).unwrap();
    fs::rename(path("base.vhd"), path("bases/base")).unwrap();
    let anywhere = ChainOptions { parents: vhd_core::ParentPlaces::Anywhere, ..ChainOptions::default() };
    child(&path("node.vhd"), &path("bases/base"));
    for sibling in ["sibling.avhd", "sibling", ".sibling.vhd", "bases/sibling.vhd"] {
        child(&path(sibling), &path("bases/base"));
        fill_with(&path("node.vhd"), &anywhere);
        let keep = Request { keep: true, ..request(&path("node.vhd"), None) };
        refused_for(&worker::coalesce(&keep, &anywhere).unwrap_err(), sibling.rsplit('/').next().unwrap());
        fs::remove_file(path(sibling)).unwrap();
    }
    let raw = path("bases/raw.img");
    fs::write(&raw, vec![3; 1 << 20]).unwrap();
    for name in ["on-raw.vhd", "beside.vhd"] {
        let link = ParentLink::new(&real, &raw, vhd_core::Uuid::nil()).unwrap();
        let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link };
        create_file(&path(name), &NewImage::new(ByteCount(1 << 20), kind), Existing::Keep).unwrap();
        fill_with(&path(name), &anywhere);
    }
    let keep = Request { keep: true, ..request(&path("on-raw.vhd"), None) };
    refused_for(&worker::coalesce(&keep, &anywhere).unwrap_err(), "beside.vhd");
}

/// A merge up leaves nothing in the sources' place that could be kept.
#[test]
fn a_node_that_is_merged_into_is_not_kept_beside_it() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let before = (hash(&path("mid.vhd")), layers(&path("mid.vhd")));
    let up = Request { keep: true, direction: Direction::Up, ..request(&path("mid.vhd"), None) };
    let error = execute(&up).unwrap_err();
    assert!(matches!(error, CoalesceError::KeepUp), "{error}");
    assert_eq!((hash(&path("mid.vhd")), layers(&path("mid.vhd"))), before);
}

fn fill_with(path: &Path, options: &ChainOptions) {
    let volume = Volume::open(path, options).unwrap();
    volume.write(SectorRange::new(Sector(0), SectorCount(1)), &[7; 512]).unwrap();
    volume.close().unwrap();
}

/// A child of the node itself that cannot be read cannot be relinked either.
#[test]
fn a_node_with_a_damaged_child_is_kept() {
    for damage in [|bytes: &mut Vec<u8>| bytes.truncate(1540), |bytes: &mut Vec<u8>| bytes[512 + 700] ^= 1] {
        let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
        let path = |name: &str| folder.path().join(name);
        let mut bytes = fs::read(path("sibling.vhd")).unwrap();
        damage(&mut bytes);
        fs::write(path("sibling.vhd"), bytes).unwrap();
        let error = execute(&request(&path("mid.vhd"), None)).unwrap_err();
        assert!(error.to_string().contains("sibling.vhd"), "{error}");
        assert!(path("mid.vhd").exists());
    }
}

#[test]
fn an_interrupted_resize_is_not_merged() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let path = folder.path().join("mid.vhd");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len() - 512;
    for at in [0, end] {
        bytes[at..at + 8].copy_from_slice(b"v_poison");
        bytes[at + 64..at + 68].fill(0);
        let sum: u32 = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let error = execute(&request(&path, None)).unwrap_err().to_string();
    assert!(error.contains("resize was interrupted"), "{error}");
    assert!(path.exists());
}

/// A copy of an image has its id, and perhaps another content.
#[test]
fn copies_are_not_taken_for_each_other() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let path = |name: &str| folder.path().join(name);
    fs::copy(path("mid.vhd"), path("copy.bak")).unwrap();
    refused_for(&execute(&request(&path("mid.vhd"), None)).unwrap_err(), "copy.bak");
    fs::remove_file(path("copy.bak")).unwrap();

    fs::copy(path("base.vhd"), path("copy.bak")).unwrap();
    let unique_id = Image::open(&path("mid.vhd"), Lock::None).unwrap().footer().unique_id();
    fs::create_dir(path("elsewhere")).unwrap();
    fs::copy(path("mid.vhd"), path("elsewhere/mid.vhd")).unwrap();
    let link = ParentLink::new(folder.path(), &path("elsewhere/mid.vhd"), unique_id).unwrap();
    let mut leaf = Image::open_writable(&path("leaf.vhd")).unwrap();
    leaf.relink(&link).unwrap();
    leaf.close().unwrap();
    refused_for(&execute(&request(&path("mid.vhd"), None)).unwrap_err(), "leaf.vhd");
}

/// Others know nothing of our locks.
#[test]
fn a_child_that_somebody_makes_meanwhile_is_not_orphaned() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let repository = repository(&path("mid.vhd"));
    let prepared = Coalesce::prepare(&repository, &request(&path("mid.vhd"), None)).unwrap();
    golden::unpack_into(folder.path(), &["sibling.vhd"]);
    let before = hash(&path("sibling.vhd"));
    let outcome = worker::execute(prepared).unwrap();
    assert_eq!(outcome.relinked.len(), 2, "{outcome:?}");
    assert_eq!(hash(&path("sibling.vhd")), before);
}

/// Between plan and end nobody writes to the run or makes children of it; all our own ways ask for the lock.
#[test]
fn a_prepared_run_stays_as_it_is() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let repository = repository(&path("mid.vhd"));
    let prepared = Coalesce::prepare(&repository, &request(&path("mid.vhd"), None)).unwrap();
    for name in ["base.vhd", "mid.vhd"] {
        Volume::open(&path(name), &ChainOptions::default()).unwrap_err();
        repository.snapshot(&path(name), &path("new.vhd")).unwrap_err();
    }
    assert!(vhd_core::FileStorage::open(&path("mid.vhd"), Lock::Shared).is_err());
    // The volume above the run goes on being used, and its snapshots are part of what follows the merge.
    Volume::open(&path("leaf.vhd"), &ChainOptions::default()).unwrap().close().unwrap();
    let before = hash(&path("leaf.vhd"));
    repository.snapshot(&path("leaf.vhd"), &path("new.vhd")).unwrap();
    worker::execute(prepared).unwrap();
    assert_eq!([hash(&path("leaf.vhd")), hash(&path("new.vhd"))], [before.clone(), before]);
    assert!(!path("mid.vhd").exists());
}

#[test]
fn a_leaf_that_has_grown_costs_no_more_than_its_data() {
    let mut repository = Model::default();
    repository.create(Start::Dynamic(BlockSize::DEFAULT), 8192);
    let volume = repository.volumes().remove(0);
    for round in 1..3 {
        write(&mut repository, &volume, 5, 8, round);
        repository.snapshot(&volume);
        let twin = repository.volumes().into_iter().find(|path| *path != volume).unwrap();
        repository.delete(&twin);
    }
    let mut grown = Volume::open(&volume, &ChainOptions::default()).unwrap();
    grown.set_size(ByteCount(20 << 30)).unwrap();
    grown.write(SectorRange::new(Sector(39_000_000), SectorCount(8)), &[4; 4096]).unwrap();
    grown.close().unwrap();
    let base = layers(&volume).pop().unwrap();
    let opened = worker::repository_of(&volume, &ChainOptions::default());
    let prepared = Coalesce::prepare(&opened, &request(&volume, Some(&base))).unwrap();
    assert_eq!(prepared.plan().new_blocks, 1);
    assert_eq!(prepared.plan().zeros, ByteCount(0));
    worker::execute(prepared).unwrap();
    let chain = Chain::open(&volume, &ChainOptions::default()).unwrap();
    let mut bytes = [0; 4096];
    chain.read(SectorRange::new(Sector(39_000_000), SectorCount(8)), &mut bytes).unwrap();
    assert_eq!(bytes, [4; 4096]);
    assert_eq!(chain.extents(SectorRange::new(Sector(0), chain.sectors())).count(), 5);
}

/// A merge into a device changes its content; its name, and those of other devices, are not ours.
#[test]
fn devices_are_neither_renamed_nor_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let device = testkit::loop_device::LoopDevice::new(&folder.path().join("disk"), 1 << 20);
    let path = |name: &str| folder.path().join(name);
    let link = ParentLink::new(folder.path(), &device.path, vhd_core::Uuid::nil()).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link };
    create_file(&path("node.vhd"), &NewImage::new(ByteCount(1 << 20), kind), Existing::Keep).unwrap();
    child(&path("leaf.vhd"), &path("node.vhd"));
    let options = ChainOptions { parents: vhd_core::ParentPlaces::Anywhere, ..ChainOptions::default() };
    fill_with(&path("node.vhd"), &options);
    let request = request(&path("node.vhd"), None);
    let error = worker::coalesce(&request, &options).unwrap_err();
    assert!(matches!(error, CoalesceError::Device { .. }), "{error}");
    assert!(path("node.vhd").exists());
    worker::coalesce(&Request { keep: true, ..request }, &options).unwrap();
    assert_eq!(fs::read(&device.path).unwrap()[..512], [7; 512]);
}
