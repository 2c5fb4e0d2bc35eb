"""Files and folders that are written whole or not at all, locked, read as JSON, and digested."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CheckpointError, ConfigError, TrainingError

LOCK = ".lock"
JOINED = "@train+val"  # behind a name or path of data: the validation part is trained on, too
DEEP = 100  # levels of JSON: no file of ours has more than a dozen


@contextmanager
def writing(target: str | Path, *, spare: bool = False) -> Generator[Path, None, None]:
    """Gives a path of the same name, to write a file or a folder at; puts it in place at the end.

    What else was written beside it (a graph's weights) is put beside the target, before it. All is
    on the disk before it takes its name; after an error, or a kill, the target is as it was.
    spare: a folder with files that the new one has not is no earlier one of its kind, and stays.
    Raises: ConfigError for a file where a folder is, and for what is spared; TrainingError if it
    cannot be written.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise disk_error(target, error) from error
    aside = folder / "before"
    try:
        yield folder / target.name
        for path in folder.rglob("*"):
            sync(path)
            if path.parent == folder:
                _check_replaced(target.with_name(path.name), path, spare)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == target.name):
            place = target.with_name(path.name)
            if place.is_dir():  # a folder with files in it cannot be replaced in one step
                os.replace(place, aside)
            os.replace(path, place)
        sync(target.parent)
    except Exception as error:
        # safetensors has an error of its own for a full disk
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise disk_error(target, error) from error
        raise
    finally:
        if aside.exists() and not target.exists():
            os.replace(aside, target)
        shutil.rmtree(folder, ignore_errors=True)


def _check_replaced(old: Path, new: Path, spare: bool) -> None:
    """Raises: ConfigError for a folder that would be lost."""
    if not old.is_dir():
        return
    if not new.is_dir():
        fix = "Name a file, which may be in that folder."
        raise ConfigError(f"writing to {old}", got="a folder", want="a file", fix=fix)
    if spare:
        check_replaceable(old, {path.name for path in new.iterdir()})


def check_replaceable(folder: Path, own: Collection[str]) -> None:
    """Raises: ConfigError for a file, and for a folder with other files than `own` in it."""
    if not folder.exists():
        return
    theirs = {path.name for path in folder.iterdir()} - {*own} if folder.is_dir() else set[str]()
    if theirs or not folder.is_dir():
        got = f"other files in it, such as {min(theirs)!r}" if theirs else "a file"
        want, fix = "a new folder, or one that was written like this", "Choose another name."
        raise ConfigError(f"folder {folder}", got=got, want=want, fix=fix)


def write_text(target: str | Path, content: str | bytes) -> Path:
    """Write or replace a file; characters that UTF-8 has not become "?".  Returns its path.

    Raises: ConfigError where a folder is; TrainingError if it cannot be written.
    """
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    with writing(target) as scratch:
        scratch.write_bytes(raw)
    return Path(target)


def write_json(target: str | Path, data: Any, indent: int | None = 2) -> Path:
    """Write or replace a JSON file.  Returns its path."""
    return write_text(target, json.dumps(data, indent=indent) + "\n")


def disk_error(path: str | Path, error: Exception) -> TrainingError:
    """The error for a file that could not be written."""
    return TrainingError(
        f"writing to {path}",
        got=error,
        want="a disk with room that can be written to",
        fix="Free some space, or choose another place; what was there before is intact.",
    )


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def alone(folder: str | Path) -> Generator[None, None, None]:
    """Inside, no other process works in this folder, which is made; left empty, it goes again.

    The lock ends with its process, however that ends. Within one thread it may be taken again.
    Raises: ConfigError if another process holds it, or for a file; TrainingError where no folder
    can be made.
    """
    from filelock import FileLock, Timeout  # not needed to read, nor by `import intarsia`

    folder = Path(folder).absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]  # inner first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, is_singleton=True)
        lock.acquire(timeout=0)
    except FileExistsError as error:
        what, fix = f"folder {folder}", "Choose another name."
        raise ConfigError(what, got="a file", want="a folder", fix=fix) from error
    except Timeout as error:
        got, want = "one that another process works in", "a folder of its own for each run"
        fix = "Wait for that run to end, or choose another folder."
        raise ConfigError(f"folder {folder}", got=got, want=want, fix=fix) from error
    except OSError as error:
        raise disk_error(folder, error) from error
    try:
        yield
    finally:
        if made and [path.name for path in folder.iterdir()] == [LOCK]:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # others work in one of them by now
                for parent in made[1:]:
                    parent.rmdir()
        lock.release()


@contextmanager
def unbroken() -> Generator[None, None, None]:
    """Inside, Ctrl-C and SIGTERM wait.

    torch turns an interrupt while it reads tensors into an error of its own, as if the file were
    damaged.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    kinds = signal.SIGINT, signal.SIGTERM
    before = {kind: signal.signal(kind, lambda number, _: came.append(number)) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler or signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])


def parse_json(raw: str | bytes, pairs: Callable[[Any], Any] | None = None) -> Any:
    """A JSON text that anybody may have written.  pairs: makes an object of its pairs.

    Raises: ValueError if it is none, or nested so deeply that nothing can work with it.
    """
    try:
        found = json.loads(raw, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level: list[Any] = [found]
    for _ in range(DEEP):
        nested: list[Any] = [v for v in level if isinstance(v, dict | list)]
        if not nested:
            return found
        level = [v for one in nested for v in getattr(one, "values", one.__iter__)()]
    raise ValueError(f"nested more than {DEEP} levels deep")


def read_json(path: str | Path) -> Any:
    """A JSON file that anybody may have written.

    Raises: OSError if it cannot be read or is no file; ValueError as `parse_json` does.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file")
    return parse_json(path.read_bytes())


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """The SHA-256 of each file of a kind below a folder, by its path there."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def check_digest(path: Path, wanted: Mapping[str, str], name: str) -> None:
    """Raises: CheckpointError if a file is not the one whose SHA-256 was written down.

    wanted: by name, as `digests` gave them; a file that is not in it is older than that.
    """
    if name in wanted and path.is_file() and sha256(path) != wanted[name]:
        got, want = "bytes that changed after they were written", "the file as it was written"
        fix = "Copy the folder again from its source: a byte was damaged or a file was swapped."
        raise CheckpointError(str(path), got=got, want=want, fix=fix)
