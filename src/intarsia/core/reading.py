"""Files that anybody may have handed over: only regular ones are opened, and read up to a limit.

A named pipe would wait for ever, a device never ends, and a socket cannot be read. All of them, and
a folder where a file belongs, are an `OSError` here, which a caller turns into the error of its
kind of file, as it does for a file that is missing.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# Windows has neither
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
LARGEST = 2**32  # bytes of a file that is read whole
UNKNOWN_SIZE = 0x7FFFF000  # of a WAV file, and all above it
LONGEST = 2**28  # characters of a line
KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_handle(path: str | Path) -> int:
    """Open a regular file for reading and return its descriptor; links are followed.

    The kind of file is checked after it was opened, so that nothing can take its place in between.
    It is opened without waiting, since opening a named pipe would wait for a writer.
    Raises: OSError if it is missing or cannot be read, and for anything but a regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | WITHOUT_WAITING)
    except ValueError as error:  # a zero byte, or a character that no path has
        raise OSError(errno.EINVAL, str(error), ascii(str(path))) from error
    try:
        # of the open file: a path could be exchanged between a check and the opening
        _check_regular(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return handle


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a regular file for reading bytes.  Raises: OSError as `open_handle`."""
    return open(open_handle(path), "rb")


def open_own(path: str | Path, mode: str, **options: Any) -> Any:
    """Open a file of a folder that this program writes, and no file that a link there names.

    mode: as for `open`, to write; options: of `open`, such as newline.
    Raises: OSError for a link, and as `open`.
    """
    no_link = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda name, how: os.open(name, how | no_link, 0o666), **options)


def _check_regular(mode: int, path: str | Path) -> None:
    """Refuse a path that is no regular file.  mode: `st_mode` of its stat.  Raises: OSError."""
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, where a file belongs", str(path))
    kind = next((name for test, name in KINDS if test(mode)), "something else")
    raise OSError(errno.EINVAL, f"{kind}, where a regular file belongs", str(path))


def check_regular(path: str | Path) -> None:
    """Check, before another library opens it, that a path is a regular file, or a folder of such.

    Folders are checked two levels deep; a missing file is no error here.
    Raises: OSError for a pipe, a device or a socket.
    """
    for file in _inside(Path(path)):
        if file.exists() and not file.is_dir():
            _check_regular(file.stat().st_mode, file)


def _inside(path: Path, levels: int = 2) -> Iterable[Path]:
    """Yield the files below a path; folders that are `levels` below it are yielded as they are."""
    if not (levels and path.is_dir()):
        yield path
        return
    for inner in path.iterdir():
        yield from _inside(inner, levels - 1)


def read_bytes(path: str | Path, limit: int = LARGEST) -> bytes:
    """Read a regular file whole.

    limit: the most bytes that are read.
    Raises: OSError as `open_regular`, and for a larger file.
    """
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            got = f"{size:,} bytes, where at most {limit:,} are read"
            raise OSError(errno.EFBIG, got, str(path))
        return file.read()


def check_whole_wav(file: io.BufferedReader) -> None:
    """Check that a WAV file is not cut off; other kinds of sound pass.

    file: open at its start, where it is left again.
    Raises: OSError for a file with fewer bytes than its header says.
    """
    head = file.read(8)
    file.seek(0)
    size, length = int.from_bytes(head[4:], "little") + 8, os.fstat(file.fileno()).st_size
    # who writes to a pipe does not know the size, and writes the largest
    if head[:4] == b"RIFF" and length < size < UNKNOWN_SIZE:
        raise OSError(errno.EIO, f"{length:,} of {size:,} bytes, so it was cut off")


def read_text(path: str | Path, encoding: str = "utf-8", limit: int = LARGEST) -> str:
    r"""Read a regular file as text, with "\n" at the end of each line.

    limit: the most bytes that are read.
    Raises: OSError as `read_bytes`; UnicodeDecodeError for other bytes than the encoding has.
    """
    with io.TextIOWrapper(io.BytesIO(read_bytes(path, limit)), encoding) as text:
        return text.read()


def read_lines(
    path: str | Path, encoding: str = "utf-8", newline: str | None = None
) -> Iterator[str]:
    """Yield the lines of a regular file with their ends, without reading the file whole.

    newline: how line ends are recognised, as for `open`.
    Raises: OSError as `open_regular`, and for a line of more than LONGEST characters, while it is
    read; UnicodeDecodeError for other bytes than the encoding has.
    """
    # a bounded readline: a file without line ends would fill the memory
    with io.TextIOWrapper(open_regular(path), encoding, newline=newline) as text:
        while line := text.readline(LONGEST + 1):
            if len(line) > LONGEST:
                got = f"a line of more than {LONGEST:,} characters"
                raise OSError(errno.EFBIG, got, str(path))
            yield line


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a regular file's bytes and permissions.

    Raises: OSError as `open_regular`, and if it cannot be written.
    """
    import shutil

    with open_regular(source) as file, open(target, "wb") as out:
        shutil.copyfileobj(file, out)
        os.fchmod(out.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))


def open_tensors(path: str | Path, framework: str = "pt") -> Any:
    """Open a safetensors file, for use in `with`; only a regular file.

    framework: of the tensors, "pt" or "np". It is opened by its descriptor, so that the file that
    was checked is the one that is read.
    Raises: OSError as `open_regular`; SafetensorError for a damaged file.
    """
    from safetensors import safe_open

    with open_regular(path) as file:
        # safetensors opens by name only: this name is the open file itself
        number = f"/dev/fd/{file.fileno()}"
        try:
            return safe_open(number if os.path.exists(number) else str(path), framework)
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "too large to be mapped", str(path)) from error


def copy_tensors(path: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """Read tensors of a safetensors file by name, each into memory of its own.

    For weights that stay: a mapped file that changes would change them. It is read without being
    mapped, since copies of mapped pages take twice the time.
    Raises: as `read_tensors`; KeyError for a missing name; OSError for a file that ends too early.
    """
    import torch

    with open_regular(path) as file:
        # the shapes and types are those that safetensors has checked
        mapped = read_tensors(path)
        tensors = {name: torch.empty_like(mapped[name]) for name in names}
        start = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start))
        for name, tensor in tensors.items():
            first, last = header[name]["data_offsets"]
            file.seek(8 + start + first)
            array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            room = memoryview(array)
            if last - first != len(room) or file.readinto(room) != len(room):
                raise OSError(errno.EIO, f"tensor {name} is cut off", str(path))
    return tensors


def read_tensors(path: str | Path, framework: str = "pt") -> dict[str, Any]:
    """Read all tensors of a safetensors file by name; they are memory-mapped.

    framework: "pt" or "np".
    Raises: as `open_tensors`; SafetensorError for a type that the framework does not have.
    """
    from safetensors import SafetensorError

    with open_tensors(path, framework) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (AttributeError, TypeError, RuntimeError) as error:
            raise SafetensorError(f"{type(error).__name__}: {error}") from error
