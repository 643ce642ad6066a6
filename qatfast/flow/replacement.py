"""Puts a new file or folder in the place of an old one, such that an interruption leaves one of them whole."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

__all__ = ["longest_name", "recover", "replacing"]

_SUFFIX = ".partial"
_RANDOM = "[a-z0-9_]{8}"  # what tempfile.mkdtemp puts between
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNABLE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # the file system, or the kernel


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Gives a path beside `path`, of the same name, and puts what was written there in the place of `path`.

    If the body raises, nothing is left of what it wrote, and `path` is as before. What was there before gives its
    permissions to what takes its place. What killed processes have left of this is removed first, see `recover`.

    Args:
        path: A file or a folder. A symbolic link stays, and what it leads to is replaced.

    Raises:
        OSError: The system cannot write, or rename.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    recover(path)
    partial, lock = _make_locked_folder(folder, name)
    try:
        new = os.path.join(partial, name)
        yield new
        _sync(new)
        _copy_modes(path, new)
        _put(new, path, aside=_aside(partial, name))
        _sync_one(folder)
    finally:
        try:
            _discard(partial, path)
        finally:
            os.close(lock)


def recover(path: str) -> None:
    """Settles what killed processes have left beside `path`; what others are writing at this moment stays.

    Where one was killed in the moment in which nothing is at `path`, the earlier file or folder is put back there.
    """
    folder, name = os.path.split(os.path.realpath(path))
    is_partial = re.compile(rf"\.{re.escape(name)}\.{_RANDOM}{re.escape(_SUFFIX)}").fullmatch
    for partial in (os.path.join(folder, other) for other in _names(folder) if is_partial(other)):
        with contextlib.suppress(OSError):
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if set(os.listdir(partial)) <= {name, os.path.basename(_aside(partial, name))}:
                    _discard(partial, os.path.join(folder, name))
            finally:
                os.close(descriptor)


def longest_name(path: str) -> int:
    """Returns how many bytes the name of a file may have that `replacing` puts in the folder of `path`."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return os.pathconf(folder, "PC_NAME_MAX") - len(f"..{'x' * 8}{_SUFFIX}")


def _names(folder):
    return os.listdir(folder) if os.path.isdir(folder) else []


def _aside(partial, name):
    """Where the earlier folder is put for a moment: beside the new one, which has its name."""
    return os.path.join(partial, f"{name}.earlier")


def _discard(partial, path):
    """Removes a folder of ours, and puts the earlier model back that went aside into it if nothing is at `path`."""
    aside = _aside(partial, os.path.basename(path))
    if os.path.lexists(aside) and not os.path.lexists(path):
        os.rename(aside, path)
    shutil.rmtree(partial, ignore_errors=True)


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


def _put(new, path, aside):
    """Renames `new` to `path`; a folder changes places with the one there, or else that goes aside first."""
    if not (os.path.isdir(new) and os.path.isdir(path)):
        os.replace(new, path)
    elif not _exchange(new, path):
        os.rename(path, aside)
        os.rename(new, path)


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


def _copy_modes(source, target):
    """Gives the permissions of a file or folder, and of all in it, to what has the same name in another."""
    if not os.path.exists(source):
        return
    for folder, _, names in os.walk(target, topdown=False):
        for name in (*names, ""):
            path = os.path.join(folder, name)
            earlier = os.path.join(source, os.path.relpath(path, target))
            if os.path.exists(earlier):
                shutil.copymode(earlier, path)
    if not os.path.isdir(target):
        shutil.copymode(source, target)


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
