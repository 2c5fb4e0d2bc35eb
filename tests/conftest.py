"""Settings of the whole suite: offline, reproducible, two cores; memory nobody wrote is NaN."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import re
import runpy
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before any Hub library is imported: their switches are read once
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from . import seeds

TESTS = Path(__file__).parent
TENSOR_MATHS = frozenset(
    {"adapters", "core", "formats", "kernels", "mixtures", "partitions", "routers", "scores"}
)

PRELOAD = ["intarsia_lab.bench.run", "intarsia.parallel.trial"]

settings.register_profile(
    "ci",
    max_examples=50,
    derandomize=not seeds.SHIFT,  # the seed of pytest_configure counts only without it
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", settings.get_profile("ci"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
# it would read all sources for constants to draw: seconds in each process, and what a test draws
# would hang on what else has been imported
providers.is_local_module_file = lambda path: False


def pytest_configure(config: pytest.Config) -> None:
    """Share the cores between the processes of pytest-xdist, unless OMP_NUM_THREADS says how.

    The server of forks finds the package by PYTHONPATH, from whichever folder it is started in.
    """
    if seeds.SHIFT:
        seeds.shift()
        config.option.hypothesis_seed = str(seeds.SHIFT)
    multiprocessing.set_forkserver_preload(PRELOAD)
    # a second list, before the server starts, would leave out the first
    multiprocessing.forkserver.set_forkserver_preload = lambda modules_names: None
    # 5,000 of them in 270 tests, 4 ms each: no test pulls the plug, and a process that is killed
    # leaves to the system what it has written
    os.fsync = lambda fd: None
    if paths := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    if "OMP_NUM_THREADS" not in os.environ:
        workers = int(config.getoption("numprocesses", None) or 1)
        threads = max(1, min(2, (os.cpu_count() or 1) // workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of all that this process starts


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Freeze the imported objects: no garbage collection visits half a million of them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine, unless the test is marked `network`."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a Unix socket
        if host not in {"localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}:
            raise ConnectionRefusedError(
                f"offline test: got a connection to {address!r}, want none. "
                "Use local data, or mark the test `network`."
            )
        connect(self, address)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """`torch.empty` gives NaN in the folders with tensor maths: a value never written shows.

    It needs deterministic algorithms; training and hosts are tested as users run them, without.
    """
    folder = request.path.relative_to(TESTS).parts[0]
    if folder not in TENSOR_MATHS or request.node.get_closest_marker("gpu"):
        yield
        return
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness on the CPU."""
    return torch.Generator().manual_seed(0)


@dataclass(frozen=True)
class Forked:
    """A script in a forked process.  output: its files of output, but for their endings."""

    process: Any
    output: Path

    def wait(self, seconds: float = 300) -> tuple[int, str, str]:
        """Its exit status, and what it wrote to stdout and stderr."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        out, err = (self.output.with_suffix(end).read_text() for end in (".out", ".err"))
        return self.process.exitcode, out, err


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    """Starts a script in a process of its own that need not import PEFT: forked(script, word, A=b).

    It is forked from a server without threads, the one that `FreshProcess` and `Processes` fork
    from, too. Where the start itself is tested, use subprocess.
    """
    folder = tmp_path_factory.mktemp("forked")
    context = multiprocessing.get_context("forkserver")
    count = iter(range(1_000))

    def start(script: Path, *words: object, **environment: str) -> Forked:
        output = folder / str(next(count))
        job = {
            "script": str(script),
            "words": [str(word) for word in words],
            "environment": environment,
            "output": str(output),
        }
        # of the standard library, which any process can import
        arguments = (str(TESTS / "forked.py"), {"job": job}, "__main__")
        process = context.Process(target=runpy.run_path, args=arguments)
        process.start()
        return Forked(process, output)

    return start


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Opens a page; returns its DOM after loading. Console messages fail the test."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")

    def open_page(page: Path, *flags: str, complaints: int = 0) -> str:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        done = subprocess.run(
            [program, *BROWSER_FLAGS, profile, *flags, page.as_uri()],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert len(messages) == complaints, messages
        return done.stdout

    return open_page


# the outer page has loaded when the frame has
PHONE = """<body><iframe width="360" height="800" src="{page}"></iframe><script>
addEventListener("load", () => {{
  const inside = document.querySelector("iframe").contentDocument.documentElement;
  document.body.dataset.width = `${{inside.scrollWidth}} of ${{inside.clientWidth}}`;
}});
</script></body>"""


@pytest.fixture
def on_a_phone(browse: Callable[..., str], tmp_path: Path) -> Callable[[Path], str]:
    """Measure a page's width on a phone of some width, "360 of 360" where nothing is cut off.

    In a frame, since a headless window has a least width of its own; from the page's own file,
    since a browser was seen to change a script of megabytes that it read out of an attribute.
    """

    def width(page: Path) -> str:
        outer = tmp_path / "phone.html"
        outer.write_text(PHONE.format(page=page.as_uri()), "utf-8")
        dom = browse(outer, "--dump-dom", "--allow-file-access-from-files")
        return "".join(re.findall(r'data-width="([^"]*)"', dom))

    return width
