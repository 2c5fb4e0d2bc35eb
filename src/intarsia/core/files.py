"""Files and folders that are written whole or not at all; JSON that anybody may have written."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
import tomllib
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import ConfigError, IntarsiaError, disk_error
from .exchange import exchange
from .locks import held
from .reading import open_regular, read_bytes

JOINED = "@train+val"  # behind a name or path of data: the validation part is trained on, too
LARGEST_JSON = 2**30  # bytes
LARGEST_TOML, LONGEST_TOML = 10**6, 4096  # bytes of a file, characters of a line
HALVES = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # of surrogate pairs, in JSON
DEEP = 100  # levels of JSON: no file of ours has more than a dozen
SCRATCH = ".writing-"  # .NAME.writing-xxxxxxxx is the hidden folder in which NAME is written
READY, BEFORE = ".ready", ".before"  # in it: all is written; the folder that was there before
END = 4096  # bytes of a file's start and end in which a mark is looked for
SECONDS = 10  # for another process's short work on the same name


@contextmanager
def writing(
    target: str | Path, *, refuse_loss: bool = False, wait: float = 0
) -> Generator[Path, None, None]:
    """Yield a scratch path of the target's name to write to, and put the result in place.

    After an error, or a kill, the target is as it was: all is on the disk before it takes its name,
    and a folder is exchanged with the old one in one system call where there is one; else
    `repaired` finishes an interrupted replacement. Files written next to the scratch path (a
    graph's weights) are put next to the target. Other processes cannot write the target meanwhile;
    scratch folders of killed processes go. refuse_loss: True refuses to replace a folder that has
    files which the new one has not. wait: seconds to wait for another process that writes the
    target.
    Raises: ConfigError for a file where a folder is, or the reverse, for a folder with files
    that would be lost, and for what another process writes; TrainingError if it cannot be written.
    """
    target = Path(os.path.realpath(target))
    with held(target, wait=wait):
        try:
            tidy(target)
            # next to the target: a rename is atomic only within one file system
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}{SCRATCH}", dir=target.parent))
        except OSError as error:
            raise disk_error(target, error) from error
        try:
            yield folder / target.name
            _finish(folder, target, refuse_loss)
        except Exception as error:
            # safetensors has an error of its own for a full disk
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                raise disk_error(target, error) from error
            raise
        finally:
            _remove(folder, target)


def _finish(folder: Path, target: Path, refuse_loss: bool) -> None:
    """Put the content of a scratch folder in the target's place; refuse_loss: see `writing`."""
    # 1. mkdtemp and some writers make private files: give them the umask's mode, then sync
    mode = _mode(folder)
    names = _names(folder, target)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
        sync(path)
    for name in names:
        # 2. refuse before anything is replaced
        _check_replaced(target.with_name(name), folder / name, refuse_loss)
    # 3. put it in place: by one exchange, or by renames that `repaired` can finish
    is_replaced = target.is_dir()
    if len(names) > 1 or (is_replaced and not exchange(folder / target.name, target)):
        _declare(folder, target, names)
        _put_in_place(folder, target, names)
    elif not is_replaced:
        os.replace(folder / target.name, target)
    sync(target.parent)


def _declare(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Write in a scratch folder that it is whole: for which target, and with which files."""
    # the inode: a copy of this folder, or one restored from a backup, is not taken for it
    record = {"folder": folder.stat().st_ino, "target": target.name}
    record |= {"names": {name: _digest(folder / name) for name in names}}
    (folder / READY).write_text(json.dumps(record), encoding="utf-8")
    sync(folder / READY)
    sync(folder)


def _declared(folder: Path, target: Path) -> dict[str, str] | None:
    """Return the names and digests that a scratch folder declares; None if it is not ready."""
    try:
        status = folder.lstat()
        is_mine = getattr(os, "getuid", lambda: status.st_uid)() == status.st_uid
        is_private = os.name == "nt" or stat.S_IMODE(status.st_mode) == 0o700
        if not (stat.S_ISDIR(status.st_mode) and is_mine and is_private):
            return None
        record: dict[str, Any] = read_json(folder / READY)
        if (record["folder"], record["target"]) != (status.st_ino, target.name):
            return None
        names: dict[str, str] = record["names"]
        return {name: names[name] for name in names if name == Path(name).name != ".."}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _digest(path: Path) -> str:
    """Return a digest of the written files: names, sizes and times, which a rename keeps."""
    total = hashlib.sha256()
    for file in (path, *sorted(path.rglob("*"))):
        if not file.is_dir():
            status = file.lstat()
            row = file.relative_to(path).as_posix(), status.st_size, status.st_mtime_ns
            total.update(json.dumps(row).encode())
    return total.hexdigest()


def _put_in_place(folder: Path, target: Path, names: Iterable[str]) -> None:
    """Move finished files and folders from a scratch folder to their final names."""
    for name in names:
        place = target.with_name(name)
        if place.is_dir():
            # a folder cannot be renamed onto one with files in it
            os.replace(place, folder / BEFORE)
        os.replace(folder / name, place)
    # from here on the scratch folder is only to be removed
    (folder / READY).unlink(missing_ok=True)


def _names(folder: Path, target: Path) -> list[str]:
    """Return the names of the files in a scratch folder, the target's last."""
    names = {path.name for path in folder.iterdir()} - {READY, BEFORE}
    return sorted(names, key=lambda name: name == target.name)


def _mode(folder: Path) -> int:
    """Return the permissions of a new file under the umask, by making a file and removing it."""
    probe = folder / ".mode"
    handle = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()


def _scratch_folders(target: Path) -> list[Path]:
    pattern = f".{glob.escape(target.name)}{SCRATCH}????????"
    return [path for path in target.parent.glob(pattern) if path.is_dir()]


def tidy(target: Path) -> None:
    """Finish or remove what killed writers of a target left, which is `held`."""
    for folder in _scratch_folders(target):
        _remove(folder, target)


def _remove(folder: Path, target: Path) -> None:
    """Remove a scratch folder; if all in it was written, first put that in place."""
    declared = _declared(folder, target)
    with suppress(OSError):
        if declared is not None:
            names = [name for name in declared if os.path.lexists(folder / name)]
            names = [name for name in names if _digest(folder / name) == declared[name]]
            _put_in_place(folder, target, names)
    if (folder / BEFORE).exists() and not target.exists():
        if declared is None:  # of an older version, or not ours: nothing is lost
            return
        os.replace(folder / BEFORE, target)  # the disk took no second rename
    shutil.rmtree(folder, ignore_errors=True)


def repaired(path: str | Path) -> Path:
    """Finish a folder's replacement that a kill interrupted; return the folder's path."""
    path = Path(path)
    target = Path(os.path.realpath(path))
    # only the moment between two renames leaves a ready scratch folder and no target
    if not target.exists() and any(
        _declared(folder, target) is not None for folder in _scratch_folders(target)
    ):
        with suppress(IntarsiaError, OSError), held(target, wait=SECONDS):
            tidy(target)
    return path


@contextmanager
def reserved(
    target: str | Path, *, mark: str = "", own: Collection[str] = ()
) -> Generator[Path, None, None]:
    """Check, before long work, that a target may be written; lock it meanwhile.

    A target that exists is replaced only if this kind of writer wrote it. mark: words in the first
    or last 4,096 bytes of each file of this kind; "" = no file there may be replaced. own: names of
    the files in a folder of this kind; without any, a folder is refused unless it is empty.
    Raises: ConfigError for what others wrote, and for what another process works on; TrainingError
    where nothing can be written.
    """
    target = Path(target)
    with held(target):
        tidy(Path(os.path.realpath(target)))
        check_target(target, mark=mark, own=own)
        yield target


def check_target(target: Path, *, mark: str = "", own: Collection[str] = ()) -> None:
    """Check that writing a target would destroy nothing but earlier output of the same kind.

    mark: words in the first or last 4,096 bytes of each file of this kind, "" = none. own: names of
    the files in a folder of this kind.
    Raises: ConfigError for a target with something in its place that would be lost.
    """
    if not target.exists():
        return
    if target.is_dir():
        # one unknown file is enough: it would be lost
        theirs = sorted({path.name for path in target.iterdir()} - {*own})
        got = f"other files in it, such as {theirs[0]!r}" if theirs else ""
        # without names of its own no folder with files is replaced, not even one of this kind
        want = "a new or empty folder" + (", or one that was written like this" if own else "")
    else:
        is_own = mark and target.is_file() and mark.encode() in _first_and_last_bytes(target)
        got = "" if is_own else "a file that was not written like this"
        want = "a new name, or a file that was written like this" if mark else "a new name"
    if got:
        raise ConfigError(str(target), got=got, want=want, fix="Choose another name.")


def _first_and_last_bytes(path: Path) -> bytes:
    """Return the first and the last bytes of a file, in which its kind can be recognised."""
    with open_regular(path) as file:
        # a short file is read twice, which does no harm
        first = file.read(END)
        file.seek(max(0, path.stat().st_size - END))
        return first + file.read(END)


def _check_replaced(old: Path, new: Path, refuse_loss: bool) -> None:
    """Refuse to put `new` in the place of something else; refuse_loss: see `writing`."""
    if new.is_dir() and old.exists() and not old.is_dir():
        fix = "Choose another name."
        raise ConfigError(f"writing to {old}", got="a file", want="a folder", fix=fix)
    if not old.is_dir():
        return
    if not new.is_dir():
        fix = "Name a file, which may be in that folder."
        raise ConfigError(f"writing to {old}", got="a folder", want="a file", fix=fix)
    if refuse_loss:
        check_target(old, own={path.name for path in new.iterdir()})


def write_bytes(target: str | Path, content: bytes) -> Path:
    """Write or replace a file, whole or not at all; return its path.

    Raises: ConfigError where a folder is; TrainingError if it cannot be written.
    """
    # short work: another writer of the same file is waited for
    with writing(target, wait=SECONDS) as scratch:
        scratch.write_bytes(content)
    return Path(target)


def write_text(target: str | Path, content: str) -> Path:
    """Write or replace a file of text, whole or not at all; return its path.

    content: characters that UTF-8 cannot encode are replaced by "?".
    Raises: as `write_bytes`.
    """
    # half a surrogate pair from a file's name must not stop a report
    return write_bytes(target, content.encode("utf-8", "replace"))


def write_json(target: str | Path, data: Any, indent: int | None = 2) -> Path:
    """Write or replace a JSON file.  Returns its path."""
    return write_text(target, json.dumps(data, indent=indent) + "\n")


def sync(path: Path) -> None:
    """Force a file, or a folder's list of files, onto the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextmanager
def unbroken() -> Generator[None, None, None]:
    """Postpone Ctrl-C and SIGTERM to the end of the `with` block.

    torch turns an interrupt while it reads tensors into an error of its own, as if the file were
    damaged.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # signals are noted, and the first is raised again at the end
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
    """Parse a JSON text from an untrusted file.

    pairs: makes an object of its list of (name, value), None = a dict.
    Raises: ValueError if it is no JSON, nested so deeply that nothing can work with it, or has half
    a character, which no text can have.
    """
    try:
        parsed = json.loads(raw, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if HALVES.search(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")):
        json.dumps(parsed, ensure_ascii=False).encode()  # of two halves that belong together is one
    return _shallow(parsed)


def _shallow(parsed: Any) -> Any:
    """Return the parsed value.  Raises: ValueError for more than DEEP levels of it."""
    # level by level, without recursion, which deep nesting would exhaust
    level: list[Any] = [parsed]
    for _ in range(DEEP):
        # numbers and texts end here; containers give the next level
        nested: list[Any] = [v for v in level if isinstance(v, dict | list)]
        if not nested:
            return parsed
        inside: list[Any] = [part.values() if isinstance(part, dict) else part for part in nested]
        level = [value for part in inside for value in part]
    raise ValueError(f"nested more than {DEEP} levels deep")


def read_json(path: str | Path) -> Any:
    """Read a JSON file that may have been written by anybody; return its content.

    Raises: OSError if it cannot be read or is no regular file; ValueError as `parse_json` does.
    """
    return parse_json(read_bytes(path, LARGEST_JSON))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file that may have been written by anybody; return its content.

    Raises: as `read_json`; ValueError for a line of more than LONGEST_TOML characters.
    """
    text = read_bytes(path, LARGEST_TOML).decode()
    # a key of many parts takes its square in time
    if (longest := max(map(len, text.splitlines()), default=0)) > LONGEST_TOML:
        raise ValueError(f"a line of {longest:,} characters, where {LONGEST_TOML:,} are read")
    try:
        return _shallow(tomllib.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
