"""The loader: what it compiles, keeps and refuses; and that without kernels all goes on."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from intarsia.core.errors import ConfigError
from intarsia.formats import Bitmask
from intarsia.kernels import native
from intarsia.kernels.native import building, loading
from intarsia.kernels.native.floor import matmul_peak, read_bandwidth

from ..refusals import refused

needs_compiler = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")


def abi(number: int) -> str:
    visible = '__attribute__((visibility("default")))'
    return f"{visible} int intarsia_abi(void) {{ return {number}; }}"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, with one small source, so that compiling costs nothing."""
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.c").write_text(abi(native.loading.ABI))
    monkeypatch.setattr(building, "SOURCES", tmp_path / "c")
    monkeypatch.setenv("INTARSIA_KERNELS", str(tmp_path / "kernels"))
    loading._loaded.cache_clear()
    yield tmp_path
    loading._loaded.cache_clear()


def test_kernels_are_kept_below_the_home_unless_others_can_write_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, own = tmp_path / "home", tmp_path / "own"
    monkeypatch.delenv("INTARSIA_KERNELS", raising=False)
    monkeypatch.setenv("INTARSIA_HOME", str(home))
    monkeypatch.setattr(building, "own_cache", lambda: own)
    assert building.folder() == home / "kernels" and not own.exists()
    (home / "kernels").chmod(0o777)
    assert building.folder() == own / "kernels"


@needs_compiler
def test_a_built_file_is_kept_and_built_again_where_its_bytes_changed(place: Path) -> None:
    first = building.build("portable")
    assert first.parent.stat().st_mode & 0o777 == 0o700
    written = first.stat().st_mtime_ns
    assert building.build("portable") == first and first.stat().st_mtime_ns == written
    first.write_bytes(first.read_bytes()[:-1] + b"?")  # not what the note beside it says
    assert not building.intact(first)
    assert building.build("portable") == first and building.intact(first)
    (place / "c" / "a.c").write_text(abi(0))
    assert building.build("portable") != first  # the name holds the sources
    assert building.key("native") != building.key("portable")


@needs_compiler
@pytest.mark.parametrize("damage", ["abi", "source"])
def test_what_cannot_be_had_is_told_once_and_products_run_dense(
    damage: str, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = {"abi": abi(99), "source": "this is no C"}[damage]
    (place / "c" / "a.c").write_text(text)
    weight = torch.eye(4)
    with native.using("portable"):
        assert native.load() is None and native.load() is None
        y = Bitmask().matmul(torch.ones(1, 4), Bitmask().encode(weight), (4, 4))
        reason = native.why()
    assert torch.equal(y, torch.ones(1, 4))
    assert ("ABI 99" if damage == "abi" else "error") in reason and "\n" not in reason
    assert len(caplog.records) == 1 and "run dense" in caplog.text


def test_a_folder_that_others_can_write_is_refused(place: Path) -> None:
    kernels = place / "kernels"
    kernels.mkdir(mode=0o700)
    building.check_private(kernels)
    kernels.chmod(0o720)
    with refused(ConfigError, got="mode 720, which others can write"):
        building.folder()
    kernels.chmod(0o700)
    place.chmod(0o777)  # they could put another folder in its place
    with pytest.raises(ConfigError, match="above it, which others can write"):
        building.folder()
    place.chmod(0o700)
    (place / "link").symlink_to(kernels)
    with refused(ConfigError, got="a link or no folder"):
        building.check_private(place / "link")


def test_no_compiler_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    building.compiler.cache_clear()
    monkeypatch.setattr(building, "compilers", lambda: iter([("no-such-compiler",)]))
    with pytest.raises(building.BuildFailed, match=r"install gcc or clang.*\[compiler\]"):
        building.compiler()
    building.compiler.cache_clear()


def test_the_environment_turns_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, kind in (("0", "off"), ("1", "native"), ("avx2", "avx2"), ("?", "native")):
        monkeypatch.setenv("INTARSIA_NATIVE", setting)
        loading._of_environment.cache_clear()
        assert native.kind() == kind
    loading._of_environment.cache_clear()
    with native.using("off"):
        assert native.load() is None and native.function("bitmask_linear") is None
        assert native.instructions() == "none"


@needs_compiler
def test_a_forked_process_and_two_threads_at_once_multiply_as_before() -> None:
    code = """
import os, threading, torch
from intarsia.formats import Bitmask
torch.set_num_threads(3)
w = torch.randn(600, 512); s = Bitmask().encode(w); x = torch.randn(1, 512)
want = Bitmask().matmul(x, s, w.shape)
def same():
    for _ in range(40):
        assert torch.equal(Bitmask().matmul(x, s, w.shape), want)
threads = [threading.Thread(target=same) for _ in range(3)]
[t.start() for t in threads]; [t.join() for t in threads]
child = os.fork()
if not child:
    same(); os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@needs_compiler
def test_a_fork_multiplies_though_the_threads_that_torch_had_are_gone() -> None:
    code = """
import os, torch
from intarsia.kernels import dense, native
torch.set_num_threads(3)
weight, x = torch.randn(600, 512), torch.randn(64, 512)
native.load()
torch.add(torch.ones(1000, 1000), 1)  # starts them
child = os.fork()
if not child:
    dense.linear(x, weight); os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


@needs_compiler
def test_products_use_the_threads_that_torch_has() -> None:
    if not hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        pytest.skip("torch has no OpenMP of GCC's form here")
    code = """
import os, torch
from intarsia.kernels import dense
torch.set_num_threads(3)
weight, x = torch.randn(600, 512), torch.randn(64, 512)
want = torch.nn.functional.linear(x, weight)
torch.add(torch.ones(1000, 1000), 1)  # starts them
before = len(os.listdir("/proc/self/task"))
assert torch.allclose(dense.linear(x, weight), want, atol=1e-3)
assert len(os.listdir("/proc/self/task")) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_floors_are_numbers_a_machine_can_have() -> None:
    assert 1e8 < read_bandwidth(16, 2) < 1e13
    assert 1e8 < matmul_peak(torch.float32, 128, 2) < 1e15
