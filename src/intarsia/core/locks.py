"""One process at a time works on a file or a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import ConfigError, disk_error

FOREVER = -1


@contextmanager
def held(target: str | Path, *, wait: float = 0) -> Generator[None, None, None]:
    """Keep other processes from writing a file or folder inside the block, existing or not.

    The lock is a hidden file next to the target (in it, where the folder above cannot be written),
    removed at the end; the system frees it when the process ends, however that ends. A thread may
    take it again. Missing folders above are made; the ones left empty are removed. wait: seconds to
    wait for another process that has the lock, or `FOREVER`.
    Raises: ConfigError if another process has it; TrainingError where nothing can be written.
    """
    from filelock import FileLock, Timeout  # not needed to read, nor by `import intarsia`

    # links to one place share one lock
    target = Path(os.path.realpath(target))
    above = [path for path in target.parents if not path.exists()]  # inner first
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = _place(target)
        os.close(os.open(place, os.O_CREAT | os.O_RDWR, 0o666))  # or its error, not a timeout
        # one object for each path, so that the same thread may take it again
        lock = FileLock(place, is_singleton=True)
        lock.acquire(timeout=wait)
    except Timeout as error:
        got, want = "a name that another process works on", "one that no other process writes"
        fix = "Wait for that run to end, or choose another name."
        raise ConfigError(str(target), got=got, want=want, fix=fix) from error
    except OSError as error:
        raise disk_error(target, error) from error
    try:
        yield
    finally:
        # whoever waits for a file that was deleted looks again, so that two never hold one lock
        if lock.lock_counter == 1:
            with suppress(OSError):
                place.unlink()
        lock.release()
        with suppress(OSError):  # others work in one of them by now
            for folder in above:
                folder.rmdir()


def _place(target: Path) -> Path:
    """Return the file to lock for a target."""
    # a folder mounted into a container often has a parent that cannot be written
    if target.is_dir() and not os.access(target.parent, os.W_OK):
        return target / ".lock"
    return target.parent / f".{target.name}.lock"


@contextmanager
def alone(folder: str | Path) -> Generator[None, None, None]:
    """Make a folder if it is missing, and keep other processes from writing in it inside the block.

    A new folder that is left empty is removed.
    Raises: ConfigError if another process writes in it, or for a file; TrainingError where no
    folder can be made.
    """
    folder = Path(folder).absolute()
    with held(folder):
        # only a folder that was made here may be removed
        is_new = not folder.exists()
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError as error:
            subject, fix = f"folder {folder}", "Choose another name."
            raise ConfigError(subject, got="a file", want="a folder", fix=fix) from error
        except OSError as error:
            raise disk_error(folder, error) from error
        try:
            yield
        finally:
            if is_new and folder.is_dir() and not any(folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
