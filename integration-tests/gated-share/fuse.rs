//! The kernel's requests, each on a thread of its own: one that hangs at the gate holds up no other, and whoever waits for it
//! cannot be killed, as with a file server that is away.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Filesystem, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow,
};

use crate::files::{Caller, Change, Files};
use crate::gate::Gate;

/// Nothing is remembered by the kernel: each look goes to the server.
const TTL: Duration = Duration::ZERO;

/// For an error that has no number.
const EIO: i32 = 5;

pub(crate) struct Share {
    files: Arc<Files>,
    gate: Arc<Gate>,
}

trait Refuse: Send + 'static {
    fn refuse(self, errno: i32);
}

macro_rules! refuse {
    ($($reply:ty),+) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: i32) {
                self.error(errno);
            }
        })+
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite
);

impl Share {
    pub(crate) fn new(files: Files, gate: Arc<Gate>) -> Self {
        Self { files: Arc::new(files), gate }
    }

    /// Does `work` when the gate lets it, and answers.
    fn go<R: Refuse, T>(
        &self,
        reply: R,
        work: impl FnOnce(&Files) -> io::Result<T> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        let (files, gate) = (Arc::clone(&self.files), Arc::clone(&self.gate));
        std::thread::spawn(move || {
            let number = |error: io::Error| error.raw_os_error().unwrap_or(EIO);
            match gate.pass().and_then(|()| work(&files).map_err(number)) {
                Ok(done) => answer(reply, done),
                Err(errno) => reply.refuse(errno),
            }
        });
    }
}

fn caller(request: &Request<'_>) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

fn at(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or_default()
}

impl Filesystem for Share {
    fn lookup(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.go(reply, move |f| f.lookup(parent, &name), |reply, attr| reply.entry(&TTL, &attr, 0));
    }

    fn forget(&mut self, _: &Request<'_>, ino: u64, lookups: u64) {
        self.files.forget(ino, lookups);
    }

    fn getattr(&mut self, _: &Request<'_>, ino: u64, _: Option<u64>, reply: ReplyAttr) {
        self.go(reply, move |f| f.attr(ino), |reply, attr| reply.attr(&TTL, &attr));
    }

    fn setattr(
        &mut self,
        _: &Request<'_>,
        ino: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<u64>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<u32>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, accessed, modified };
        self.go(reply, move |f| f.change(ino, change), |reply, attr| reply.attr(&TTL, &attr));
    }

    fn readlink(&mut self, _: &Request<'_>, ino: u64, reply: ReplyData) {
        self.go(reply, move |f| f.target(ino), |reply, target| reply.data(&target));
    }

    fn mkdir(
        &mut self,
        request: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let (name, caller) = (name.to_owned(), caller(request));
        let work = move |f: &Files| f.make_dir(parent, &name, mode, caller);
        self.go(reply, work, |reply, attr| reply.entry(&TTL, &attr, 0));
    }

    fn unlink(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.go(reply, move |f| f.remove(parent, &name, false), |reply, ()| reply.ok());
    }

    fn rmdir(&mut self, _: &Request<'_>, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.go(reply, move |f| f.remove(parent, &name, true), |reply, ()| reply.ok());
    }

    fn symlink(
        &mut self,
        request: &Request<'_>,
        parent: u64,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target, caller) = (name.to_owned(), target.to_owned(), caller(request));
        let work = move |f: &Files| f.make_link(parent, &name, &target, caller);
        self.go(reply, work, |reply, attr| reply.entry(&TTL, &attr, 0));
    }

    fn rename(
        &mut self,
        _: &Request<'_>,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: u32,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let work = move |f: &Files| f.rename((parent, &name), (new_parent, &new_name), flags);
        self.go(reply, work, |reply, ()| reply.ok());
    }

    fn link(&mut self, _: &Request<'_>, ino: u64, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.go(reply, move |f| f.link(ino, parent, &name), |reply, attr| reply.entry(&TTL, &attr, 0));
    }

    fn create(
        &mut self,
        request: &Request<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, caller) = (name.to_owned(), caller(request));
        let work = move |f: &Files| f.create(parent, &name, (mode, flags), caller);
        self.go(reply, work, |reply, (attr, handle)| reply.created(&TTL, &attr, 0, handle, 0));
    }

    fn open(&mut self, _: &Request<'_>, ino: u64, flags: i32, reply: ReplyOpen) {
        self.go(reply, move |f| f.open(ino, flags), |reply, handle| reply.opened(handle, 0));
    }

    fn read(
        &mut self,
        _: &Request<'_>,
        _: u64,
        handle: u64,
        offset: i64,
        size: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyData,
    ) {
        let work = move |f: &Files| f.read(handle, at(offset), size);
        self.go(reply, work, |reply, data| reply.data(&data));
    }

    fn write(
        &mut self,
        _: &Request<'_>,
        _: u64,
        handle: u64,
        offset: i64,
        data: &[u8],
        _: u32,
        _: i32,
        _: Option<u64>,
        reply: ReplyWrite,
    ) {
        let data = data.to_owned();
        let work = move |f: &Files| f.write(handle, at(offset), &data);
        self.go(reply, work, |reply, written| reply.written(written));
    }

    fn flush(&mut self, _: &Request<'_>, _: u64, _: u64, _: u64, reply: ReplyEmpty) {
        self.go(reply, |_| Ok(()), |reply, ()| reply.ok());
    }

    fn release(
        &mut self,
        _: &Request<'_>,
        _: u64,
        handle: u64,
        _: i32,
        _: Option<u64>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.files.close(handle);
        reply.ok();
    }

    fn fsync(&mut self, _: &Request<'_>, _: u64, handle: u64, _: bool, reply: ReplyEmpty) {
        self.go(reply, move |f| f.sync(handle), |reply, ()| reply.ok());
    }

    fn opendir(&mut self, _: &Request<'_>, ino: u64, _: i32, reply: ReplyOpen) {
        self.go(reply, move |f| f.open_dir(ino), |reply, handle| reply.opened(handle, 0));
    }

    fn readdir(&mut self, _: &Request<'_>, _: u64, handle: u64, offset: i64, reply: ReplyDirectory) {
        let skip = usize::try_from(offset).unwrap_or_default();
        let answer = move |mut reply: ReplyDirectory, names: Vec<crate::files::Name>| {
            for (next, name) in (1..).zip(names).skip(skip) {
                if reply.add(name.ino, next, name.kind, name.name) {
                    break;
                }
            }
            reply.ok();
        };
        self.go(reply, move |f| f.names(handle), answer);
    }

    fn releasedir(&mut self, _: &Request<'_>, _: u64, handle: u64, _: i32, reply: ReplyEmpty) {
        self.files.close(handle);
        reply.ok();
    }

    fn fsyncdir(&mut self, _: &Request<'_>, ino: u64, _: u64, _: bool, reply: ReplyEmpty) {
        self.go(reply, move |f| f.sync_dir(ino), |reply, ()| reply.ok());
    }

    fn statfs(&mut self, _: &Request<'_>, _: u64, reply: ReplyStatfs) {
        self.go(reply, Files::space, |reply, space| {
            let size = u32::try_from(space.f_frsize).unwrap_or_default();
            let longest = u32::try_from(space.f_namemax).unwrap_or_default();
            let (blocks, free, available) = (space.f_blocks, space.f_bfree, space.f_bavail);
            reply.statfs(blocks, free, available, space.f_files, space.f_ffree, size, longest, size);
        });
    }
}
