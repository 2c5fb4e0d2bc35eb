"""Compile the kernels' C at first use, into a folder that nobody else can write."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...core.cache import cache_dir, own_cache
from ...core.errors import ConfigError
from ...core.files import sync
from ...core.sealing import sha256

SOURCES = Path(__file__).parent
KINDS = ("native", "avx2", "portable")
FLAGS = ("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast")
SHARED = ("-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wno-psabi")
ABOUT = {
    "native": ("-march=native",),
    "avx2": ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mpopcnt", "-mf16c"),
    "portable": (),
}
SECONDS = 300  # for a compiler


class BuildFailed(Exception):
    """The reason why there are no kernels, in one line."""


def compilers() -> Iterator[tuple[str, ...]]:
    """Yield the commands that compile C on this machine: $CC, cc, gcc, clang, `ziglang`."""
    if command := shlex.split(os.environ.get("CC", "")):
        yield tuple(command)
    yield from ((path,) for name in ("cc", "gcc", "clang") if (path := shutil.which(name)))
    if importlib.util.find_spec("ziglang") is not None:
        yield (sys.executable, "-m", "ziglang", "cc")


@functools.cache
def compiler() -> tuple[tuple[str, ...], str]:
    """Return the first of `compilers` that runs, and the first line of its version.

    Raises: BuildFailed if none does.
    """
    for command in compilers():
        try:
            process = subprocess.run([*command, "--version"], capture_output=True, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError):
            continue
        if process.returncode == 0:
            return command, process.stdout.decode(errors="replace").partition("\n")[0]
    raise BuildFailed("no C compiler: install gcc or clang, or pip install 'intarsia[compiler]'")


def flags(kind: str) -> tuple[str, ...]:
    """Return the compiler's flags for a kind of build, "native", "avx2" or "portable"."""
    target_flags = ABOUT[kind]
    # other processors than x86 name the native target differently
    if kind == "native" and platform.machine().lower() not in ("x86_64", "amd64"):
        target_flags = ("-mcpu=native",)
    return (*FLAGS, *target_flags, *SHARED)


@functools.cache
def processor() -> str:
    """Return the processor's flags, or its name, on which `-march=native` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    matching = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return "\n".join(sorted(set(matching))) or platform.processor() or platform.machine()


def sources() -> Sequence[Path]:
    """Return all C files of this folder, headers included."""
    return sorted([*SOURCES.glob("*.c"), *SOURCES.glob("*.h")])


def key(kind: str) -> str:
    """Return the SHA-256 of sources, flags, compiler and processor, which names a build."""
    digest = hashlib.sha256()
    command, version = compiler()
    of_kind = (*flags(kind), *command, version, platform.machine(), processor())
    for text in of_kind:
        digest.update(text.encode() + b"\0")
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def folder() -> Path:
    """Return the folder of built kernels: `$INTARSIA_KERNELS`, or `kernels` in `$INTARSIA_HOME`.

    A home that others can write to does not get them: this user's cache does. It never comes from a
    model's folder. It is made with mode 700.
    Raises: ConfigError for a folder that another user owns or can write to.
    """
    setting = os.environ.get("INTARSIA_KERNELS")
    if setting:
        return _private(Path(setting))
    try:
        return _private(cache_dir() / "kernels")
    except (ConfigError, OSError):
        return _private(own_cache() / "kernels")


def _private(place: Path) -> Path:
    """Make a folder, and return it if it is this user's alone.  Raises: as `check_private`."""
    place = place.expanduser().absolute()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(place)
    return place


def check_private(place: Path) -> None:
    """Raise ConfigError if anybody else could write into a folder, or replace it.

    It has to belong to this user, who alone may write to it; no folder above it may be writable for
    others, unless it is one like /tmp, where nobody can rename the files of other users.
    """
    # a loaded library runs as this user: nobody else may have written it
    status = place.lstat()
    ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    name, want = f"folder of kernels {str(place)!r}", "your own folder, that only you can write"
    if not stat.S_ISDIR(status.st_mode) or not ours:
        got = "a link or no folder" if ours else f"a folder of user {status.st_uid}"
        fix = "Set INTARSIA_KERNELS to a folder of yours."
        raise ConfigError(name, got=got, want=want, fix=fix)
    if os.name == "posix" and status.st_mode & 0o022:
        got = f"mode {stat.S_IMODE(status.st_mode):o}, which others can write"
        fix = f"Delete it, then: install -d -m 700 {place}"
        raise ConfigError(name, got=got, want=want, fix=fix)
    for above in place.resolve().parents if os.name == "posix" else ():
        mode = above.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            got, fix = f"{above} above it, which others can write", f"chmod o-w {above}"
            raise ConfigError(name, got=got, want=want, fix=fix)


def build(kind: str) -> Path:
    """Return the path of the shared library of a kind of build; compile it unless it is there.

    kind: "native", "avx2" or "portable". A library whose SHA-256 is not the stored one is compiled
      again. Raises: BuildFailed if it cannot be compiled; ConfigError as `folder`.
    """
    from filelock import FileLock

    target = folder() / f"{kind}-{key(kind)[:32]}.so"
    # other processes may compile the same build: one does, the others wait
    with FileLock(target.with_suffix(".lock"), timeout=2 * SECONDS):
        if not intact(target):
            _compile(kind, target)
    return target


def intact(target: Path) -> bool:
    """Return True if a built file is there with the SHA-256 that was stored next to it."""
    note = target.with_suffix(".sha256")
    try:
        return note.read_text().strip() == sha256(target)
    except OSError:
        return False


def _compile(kind: str, target: Path) -> None:
    """Compile into a temporary folder, then move library and SHA-256 to their place."""
    command, _ = compiler()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        inputs = [str(path) for path in sources() if path.suffix == ".c"]
        line = [*command, *flags(kind), *inputs, "-o", str(built), "-lm"]
        try:
            process = subprocess.run(line, capture_output=True, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            raise BuildFailed(f"{command[0]}: {error}") from error
        if process.returncode or not built.is_file():
            messages = [
                t for t in process.stderr.decode(errors="replace").splitlines() if t.strip()
            ]
            first = next(
                (t for t in messages if "error" in t), messages[0] if messages else "no message"
            )
            raise BuildFailed(f"{command[0]}: {first.strip()}")
        sync(built)
        note = Path(scratch) / "note"
        note.write_text(sha256(built) + "\n")
        # an old SHA-256 must not stand next to the new file
        target.with_suffix(".sha256").unlink(missing_ok=True)
        # the SHA-256 is moved last: a library without one is never trusted
        os.replace(built, target)
        os.replace(note, target.with_suffix(".sha256"))
