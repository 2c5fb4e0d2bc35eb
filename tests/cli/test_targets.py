"""What is there is not lost, and two processes never write one name: the same in all verbs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.areas.codec import irc
from intarsia.cli.targets import finished_names

from .conftest import Intarsia

HELD = """
import sys
from contextlib import ExitStack
from intarsia.core.locks import held
with ExitStack() as stack:
    for name in sys.argv[1:]:
        stack.enter_context(held(name))
    print("held", flush=True)
    sys.stdin.read()
"""
T = "TARGET"
VERBS: dict[str, tuple[str, ...]] = {
    "trace": ("trace", "model", "austen", "--out", T),
    "place": ("place", "t", "--devices", "4", "--out", T),
    "place --write": (
        *("place", "t", "--devices", "4", "--out", "p", "--checkpoint", "m", "--write", T),
    ),
    "place --sglang": ("place", "t", "--devices", "4", "--out", "p", "--sglang", T),
    "unlearn": ("unlearn", "m", "--forget", "austen", "--retain", "wordnet", "--out", T),
    "simulate": ("simulate", "t", "--devices", "4", "--out", f"{T}.json"),
    "simulate page": ("simulate", "t", "--devices", "4", "--out", f"{T}.html"),
    "offload": ("offload", "photos", "--out", T),
    "codec encode": ("codec", "encode", "photos/a.png", "-o", T),
    "codec decode": ("codec", "decode", "a.irc", "-o", T),
    "codec train": ("codec", "train", "photos", "--out", T),
    "compress": ("compress", "m", "--out", T),
    "sparsify": ("sparsify", "m", "--out", T),
    "convert": ("convert", "sparse", "--out", T),
    "blend": ("blend", "run", "run", "--out", T),
    "merge": ("merge", "run", "run", "--out", T),
    "fit --task": ("fit", "docs.jsonl", "--task", "sparse-retrieval", "--out", T),
    "index": ("index", "docs.jsonl", "--out", T),
    "index --form": ("index", "idx", "--form", "trec", "--out", T),
    "search --queries": ("search", "idx", "--queries", "q.txt", "--out", T),
    "spans": ("spans", "m", "--out", f"{T}.json"),
    "combine": ("combine", "m", "austen", "prune:0.25", "--out", T),
    "components": ("components", "run", "-o", T),
    "components --fit": ("components", T, "--fit", "photos"),
    "export": ("export", "run", "--out", T),
    "export onnx": ("export", "run", "--format", "onnx", "--out", T),
    "report": ("report", "run", "--out", T),
    "predict --out": ("predict", "run", "photos", "--out", T),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the verbs read first."""
    folder = tmp_path_factory.mktemp("targets")
    for file in ("run/experiment.json", "idx/meta.json", "sparse/model.safetensors"):
        (folder / file).parent.mkdir()
        (folder / file).write_text("{}")
    (folder / "photos").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "photos" / "a.png")
    header = irc.Header(bytes(8), "image", 8, (8, 8))
    (folder / "a.irc").write_bytes(irc.write(header, b""))
    return folder


@pytest.fixture(scope="module")
def other(place: Path) -> Iterator[None]:
    """Another process, which works on both targets."""
    names = [str(place / f"busy{suffix}") for suffix in ("", ".json", ".html")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HELD, *names], **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
        assert process.stdin is not None
        process.stdin.close()


def called(intarsia: Intarsia, verb: str, target: Path) -> Any:
    return intarsia(*(word.replace(T, str(target)) for word in VERBS[verb]))


def test_a_whole_result_is_one_s_own_while_its_state_is_there(tmp_path: Path) -> None:
    out, state = tmp_path / "out", tmp_path / ".out.training"
    out.mkdir()
    for name in ("prior.json", "prior.safetensors"):
        (out / name).touch()
    assert finished_names(out, state, "prior.json") == []
    state.mkdir()
    assert sorted(finished_names(out, state, "prior.json")) == ["prior.json", "prior.safetensors"]
    assert finished_names(out, state, "modules.json") == []
    assert finished_names(None, state, "prior.json") == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_file_of_somebody_is_not_replaced(
    intarsia: Intarsia, verb: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    files = [place / f"thesis{suffix}" for suffix in ("", ".json", ".html")]
    for file in files:
        file.write_text("years of work")
    result = called(intarsia, verb, files[0])
    assert result.code == 2 and "a file that was not written like this" in result.words
    assert all(file.read_text() == "years of work" for file in files)
    names = {path.name for path in place.iterdir() if not path.name.endswith(".lock")}
    assert names == {"photos", "run", "idx", "sparse", "a.irc", *(file.name for file in files)}


@pytest.mark.parametrize(
    ("verb", "files"),
    [
        ("compress", ("config.json", "packed.safetensors")),
        ("index", ("meta.json", "a.safetensors")),
    ],
)
def test_a_finished_folder_is_not_promised_to_be_replaced(
    intarsia: Intarsia, verb: str, files: tuple[str, ...], tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).touch()
    result = called(intarsia, verb, tmp_path)
    assert result.code == 2 and "want a new or empty folder fix" in result.words


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("verb", VERBS)
def test_a_name_that_another_process_works_on_is_refused_at_once(
    intarsia: Intarsia, verb: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = called(intarsia, verb, place / "busy")
    assert result.code == 2 and "another process works on" in result.words


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    intarsia: Intarsia, place: Path
) -> None:
    for target in (place / "a.irc" / "new", Path("/proc/new")):
        result = intarsia("codec", "encode", place / "photos" / "a.png", "-o", target)
        assert result.code == 2 and "writing to" in result.words
