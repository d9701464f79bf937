//! What answers the kernel.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno as Answer, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::Refusal;
use super::server::{Handle, Server, answer};

/// Nothing is remembered by the kernel.
const NOT_AT_ALL: Duration = Duration::ZERO;
fn done(result: io::Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(answer(&error)),
    }
}

fn described(result: io::Result<FileAttr>, reply: ReplyAttr) {
    match result {
        Ok(attr) => reply.attr(&NOT_AT_ALL, &attr),
        Err(error) => reply.error(answer(&error)),
    }
}

fn entered(result: io::Result<FileAttr>, reply: ReplyEntry) {
    match result {
        Ok(attr) => reply.entry(&NOT_AT_ALL, &attr, Generation(0)),
        Err(error) => reply.error(answer(&error)),
    }
}

fn opened(result: io::Result<FileHandle>, reply: ReplyOpen) {
    match result {
        Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
        Err(error) => reply.error(answer(&error)),
    }
}

/// An answer whose length may be asked for first.
fn sized(result: io::Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Answer::from_i32(Errno::RANGE.raw_os_error())),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(answer(&error)),
    }
}

/// The most that an extended attribute, or a list of them, may hold.
const MOST: usize = 64 << 10;

fn filled(fill: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; MOST];
    let length = fill(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec { tv_sec: since.as_secs().cast_signed(), tv_nsec: since.subsec_nanos().into() }
        }
    }
}

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.locks_itself() {
            config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS).map_err(|_| Errno::NOSYS)?;
        }
        if self.refuses(Refusal::FineTimes) {
            config.set_time_granularity(Duration::from_secs(1)).map_err(|_| Errno::INVAL)?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entered(self.nodes.look_up(parent, name), reply);
    }

    fn forget(&self, _: &Request, number: INodeNo, times: u64) {
        self.nodes.forget(number, times);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        described(self.nodes.find(number).and_then(|node| Ok(self.nodes.attr(&node.file().metadata()?))), reply);
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.nodes.find(number).and_then(|node| {
            let path = node.path();
            if let Some(mode) = mode {
                fs::set_permissions(&path, Permissions::from_mode(mode))?;
            }
            if uid.is_some() || gid.is_some() {
                chown(&path, uid, gid)?;
            }
            match (size, handle) {
                (Some(size), Some(handle)) => self.with(handle, |file| file.set_len(size))?,
                (Some(size), None) => File::options().write(true).open(&path)?.set_len(size)?,
                _ => {}
            }
            if atime.is_some() || mtime.is_some() {
                let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
                rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
            }
            Ok(self.nodes.attr(&node.file().metadata()?))
        });
        described(changed, reply);
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let read = self.nodes.find(number).and_then(|node| Ok(rustix::fs::readlinkat(node.file(), "", Vec::new())?));
        match read {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, device: u32, reply: ReplyEntry) {
        let made = self.nodes.name(parent, name).and_then(|path| {
            let kind = rustix::fs::FileType::from_raw_mode(mode);
            Ok(rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(mode), device.into())?)
        });
        entered(made.and_then(|()| self.nodes.look_up(parent, name)), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let made = self.nodes.name(parent, name);
        let made = made.and_then(|path| Ok(rustix::fs::mkdir(path, Mode::from_raw_mode(mode))?));
        entered(made.and_then(|()| self.nodes.look_up(parent, name)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.nodes.name(parent, name).and_then(fs::remove_file), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(self.nodes.name(parent, name).and_then(fs::remove_dir), reply);
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.check(Refusal::Symlinks, Errno::PERM).and_then(|()| self.nodes.name(parent, name));
        let made = made.and_then(|path| symlink(target, path));
        entered(made.and_then(|()| self.nodes.look_up(parent, name)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = (|| {
            if !flags.is_empty() {
                self.check(Refusal::RenameFlags, Errno::INVAL)?;
            }
            let (from, to) = (self.nodes.name(parent, name)?, self.nodes.name(new_parent, new_name)?);
            let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
            Ok(rustix::fs::renameat_with(CWD, from, CWD, to, flags)?)
        })();
        done(renamed, reply);
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = (|| {
            self.refusal(|it| if let Refusal::HardLinks(errno) = it { Some(*errno) } else { None })?;
            let (from, to) = (self.nodes.find(number)?.path(), self.nodes.name(parent, name)?);
            rustix::fs::linkat(CWD, from, CWD, to, AtFlags::SYMLINK_FOLLOW)?;
            self.nodes.look_up(parent, name)
        })();
        entered(linked, reply);
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        opened(self.nodes.find(number).and_then(|node| self.open_as(&node.path(), flags, None)), reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let created = (|| {
            let handle = self.open_as(&self.nodes.name(parent, name)?, OpenFlags(flags), Some(mode))?;
            Ok((handle, self.nodes.look_up(parent, name)?))
        })();
        match created {
            Ok((handle, attr)) => {
                reply.created(&NOT_AT_ALL, &attr, Generation(0), handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.with(handle, |file| file.read_at(&mut bytes, offset)) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(handle, |file| file.write_at(data, offset)) {
            Ok(length) => reply.written(length as u32),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.drop_handle(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        done(self.with(handle, |file| if data_only { file.sync_data() } else { file.sync_all() }), reply);
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(self.list(number).map(|listed| self.keep(listed)), reply);
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.handle(handle).as_deref() {
            Ok(Handle::Folder(entries)) => {
                for (at, (number, kind, name)) in entries.iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(*number), at as u64 + 1, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            _ => reply.error(Answer::from_i32(Errno::NOTDIR.raw_os_error())),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.drop_handle(handle);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.check(Refusal::FolderSync, Errno::INVAL);
        done(synced.and_then(|()| File::open(self.nodes.find(number)?.path())?.sync_all()), reply);
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        match self.nodes.find(number).and_then(|node| Ok(rustix::fs::statvfs(node.path())?)) {
            Ok(it) => reply.statfs(
                it.f_blocks,
                it.f_bfree,
                it.f_bavail,
                it.f_files,
                it.f_ffree,
                it.f_bsize as u32,
                it.f_namemax as u32,
                it.f_frsize as u32,
            ),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let set = self.check(Refusal::Attributes, Errno::OPNOTSUPP).and_then(|()| self.nodes.find(number));
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        done(set.and_then(|node| Ok(rustix::fs::setxattr(node.path(), name, value, flags)?)), reply);
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let found = self.check(Refusal::Attributes, Errno::OPNOTSUPP).and_then(|()| self.nodes.find(number));
        let value = found.and_then(|node| filled(|bytes| rustix::fs::getxattr(node.path(), name, bytes)));
        sized(value, size, reply);
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let found = self.check(Refusal::Attributes, Errno::OPNOTSUPP).and_then(|()| self.nodes.find(number));
        let names = found.and_then(|node| filled(|bytes| rustix::fs::listxattr(node.path(), bytes)));
        sized(names, size, reply);
    }

    fn removexattr(&self, _: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let found = self.check(Refusal::Attributes, Errno::OPNOTSUPP).and_then(|()| self.nodes.find(number));
        done(found.and_then(|node| Ok(rustix::fs::removexattr(node.path(), name)?)), reply);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        kind: i32,
        _: u32,
        _waits: bool,
        reply: ReplyEmpty,
    ) {
        done(self.lock(handle, kind), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let allowed = self
            .check(Refusal::Fallocate, Errno::OPNOTSUPP)
            .and_then(|()| if mode.is_empty() { Ok(()) } else { self.check(Refusal::Punching, Errno::OPNOTSUPP) });
        let work = |file: &File| Ok(rustix::fs::fallocate(file, mode, offset, length)?);
        done(allowed.and_then(|()| self.with(handle, work)), reply);
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let from = offset.cast_unsigned();
        // The kernel asks for nothing else.
        let from = if whence == 3 { SeekFrom::Data(from) } else { SeekFrom::Hole(from) };
        let allowed = self.check(Refusal::SeekData, Errno::INVAL);
        match allowed.and_then(|()| self.with(handle, |file| Ok(rustix::fs::seek(file, from)?))) {
            Ok(found) => reply.offset(found.cast_signed()),
            Err(error) => reply.error(answer(&error)),
        }
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        source: FileHandle,
        from: u64,
        _: INodeNo,
        target: FileHandle,
        to: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copied = (|| {
            self.refusal(|it| if let Refusal::CopyFileRange(errno) = it { Some(*errno) } else { None })?;
            let (mut from, mut to) = (from, to);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            self.with(source, |source| {
                self.with(target, |target| {
                    Ok(rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length)?)
                })
            })
        })();
        match copied {
            Ok(length) => reply.written(length as u32),
            Err(error) => reply.error(answer(&error)),
        }
    }
}
