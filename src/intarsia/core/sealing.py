"""Seals: SHA-256 of all that a reader will trust, settings included, checked when it is opened.

A folder has a settings file in JSON with digests of its other files and of its own content, a
single JSON file has the digest of its content, a safetensors file the digest of its bytes as
metadata. A missing seal is an error: a file that cannot be checked is not trusted.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from .errors import CheckpointError, ConfigError
from .files import read_json
from .reading import open_regular, read_bytes

SEAL = "sha256"
FILES, SETTINGS = "files", "settings"  # of a seal: digests of files, and of the content next to it
OPEN = {SEAL: "0" * 64}  # metadata of a safetensors file that `seal_file` will fill in
# cards are for people to edit, and no reader trusts them; hidden files are the system's
FREE = (".md", ".html")
STOCK = "digests.json"  # the seal of a folder that other libraries open, too


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.  Raises: OSError if it cannot be read or is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_checked(path: Path, digest: str) -> mmap.mmap | bytes:
    """Map a file into memory, read-only, after its SHA-256 was compared; on Windows, read it.

    Windows lets nobody delete a file that is mapped.
    Raises: OSError as `sha256`; ValueError for another digest.
    """
    with open_regular(path) as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise ValueError("bytes that changed after they were written")
        if os.name == "nt":
            file.seek(0)
            return file.read()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def digests(folder: Path, *, besides: Collection[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of each file below a folder, by its path in the folder.

    besides: paths that are left out. Pages for people (.md, .html) and hidden files are left out,
    too.
    """
    names = {
        path: path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in FREE and path.name[0] != "."
    }
    return {name: sha256(path) for path, name in names.items() if name not in besides}


def sealed(content: Mapping[str, Any], files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return JSON content with its seal.  files: digests of the files next to it."""
    seal: dict[str, Any] = {FILES: dict(files or {})}
    # through JSON, so that a reader's digest is of the same values (tuples are lists there)
    record = json.loads(json.dumps({**content, SEAL: seal}))
    record[SEAL] = {SETTINGS: _digest(record), **seal}
    return record


def is_format(got: object, want: int) -> bool:
    """Return whether a format number is the one of this version; true and 1.0 are not 1."""
    return type(got) is int and got == want


def seal_folder(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write the settings file of a folder, after all its other files."""
    record = sealed(content, digests(folder, besides=(name,)))
    (folder / name).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def check_sealed(path: Path, content: Any, *, needs: Collection[str] = ()) -> dict[str, Any]:
    """Check a JSON file and the files next to it by their digests; return its content without them.

    needs: files next to it that will be read, so that they must have digests.
    Raises: CheckpointError for anything that is not as it was written, and for a missing digest.
    """
    # the settings first: they hold the digests of the files
    rest, files = check_settings(path, content)
    check_files(path.parent, files, needs)
    return rest


def check_settings(path: Path, content: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a JSON file by its digest; return its content without, and other files' digests.

    Raises: CheckpointError for content that is not as it was written, or has no digest.
    """
    record = _object(content)
    seal = _object(record.get(SEAL))
    files = _object(seal.get(FILES))
    # a file without a seal is not trusted: to strip it would be too easy
    if FILES not in seal:
        raise _changed(path, "settings without the digests that were written with them")
    rest = {key: value for key, value in record.items() if key != SEAL}
    if seal.get(SETTINGS) != _digest({**rest, SEAL: {FILES: files}}):
        raise _changed(path, "settings that changed after they were written")
    return rest, files


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one in the place of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def check_files(folder: Path, files: Mapping[str, str], needs: Collection[str] = ()) -> None:
    """Check the files of a folder against their digests.

    needs: files that will be read, so that they must be listed.
    Raises: CheckpointError for a file that is gone or is not the one that was written.
    """
    if missing := sorted({*needs} - files.keys()):
        raise _changed(folder, f"no digest of {missing[0]!r}")
    for name, digest in files.items():
        place = folder / name
        # a digest must not make us read outside of the folder
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise _changed(folder, f"a digest of a file elsewhere, {name!r}")
        if not place.is_file():
            raise _changed(place, "no such file")
        if sha256(place) != digest:
            raise _changed(place, "bytes that changed after they were written")


def check_same_result(new: Path, old: Path) -> None:
    """Check that the files about to be replaced are the same, by the settings that seal both.

    new, old: files in JSON; no old one, there is nothing to lose.
    Raises: ConfigError.
    """
    if old.is_file() and read_bytes(old) != read_bytes(new):
        got, fix = "another result", "Choose a new folder."
        raise ConfigError(str(old.parent), got=got, want="nothing, or the same", fix=fix)


def seal_stock(folder: Path) -> None:
    """Seal a folder in another library's form, by a file of its own next to the others."""
    seal_folder(folder, STOCK, {})


def check_if_sealed(folder: Path, *names: str) -> None:
    """Check a folder by the digests in its settings files; other libraries' have none.

    names: of the settings files to look for; none = the one that seals folders of other libraries'
    form.
    Raises: CheckpointError for a file that is not as it was written.
    """
    for path in (folder / name for name in names or (STOCK,)):
        if path.is_file():
            try:
                content = read_json(path)
            except (OSError, ValueError) as error:
                raise _changed(path, f"no readable JSON ({error})") from error
            try:
                check_sealed(path, content)
            except CheckpointError as error:
                if path.name != STOCK:
                    raise
                fix = f"{error.fix} If you changed it on purpose, delete {STOCK}."
                got, want = error.got, error.want
                raise CheckpointError(error.what, got=got, want=want, fix=fix) from error


def seal_file(path: Path) -> None:
    """Fill in the digest of a safetensors file, which was written with zeros (`OPEN`) there."""
    _sort_metadata(path)
    digest, offset = _file_digest(path)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(digest.encode())


def _sort_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata by name, so that equal contents are equal bytes."""
    with path.open("r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        # safetensors writes metadata in the order of a hash map
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the same words in another order
            file.seek(8)
            file.write(text.ljust(size))


def check_file(path: Path) -> None:
    """Check a safetensors file against the digest in its metadata.

    Raises: CheckpointError if it has none, or another; OSError if it cannot be read.
    """
    # the digest as it should be, and where the stored one is
    digest, offset = _file_digest(path)
    with open_regular(path) as file:
        file.seek(offset)
        if offset == 0 or file.read(64) != digest.encode():
            raise _changed(path, "bytes that changed after they were written, or no digest of them")


def _file_digest(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a safetensors file, and at which byte its own digest is stored."""
    total = hashlib.sha256()
    with open_regular(path) as file:
        front = file.read(8)
        size = struct.unpack("<Q", front)[0] if len(front) == 8 else 0
        header = file.read(min(size, path.stat().st_size))
        key = f'"{SEAL}":"'.encode()
        offset = header.find(key) + len(key)
        if offset < len(key) or len(header) < offset + 64:
            return "", 0
        # the digest is inside the bytes that it digests: zeros stand in its place
        total.update(front + header[:offset] + b"0" * 64 + header[offset + 64 :])
        while block := file.read(1 << 20):
            total.update(block)
    return total.hexdigest(), len(front) + offset


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _changed(path: Path, got: str) -> CheckpointError:
    """Return the error for a file that is not as it was written.  got: the fault in it."""
    want = "what was written"
    fix = "Copy it again from its source: a byte was damaged, or something was edited or swapped."
    return CheckpointError(str(path), got=got, want=want, fix=fix)


def sealed_names(folder: Path, kind: str) -> list[str]:
    """Return the names of the files and folders in a folder that this library sealed; else [].

    kind: a file that the folder must have been written with. An empty result: nothing in it may be
    replaced.
    """
    try:
        files = _object(_object(_object(read_json(folder / STOCK)).get(SEAL)).get(FILES))
    except (OSError, ValueError):
        return []
    return [STOCK, *{name.partition("/")[0] for name in files}] if kind in files else []
