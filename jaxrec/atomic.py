"""Writing files atomically: a file is either the old one or the complete new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces `path` when the block ends without an error.

    The temporary file is flushed to the disk before it is renamed, and the folder after that: even if the process is
    killed, `path` is either the old file or the new one. (After a kill -9 a file `.jaxrec-*.tmp` may remain, to be
    deleted by hand.) Symbolic links are followed; the mode follows the umask.

    Raises:
        FileNotFoundError: no such folder: a mistyped one is not created.
        OSError: the disk is full or the folder not writable. No partial file is left, and the old one is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(f"{folder}/words.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     Path(folder, "words.txt").read_text(), len(list(Path(folder).iterdir()))
    ('whole', 1)
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}. Create it first.")
    temporary = path.parent / f".jaxrec-{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # flushes the new name to the disk
        finally:
            os.close(folder)
