"""Writing files atomically: a file is either the old one or the complete new one."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: temporary folders are not locked there, and only their age says that nobody uses them
    fcntl = None  # type: ignore[assignment]

__all__ = ["flush", "lock", "replacing", "temporary_folder"]

DAY = 24 * 60 * 60  # seconds


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path on the same disk, which replaces `path` when the block ends without an error.

    The temporary file is flushed to the disk before it is renamed, and its folder after that: even if the process is
    killed, `path` is either the old file or the new one. Symbolic links are followed. A replaced file keeps its mode;
    that of a new file follows the umask. What a killed process left behind is removed by a later call: see
    `temporary_folder`.

    The temporary path is an empty file, which the block writes or replaces.

    Raises:
        FileNotFoundError: no such folder: a mistyped one is not created.
        OSError: the disk is full or the folder not writable. No partial file is left, and the old one is unchanged.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/words.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "words.txt").read_text(), len(list(Path(folder).iterdir()))
    ('whole', 1)
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}. Create it first.")
    with temporary_folder(path.parent) as folder:
        temporary = folder / path.name
        temporary.touch()
        mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
        yield temporary
        flush(temporary)
        temporary.chmod(mode)  # the block may have put another file in its place, of another mode
        os.replace(temporary, path)
    flush(path.parent)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder `.jaxrec-*.tmp` in `parent`, which is removed at the end, whatever happens in the block.

    A process that is killed cannot remove its folder. So each call first removes those in `parent` that are older than
    a day and that no running process has locked.
    """
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=".jaxrec-", suffix=".tmp", dir=parent))
    with lock(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next day's call removes what stays


def _remove_abandoned(parent: Path) -> None:
    """Removes what is named `.jaxrec-*.tmp` in `parent`, is older than a day and not locked."""
    for leftover in parent.glob(".jaxrec-*.tmp"):
        with suppress(OSError):  # another process removes it too, or it belongs to another user
            if time.time() - leftover.stat().st_mtime < DAY:
                continue
            with lock(leftover) as is_free:
                if is_free:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Locks a file or folder until the block or the process ends; yields False if another process has locked it.

    Where the system has no locks (Windows, some network disks), it yields True.
    """
    if fcntl is None:
        yield True
        return
    descriptor, is_free = os.open(path, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:  # this file system has no locks
            pass
        yield is_free
    finally:
        os.close(descriptor)


def flush(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
