"""The one cache of results: records and tensors under a digest of all that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import AssetError, CheckpointError, TrainingError, disk_error
from .files import parse_json, writing
from .locks import FOREVER, held
from .reading import open_own, open_tensors, read_bytes, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

KEY = "key"


def key_of(inputs: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the inputs of a result (JSON-ready, in any order)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """A folder of results: records as lines of the file `name`, tensors as a file for each key.

    A record is appended whole under a lock, and the last record of a key counts; a line that was
    cut short by a kill is skipped, so that its result is computed again. A file of tensors appears
    whole or not at all, and is memory-mapped, so that processes share its pages.

    code: digest of the code that the results depend on. `record` reads back a result of this code
    only; a result of the same inputs and other code is `stale`. Leave it empty where the inputs
    name the version of what computes them.
    Raises: CheckpointError if `name` is there and is no file that can be read.
    """

    def __init__(self, folder: str | Path, name: str = "records.jsonl", *, code: str = "") -> None:
        """Read the records of a folder.  name: their file; code: digest of the code or ""."""
        self.folder, self.code = Path(folder), code
        self.path = self.folder / name
        self.rows: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the records that other processes have appended since."""
        # a later line of the same key replaces the earlier one
        self.rows = {row[KEY]: row for row in self._read()}

    def _read(self) -> Iterator[dict[str, Any]]:
        """Yield the records of the file in order; lines that are no such record are left out."""
        if not self.path.exists():
            return
        try:
            raw = read_bytes(self.path)
        except OSError as error:
            fix = "Name another file, or move it away."
            raise CheckpointError(str(self.path), got=error, want="a file", fix=fix) from error
        for line in raw.splitlines():
            try:
                # a line that a kill cut short is no JSON
                row = parse_json(line)
            except ValueError:
                continue
            record = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
            if isinstance(record.get(KEY), str):
                yield record

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row: in the file when this returns.  Raises: TrainingError on a full disk."""
        full = {KEY: key, **row}
        append_line(self.path, full)
        self.rows[key] = full

    def record(self, inputs: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the JSON-ready result for these inputs, from the store, or compute it once.

        inputs: all that the result depends on, but for the code; compute: a function without
        arguments. Processes that ask for one result at the same time wait for the first of them.
        """
        key = self._key(inputs)
        if key in self.rows:
            return self.rows[key]["result"]
        # a lock for each key: different results are computed side by side
        with held(self.folder / f"{self.path.stem}-{key}", wait=FOREVER):
            self.refresh()
            # another process may have computed it while this one waited
            if key not in self.rows:
                row = {"inputs": inputs, "code": self.code, "result": compute()}
                # the value returned now must be the one that a later process reads
                self.add(key, json.loads(json.dumps(row)))
            return self.rows[key]["result"]

    def stale(self, inputs: Mapping[str, Any]) -> bool:
        """Return True if these inputs have a stored result, but only of other code than now."""
        plain = json.loads(json.dumps(inputs))
        # the inputs without the code, which the key holds as well
        is_known = any(row.get("inputs") == plain for row in self.rows.values())
        return is_known and self._key(inputs) not in self.rows

    def _key(self, inputs: Mapping[str, Any]) -> str:
        return key_of({"inputs": inputs, "code": self.code})

    def tensors(
        self, key: str, compute: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]]]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors under a key and facts about them; compute and store missing ones.

        key: a name for a file; `key_of` makes one of inputs. compute: returns tensors, and
        JSON-ready facts by name.
        Raises: AssetError if the file is damaged or cannot be written.
        """
        file = self.folder / f"{key}.safetensors"
        with building(file) as scratch:
            if scratch is not None:
                from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

                tensors, facts = compute()
                # safetensors takes no strided views
                contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
                metadata = {name: json.dumps(value) for name, value in facts.items()}
                save_file(contiguous, str(scratch), metadata=metadata)
        with reading(file):
            with open_tensors(file) as head:
                metadata = cast("dict[str, str]", head.metadata() or {})
                notes = {name: parse_json(text) for name, text in metadata.items()}
            return read_tensors(file), notes


@contextmanager
def building(target: Path) -> Generator[Path | None]:
    """Yield a scratch path that becomes `target` if the block succeeds; None if it exists.

    One process builds and others wait. A crash leaves no partial target.
    Raises: AssetError when the cache folder cannot be written.
    """
    if target.exists():
        yield None
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(held(target, wait=FOREVER))
        except TrainingError as error:
            subject, got = f"cache folder {target.parent}", error.got
            fix = "Set INTARSIA_HOME to a writable folder with a few GB of free space."
            raise AssetError(
                subject, got=got, want="a folder that can be written", fix=fix
            ) from error
        # another process may have built it meanwhile
        yield None if target.exists() else stack.enter_context(writing(target))


@contextmanager
def reading(file: Path) -> Generator[None]:
    """Turn the errors of reading a damaged cached file into an AssetError."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        fix = f"Delete {file}; it will be made again."
        want = "the file as it was written"
        raise AssetError(f"cached file {file.name}", got=error, want=want, fix=fix) from error


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a JSON line to a file; it is on the disk when this returns.

    One process writes at a time. What a killed one left of an unfinished last line is removed
    first.
    Raises: TrainingError when the disk is full or the file cannot be written.
    """
    from filelock import FileLock  # not needed to read, nor by `import intarsia`

    # NaN is no JSON: refused here, not found when the file is read
    line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"), open_own(path, "a+b") as file:
            # under the lock: an unfinished last line is a killed writer's, not another's
            file.truncate(_end_of_last_line(file.tell(), file))
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from error


def _end_of_last_line(end: int, file: Any, block: int = 4096) -> int:
    """Return the position behind the last line end of a file, 0 if there is none."""
    while end:
        start = max(0, end - block)
        file.seek(start)
        # from the end, block by block: the file may be long
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
