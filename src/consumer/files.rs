//! Files that survive a crash: replaced as a whole, and locked against a second bot.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error};

/// Takes the lock of `path`, which is held until the file that this returns is closed. The lock is the file `path.lock`,
/// which is never removed. In a directory that cannot be written to, where `path` cannot be replaced either, it is `path`
/// itself. Does not block.
pub(super) fn take_lock(path: &Path) -> Result<File, Error> {
    let mut lock_path = with_suffix(path, ".lock");
    let mut opened = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    if opened.as_ref().is_err_and(is_irreplaceable)
        && let Ok(file) = OpenOptions::new().write(true).open(path)
    {
        (lock_path, opened) = (path.to_owned(), Ok(file));
    }
    let file = opened.doing(format!("open the lock file {}", lock_path.display()))?;
    lock(&file, &lock_path, path)?;
    Ok(file)
}

/// Locks an open file for this process, until the file is closed. `used` names it in the error for a second bot.
pub(super) fn lock(file: &File, path: &Path, used: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::Failed(format!(
            "another trader-bot is running on {} (it holds {})",
            used.display(),
            path.display()
        ))),
        Err(TryLockError::Error(cause)) => Err(cause).doing(format!("lock {}", path.display())),
    }
}

/// The canonical path, so that every name of a file gives the same lock. Refuses a device or a pipe, which could be
/// read without end.
pub(super) fn resolved(path: &Path) -> Result<PathBuf, Error> {
    if let Ok(real) = fs::canonicalize(path) {
        let is_plain = fs::metadata(&real).is_ok_and(|metadata| metadata.is_file());
        let refusal = || Error::Failed(format!("{} is not a regular file", path.display()));
        return if is_plain { Ok(real) } else { Err(refusal()) };
    }
    let name = path.file_name().ok_or_else(|| Error::Failed(format!("{} does not name a file", path.display())))?;
    let parent = fs::canonicalize(directory(path)).doing(format!("find the directory of {}", path.display()))?;
    Ok(parent.join(name))
}

/// Replaces a file as a whole: temporary file, with `sync` onto the disk, rename. After a crash of the machine either
/// the old file is there or the new one.
pub(super) fn replace(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    let temporary = with_suffix(path, ".tmp");
    let mut file = File::create(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| if sync { file.sync_data() } else { Ok(()) });
    written.and_then(|()| fs::rename(&temporary, path)).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Whether [`replace`] may have failed because the file is a mount point or its directory is read-only.
pub(super) fn is_irreplaceable(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

/// Syncs the directory entry of `path` to the disk.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The text up to the end of its last whole line: a crash may tear the last one.
pub(super) fn whole_lines(text: &[u8]) -> &[u8] {
    &text[..text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)]
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}
