"""Packages are unpacked completely or not at all, once, and never outside their folder."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from intarsia.core.errors import AssetError
from intarsia.data import packages
from intarsia.data.packages import Package, building, cache_dir, obtain

from ..refusals import refused


def _wheel(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tgz(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _supply(cache: Path, file: str, content: bytes, registry: str = "pypi") -> Package:
    (cache / "archives").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / file).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Package(registry, "toy-data", "1.0", digest, 1, "MIT")  # pyright: ignore[reportArgumentType]


WHEEL = "toy_data-1.0-py3-none-any.whl"


def test_a_supplied_archive_is_unpacked_once(tmp_path: Path) -> None:
    package = _supply(tmp_path, WHEEL, _wheel({"toy/data.csv": b"1,2"}))
    said: list[str] = []
    folder = obtain(package, cache=tmp_path, progress=said.append)
    assert (folder / "toy/data.csv").read_bytes() == b"1,2" and said == []
    (tmp_path / "archives" / WHEEL).unlink()
    assert obtain(package, cache=tmp_path) == folder


def test_an_epoch_in_a_version_is_written_as_apt_does(tmp_path: Path) -> None:
    package = _supply(tmp_path, WHEEL.replace("1.0", "1%3a1.0"), _wheel({"toy/a": b"x"}))
    epoch = dataclasses.replace(package, version="1:1.0")
    assert (obtain(epoch, cache=tmp_path, progress=lambda _: None) / "toy/a").is_file()


def test_concurrent_processes_unpack_once(tmp_path: Path) -> None:
    package = _supply(tmp_path, WHEEL, _wheel({f"toy/{i}": b"x" * 999 for i in range(50)}))
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: obtain(package, cache=tmp_path), range(16)))
    assert len(set(folders)) == 1 and len(list((folders[0] / "toy").iterdir())) == 50
    assert not [p for p in folders[0].parent.iterdir() if p.is_dir() and p.name.startswith(".")]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "toy/../../evil"])
def test_a_wheel_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    package = _supply(tmp_path, WHEEL, _wheel({"toy/ok": b"", name: b"evil"}))
    with refused(
        AssetError,
        what="unpacking toy_data-1.0-py3-none-any.whl",
        want="paths inside the archive's own folder",
    ):
        obtain(package, cache=tmp_path)
    assert (
        not list(tmp_path.rglob("evil")) and not (tmp_path / "packages/pypi/toy-data-1.0").exists()
    )


def test_a_tarball_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    package = _supply(
        tmp_path, "toy-data-1.0.tgz", _tgz([(tarfile.TarInfo("../evil"), b"")]), "npm"
    )
    with refused(AssetError, what="unpacking toy-data-1.0.tgz", got="a member named '../evil'"):
        obtain(package, cache=tmp_path)


def test_links_in_a_tarball_are_left_out(tmp_path: Path) -> None:
    link = tarfile.TarInfo("package/passwd")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content = _tgz([(tarfile.TarInfo("package/ok"), b"fine"), (link, b"")])
    folder = obtain(_supply(tmp_path, "toy-data-1.0.tgz", content, "npm"), cache=tmp_path)
    assert [p.name for p in (folder / "package").iterdir()] == ["ok"]


@pytest.mark.parametrize("registry", ["pypi", "npm"])
def test_a_damaged_archive(tmp_path: Path, registry: str) -> None:
    file = WHEEL if registry == "pypi" else "toy-data-1.0.tgz"
    package = _supply(tmp_path, file, b"no archive at all", registry)
    with pytest.raises(AssetError, match="an undamaged archive"):
        obtain(package, cache=tmp_path)


def test_another_hash_is_refused(tmp_path: Path) -> None:
    package = _supply(tmp_path, WHEEL, _wheel({"toy/a": b"1"}))
    _supply(tmp_path, WHEEL, _wheel({"toy/a": b"2"}))
    with refused(AssetError, what="SHA-256 of toy_data-1.0-py3-none-any.whl"):
        obtain(package, cache=tmp_path)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = Package("pypi", "intarsia-no-such-package", "1.0", "0" * 64, 1, "MIT")
    said: list[str] = []
    with pytest.raises(AssetError) as caught:
        obtain(package, cache=tmp_path, progress=said.append)
    assert (
        "Check the network" in caught.value.fix and str(tmp_path / "archives") in caught.value.fix
    )
    assert len(said) == 1 and "intarsia-no-such-package==1.0" in said[0]


@pytest.mark.parametrize(("registry", "program"), [("debian", "apt-get"), ("npm", "npm")])
def test_a_missing_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: str, program: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = Package(registry, "toy", "1", "0" * 64, 1, "MIT")  # pyright: ignore[reportArgumentType]
    with pytest.raises(AssetError, match=f"no program '{program}'"):
        obtain(package, cache=tmp_path, progress=lambda _: None)


def test_a_deb_without_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    package = _supply(tmp_path, "toy-data_1.0_all.deb", b"!<arch>", "debian")
    with refused(AssetError, what="unpacking toy-data_1.0_all.deb"):
        obtain(package, cache=tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    package = Package("pypi", "toy", "1", "0" * 64, 1, "MIT")
    with pytest.raises(AssetError, match="INTARSIA_HOME"):
        obtain(package, cache=tmp_path / "file")


def test_a_crash_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(ZeroDivisionError), building(target) as scratch:
        assert scratch is not None
        scratch.write_text("half")
        _ = 1 / 0
    assert not target.exists()
    with building(target) as scratch:
        assert scratch is not None
        scratch.write_text("whole")
    assert target.read_text() == "whole"


def test_leftovers_of_a_killed_process_do_no_harm(tmp_path: Path) -> None:
    code = (
        "import os, sys; from importlib import util; from pathlib import Path\n"
        "spec = util.spec_from_file_location('packages', sys.argv[1])\n"
        "packages = sys.modules['packages'] = util.module_from_spec(spec)\n"
        "spec.loader.exec_module(packages)\n"  # the file alone: importing all of it takes seconds
        "with packages.building(Path(sys.argv[2])) as scratch:\n"
        "    scratch.write_text('half'); os._exit(9)"
    )
    target = tmp_path / "made"
    command = [sys.executable, "-c", code, packages.__file__, str(target)]
    assert subprocess.run(command, check=False).returncode == 9
    assert not target.exists() and list(tmp_path.glob(".made.writing-*"))
    with building(target) as scratch:
        assert scratch is not None
        scratch.write_text("whole")
    assert target.read_text() == "whole" and not list(tmp_path.glob(".made.writing-*"))


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("INTARSIA_HOME")
    assert cache_dir().name == "intarsia" and os.environ.get("INTARSIA_HOME") is None


def test_specs_and_folders() -> None:
    package = Package("npm", "@scope/name", "2", "0" * 64, 1, "MIT")
    assert (package.spec, package.folder) == ("@scope/name@2", "npm/scope+name-2")
    assert dataclasses.replace(package, registry="debian").spec == "@scope/name=2"


@pytest.mark.network
def test_a_package_from_npm(tmp_path: Path) -> None:
    digest = "7b75c1057198cf97696909a9bee176c9c5e9bcb5b03bf3ecef2f484defadd51e"
    package = Package("npm", "is-number", "7.0.0", digest, 1, "MIT")
    folder = obtain(package, cache=tmp_path, progress=lambda _: None)
    assert "isNumber" in (folder / "package/README.md").read_text()
