"""Puts a new file or folder in the place of an old one, such that an interruption leaves one of them whole."""

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator

__all__ = ["replacing"]

_SUFFIX = ".partial"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # the file system, or the kernel


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Gives a path beside `path`, of the same name, and puts what was written there in the place of `path`.

    If the body raises, nothing is left of what it wrote, and `path` is as before. What killed processes have left of
    this is removed in the end; what others are writing at this moment is not.

    Args:
        path: A file or a folder. A symbolic link stays, and what it leads to is replaced.

    Raises:
        OSError: The system cannot write, or rename.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    partial, lock = _make_locked_folder(folder, name)
    try:
        new = os.path.join(partial, name)
        yield new
        _sync(new)
        _put(new, path, aside=os.path.join(partial, "earlier"))
        _sync_one(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)
    _remove_stale(folder, name)


def _make_locked_folder(folder, name):
    """(path, descriptor) of a new folder, which stays locked for as long as this process has it open."""
    while True:
        partial = tempfile.mkdtemp(_SUFFIX, f".{name}.", folder)
        # Another process may take it for one that was left behind, in the moment before it is locked.
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = os.path.exists(partial)
            except OSError as error:  # a file system without locks: nothing counts as left behind there
                is_ours = not isinstance(error, BlockingIOError)
            if is_ours:
                return partial, descriptor
            os.close(descriptor)


def _remove_stale(folder, name):
    """Removes the folders of processes that are no more: those that nobody has locked."""
    for partial in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*{_SUFFIX}")):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                os.close(descriptor)


def _put(new, path, aside):
    """Renames `new` to `path`; a folder changes places with the one there, or else that goes aside first."""
    if not (os.path.isdir(new) and os.path.isdir(path)):
        os.replace(new, path)
    elif not _exchange(new, path):
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(aside, path)
            raise


def _exchange(first, second):
    """Whether two paths have changed places, which is one step."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), second)


def _sync(path):
    """Has the disk hold a file, or a folder and all that is in it."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync_one(os.path.join(folder, name))
        _sync_one(folder)
    if not os.path.isdir(path):
        _sync_one(path)


def _sync_one(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
