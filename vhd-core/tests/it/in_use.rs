//! Files that other programs have open, which take no locks.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhd_core::{
    BlockSize, ByteCount, Existing, FileOffset, FileStorage, Image, Lock, NewImage, NewKind, OpenError, Storage,
    create_file,
};

use super::sectors;

/// A program that has a file open, by `<` for reading or `<>` for writing, too.
struct Opener(Child);

impl Opener {
    fn start(path: &Path, how: &str) -> Self {
        let script = format!("exec 3{how}'{}' && echo open && exec sleep 1000", path.display());
        let child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn();
        Self(child.unwrap())
    }

    /// Waits until it has the file open.
    fn opened(mut self) -> Self {
        use std::io::Read;
        let mut line = [0; 5];
        self.0.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        self
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scene() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = testkit::scratch::folder();
    let path = folder.path().join("disk.vhd");
    let new = NewImage::new(ByteCount(16 << 20), NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    create_file(&path, &new, Existing::Keep).unwrap();
    (folder, path)
}

fn is_busy(result: Result<Image<vhd_core::ReadWrite>, OpenError>) -> bool {
    matches!(result, Err(OpenError::Storage(error)) if error.source.kind() == ErrorKind::ResourceBusy)
}

/// A flag that is raised when this goes, also by a panic.
struct RaisedAtEnd<'f>(&'f AtomicBool);

impl Drop for RaisedAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_file_that_another_program_has_open_is_not_written() {
    let (_folder, path) = scene();
    for how in ["<", "<>"] {
        let before = fs::read(&path).unwrap();
        let opener = Opener::start(&path, how).opened();
        assert!(FileStorage::is_in_use(&path).unwrap(), "{how}");
        assert!(is_busy(Image::open_writable(&path)), "{how}");
        let beside = Image::open_writable_beside(&path).unwrap();
        assert!(beside.container().is_open_elsewhere().unwrap());
        drop(beside);
        drop(opener);
        assert_eq!(fs::read(&path).unwrap(), before);
        assert!(!FileStorage::is_in_use(&path).unwrap());
        let image = Image::open_writable(&path).unwrap();
        assert!(!image.container().is_open_elsewhere().unwrap());
    }
}

#[test]
fn who_wants_a_file_is_told_of_waits_and_gets_it() {
    let (_folder, path) = scene();
    let image = Image::open_writable(&path).unwrap();
    image.write(sectors(8, 1), &[1; 512]).unwrap();
    assert!(!image.container().is_wanted());
    let opener = Opener::start(&path, "<");
    until("the opener is announced", || image.container().is_wanted());
    // What is open can be brought to an end.
    image.write(sectors(9, 1), &[2; 512]).unwrap();
    let storage = image.container().clone();
    image.close().unwrap();
    drop(storage);
    let _opener = opener.opened();
    assert!(is_busy(Image::open_writable(&path)));
}

#[test]
fn a_process_looks_at_its_own_files_without_giving_them_up() {
    let (_folder, path) = scene();
    let image = Image::open_writable(&path).unwrap();
    image.write(sectors(8, 1), &[1; 512]).unwrap();
    image.flush().unwrap();
    let read = Image::open(&path, Lock::None).unwrap();
    assert_eq!(read.allocated_blocks().count(), 1);
    let link = path.with_file_name("link.vhd");
    fs::hard_link(&path, &link).unwrap();
    assert_eq!(Image::open(&link, Lock::None).unwrap().allocated_blocks().count(), 1, "under another name, too");
    assert!(is_busy(Image::open_writable(&path)));
    assert!(Image::open(&path, Lock::Shared).is_err());
    assert!(FileStorage::is_in_use(&path).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    assert!(!image.container().is_wanted());
    drop(read);
    image.close().unwrap();
    Image::open_writable(&path).unwrap().close().unwrap();
}

#[test]
fn other_programs_are_found_where_the_process_itself_has_a_second_descriptor() {
    let (_folder, path) = scene();
    let own = Image::open(&path, Lock::None).unwrap();
    let image = Image::open_writable(&path).unwrap();
    let opener = Opener::start(&path, "<").opened();
    until("the other program is found", || image.container().is_wanted());
    drop(image);
    assert!(is_busy(Image::open_writable(&path)));
    drop(opener);
    Image::open_writable(&path).unwrap().close().unwrap();
    drop(own);
}

#[test]
fn devices_are_looked_for_among_the_descriptors_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let device = testkit::loop_device::LoopDevice::new(&folder.path().join("disk"), 8 << 20);
    let opener = Opener::start(&device.path, "<").opened();
    let error = FileStorage::open_writable(&device.path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
    drop(opener);
    let storage = FileStorage::open_writable(&device.path).unwrap();
    storage.write_at(&[1; 512], FileOffset(0)).unwrap();
    // What a loop device is made of has no descriptor in any process.
    let error = FileStorage::open_writable(&folder.path().join("disk")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy, "{error}");
}

#[test]
fn those_who_only_look_do_not_stop_a_writer() {
    let (_folder, path) = scene();
    let image = Image::open_writable(&path).unwrap();
    // As other processes of this library open files: without waiting, again and again.
    let script = "import os, sys, time\n\
        seen = 0\n\
        while seen < 30:\n\
        \x20   try:\n\
        \x20       os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)); seen += 1\n\
        \x20   except BlockingIOError:\n\
        \x20       time.sleep(0.002)\n";
    let mut looker = Command::new("python3").args(["-c", script]).arg(&path).spawn().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Two threads, of which one may look while the other renews the lease.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(!image.container().is_wanted());
            }
        });
        let _raised = RaisedAtEnd(&done);
        let mut block = 0;
        until("it has had its looks", || {
            block += 1;
            image.write(sectors(block % 4096, 1), &[3; 512]).unwrap();
            assert!(!image.container().is_wanted());
            looker.try_wait().unwrap().is_some_and(|status| status.success())
        });
    });
    image.close().unwrap();
}

#[test]
fn one_who_stays_without_having_waited_stops_a_writer_at_once() {
    let (_folder, path) = scene();
    let image = Image::open_writable(&path).unwrap();
    image.write(sectors(8, 1), &[1; 512]).unwrap();
    image.flush().unwrap();
    let script = "import os, sys, time\n\
        while True:\n\
        \x20   try:\n\
        \x20       os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK); break\n\
        \x20   except BlockingIOError:\n\
        \x20       time.sleep(0.002)\n\
        time.sleep(1000)\n";
    let _opener = Opener(Command::new("python3").args(["-c", script]).arg(&path).spawn().unwrap());
    let mut block = 0;
    until("it is refused", || {
        block += 1;
        image.write(sectors(4096 + block, 1), &[3; 512]).is_err()
    });
    assert!(image.container().is_wanted());
    drop(image);
    assert_eq!(Image::open(&path, Lock::None).unwrap().allocated_blocks().count(), 1, "what was durable is there");
}

#[test]
fn those_who_only_look_wait_for_no_writer_that_does_nothing() {
    let (_folder, path) = scene();
    let image = Image::open_writable(&path).unwrap();
    let script = "import os, sys, time\n\
        start = time.monotonic()\n\
        while True:\n\
        \x20   try:\n\
        \x20       os.close(os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)); break\n\
        \x20   except BlockingIOError:\n\
        \x20       assert time.monotonic() - start < 5\n\
        \x20       time.sleep(0.002)\n";
    assert!(Command::new("python3").args(["-c", script]).arg(&path).status().unwrap().success());
    image.write(sectors(8, 1), &[1; 512]).unwrap();
    image.close().unwrap();
}
