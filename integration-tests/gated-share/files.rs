//! The directory behind the share: what each operation does there. An inode is a descriptor without rights (`O_PATH`), so that
//! nothing depends on names that change meanwhile.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, FileTimes, Metadata, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{
    DirEntryExt as _, FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FUSE_ROOT_ID, FileAttr, FileType, TimeOrNow};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, StatVfs};
use rustix::io::Errno;

/// Who asks: what is made belongs to them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What is to be changed of an inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Change {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<TimeOrNow>,
    pub(crate) modified: Option<TimeOrNow>,
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    pub(crate) name: OsString,
}

#[derive(Debug)]
enum Handle {
    File(File),
    Dir(Vec<Name>),
}

#[derive(Debug)]
struct Node {
    path_only: Arc<File>,
    lookups: u64,
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Files {
    /// Its own number; the kernel knows it by another.
    root: u64,
    nodes: Mutex<HashMap<u64, Node>>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name by which an inode can be opened again, with rights.
fn reopen(inode: &File) -> PathBuf {
    format!("/proc/self/fd/{}", inode.as_raw_fd()).into()
}

const PATH_ONLY: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Files {
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let root = File::from(rustix::fs::open(directory, PATH_ONLY, Mode::empty())?);
        let number = root.metadata()?.ino();
        let node = Node { path_only: Arc::new(root), lookups: 1 };
        Ok(Self {
            root: number,
            nodes: Mutex::new(HashMap::from([(FUSE_ROOT_ID, node)])),
            handles: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    fn number(&self, ino: u64) -> u64 {
        if ino == self.root { FUSE_ROOT_ID } else { ino }
    }

    fn inode(&self, ino: u64) -> io::Result<Arc<File>> {
        let nodes = lock(&self.nodes);
        Ok(Arc::clone(&nodes.get(&ino).ok_or(Errno::STALE)?.path_only))
    }

    fn keep(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.handles).insert(number, Arc::new(handle));
        number
    }

    fn handle(&self, number: u64) -> io::Result<Arc<Handle>> {
        Ok(Arc::clone(lock(&self.handles).get(&number).ok_or(Errno::BADF)?))
    }

    fn attr_of(&self, metadata: &Metadata) -> FileAttr {
        let time = |at: io::Result<SystemTime>| at.unwrap_or(UNIX_EPOCH);
        let changed = Duration::from_secs(metadata.ctime().try_into().unwrap_or_default());
        FileAttr {
            ino: self.number(metadata.ino()),
            size: metadata.size(),
            blocks: metadata.blocks(),
            atime: time(metadata.accessed()),
            mtime: time(metadata.modified()),
            ctime: UNIX_EPOCH + changed,
            crtime: UNIX_EPOCH,
            kind: kind_of(metadata.file_type()),
            perm: u16::try_from(metadata.mode() & 0o7777).unwrap_or_default(),
            nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    pub(crate) fn lookup(&self, parent: u64, name: &OsStr) -> io::Result<FileAttr> {
        let child = rustix::fs::openat(&*self.inode(parent)?, name, PATH_ONLY, Mode::empty())?;
        let child = File::from(child);
        let attr = self.attr_of(&child.metadata()?);
        let mut nodes = lock(&self.nodes);
        nodes.entry(attr.ino).or_insert(Node { path_only: Arc::new(child), lookups: 0 }).lookups += 1;
        Ok(attr)
    }

    pub(crate) fn forget(&self, ino: u64, lookups: u64) {
        let mut nodes = lock(&self.nodes);
        let Some(node) = nodes.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 && ino != FUSE_ROOT_ID {
            nodes.remove(&ino);
        }
    }

    pub(crate) fn attr(&self, ino: u64) -> io::Result<FileAttr> {
        Ok(self.attr_of(&self.inode(ino)?.metadata()?))
    }

    pub(crate) fn change(&self, ino: u64, change: Change) -> io::Result<FileAttr> {
        let path = reopen(&*self.inode(ino)?);
        if let Some(mode) = change.mode {
            std::fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777))?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            chown(&path, change.uid, change.gid)?;
        }
        if let Some(size) = change.size {
            File::options().write(true).open(&path)?.set_len(size)?;
        }
        let time = |time: TimeOrNow| match time {
            TimeOrNow::SpecificTime(at) => at,
            TimeOrNow::Now => SystemTime::now(),
        };
        let mut times = FileTimes::new();
        if let Some(at) = change.accessed {
            times = times.set_accessed(time(at));
        }
        if let Some(at) = change.modified {
            times = times.set_modified(time(at));
        }
        if change.accessed.is_some() || change.modified.is_some() {
            File::open(&path)?.set_times(times)?;
        }
        self.attr(ino)
    }

    pub(crate) fn target(&self, ino: u64) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&*self.inode(ino)?, "", Vec::new())?.into_bytes())
    }

    pub(crate) fn make_dir(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> io::Result<FileAttr> {
        rustix::fs::mkdirat(&*self.inode(parent)?, name, Mode::from_raw_mode(mode & 0o7777))?;
        let made = self.lookup(parent, name)?;
        let whole = Change {
            mode: Some(mode),
            uid: Some(caller.uid),
            gid: Some(caller.gid),
            size: None,
            accessed: None,
            modified: None,
        };
        self.change(made.ino, whole)
    }

    pub(crate) fn make_link(
        &self,
        parent: u64,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> io::Result<FileAttr> {
        let dir = self.inode(parent)?;
        rustix::fs::symlinkat(target, &*dir, name)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(caller.uid), rustix::fs::Gid::from_raw(caller.gid));
        rustix::fs::chownat(&*dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        self.lookup(parent, name)
    }

    pub(crate) fn link(&self, ino: u64, parent: u64, name: &OsStr) -> io::Result<FileAttr> {
        let from = reopen(&*self.inode(ino)?);
        rustix::fs::linkat(CWD, from, &*self.inode(parent)?, name, AtFlags::SYMLINK_FOLLOW)?;
        self.lookup(parent, name)
    }

    pub(crate) fn remove(&self, parent: u64, name: &OsStr, directory: bool) -> io::Result<()> {
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(rustix::fs::unlinkat(&*self.inode(parent)?, name, flags)?)
    }

    pub(crate) fn rename(
        &self,
        (from, name): (u64, &OsStr),
        (to, new_name): (u64, &OsStr),
        flags: u32,
    ) -> io::Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        Ok(rustix::fs::renameat_with(&*self.inode(from)?, name, &*self.inode(to)?, new_name, flags)?)
    }

    pub(crate) fn create(
        &self,
        parent: u64,
        name: &OsStr,
        (mode, flags): (u32, i32),
        caller: Caller,
    ) -> io::Result<(FileAttr, u64)> {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()) | OFlags::CREATE | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let file = File::from(rustix::fs::openat(&*self.inode(parent)?, name, flags, mode)?);
        rustix::fs::fchmod(&file, mode)?;
        std::os::unix::fs::fchown(&file, Some(caller.uid), Some(caller.gid))?;
        Ok((self.lookup(parent, name)?, self.keep(Handle::File(file))))
    }

    pub(crate) fn open(&self, ino: u64, flags: i32) -> io::Result<u64> {
        let unwanted = OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()).difference(unwanted) | OFlags::CLOEXEC;
        let file = rustix::fs::open(reopen(&*self.inode(ino)?), flags, Mode::empty())?;
        Ok(self.keep(Handle::File(file.into())))
    }

    pub(crate) fn read(&self, handle: u64, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let Handle::File(file) = &*self.handle(handle)? else { return Err(Errno::BADF.into()) };
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        let read = file.read_at(&mut data, offset)?;
        data.truncate(read);
        Ok(data)
    }

    pub(crate) fn write(&self, handle: u64, offset: u64, data: &[u8]) -> io::Result<u32> {
        let Handle::File(file) = &*self.handle(handle)? else { return Err(Errno::BADF.into()) };
        Ok(u32::try_from(file.write_at(data, offset)?).unwrap_or_default())
    }

    pub(crate) fn sync(&self, handle: u64) -> io::Result<()> {
        match &*self.handle(handle)? {
            Handle::File(file) => file.sync_all(),
            Handle::Dir(_) => Ok(()),
        }
    }

    pub(crate) fn sync_dir(&self, ino: u64) -> io::Result<()> {
        File::open(reopen(&*self.inode(ino)?))?.sync_all()
    }

    pub(crate) fn open_dir(&self, ino: u64) -> io::Result<u64> {
        let here = |name: &str| Name { ino, kind: FileType::Directory, name: name.into() };
        let mut names = vec![here("."), here("..")];
        for entry in std::fs::read_dir(reopen(&*self.inode(ino)?))? {
            let entry = entry?;
            let (ino, kind) = (self.number(entry.ino()), kind_of(entry.file_type()?));
            names.push(Name { ino, kind, name: entry.file_name() });
        }
        Ok(self.keep(Handle::Dir(names)))
    }

    pub(crate) fn names(&self, handle: u64) -> io::Result<Vec<Name>> {
        match &*self.handle(handle)? {
            Handle::Dir(names) => Ok(names.clone()),
            Handle::File(_) => Err(Errno::NOTDIR.into()),
        }
    }

    pub(crate) fn close(&self, handle: u64) {
        lock(&self.handles).remove(&handle);
    }

    pub(crate) fn space(&self) -> io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&*self.inode(FUSE_ROOT_ID)?)?)
    }
}

fn kind_of(kind: std::fs::FileType) -> FileType {
    if kind.is_dir() {
        FileType::Directory
    } else if kind.is_symlink() {
        FileType::Symlink
    } else if kind.is_fifo() {
        FileType::NamedPipe
    } else if kind.is_socket() {
        FileType::Socket
    } else {
        FileType::RegularFile
    }
}
