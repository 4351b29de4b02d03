"""Files that are either wholly there or not there at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends, deleted where the block raises.

    A reader sees the old file or the new one, never a part, even if the process is killed or the machine loses power.
    Missing parent folders are made. OSError is passed on.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as a move is atomic within one file system only.
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise _about(error, target) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that nobody else may read; a result gets the permissions of any newly created file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) == name:
            raise _about(error, target) from error
        raise


def _about(error: OSError, target: Path) -> OSError:
    """The same error, of the file that the user knows of."""
    return OSError(error.errno, error.strerror, str(target))
