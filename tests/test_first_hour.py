"""The first hour: every command of README.md where the wheel alone is installed, as it prints it.

The models are tiny untrained ones, since the pretrained ones need the network. The laboratory is
not installed, and what trains, searches and serves does without it. The commands share a process,
which imports torch once; the server has its own, and so has the exported model, which could not
import this library if it tried.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from typer.testing import CliRunner

from intarsia.cli import app
from intarsia.conformance.senses import picture

from .areas.search.conftest import masked_language_model
from .language_models import mixtral
from .pages import ROOT, commands, compare_numbers, compare_words, desk, read, typed

CHOICE = Path("runs/auto-photos/choice")  # in README
README = (ROOT / "README.md").read_text()
ONE_LINERS = re.findall(r"`(intarsia [^`]+)`", "".join(re.findall(r"^\|.*\n", README, re.M)))
DOCUMENTS = ("the printer is loud", "pale prints want ink", "a quiet printer", "the loud fan")
REFUSED = {  # each with what it says, since the laboratory has it
    "intarsia reproduce mosa": "pip install ./lab",
    "intarsia fit mini/elpv --epochs 1": "",
    "intarsia nosuch": "",
}

HOUR = """
import importlib.util, json, shutil, sys
from typer.testing import CliRunner
from intarsia.cli import app
from intarsia.runs import matrix

matrix.EXECUTOR = "here"
assert importlib.util.find_spec("intarsia_lab") is None
ends = []
for words in json.load(sys.stdin):
    end = CliRunner().invoke(app, words)
    if "Only one candidate was trained" in end.stdout:  # the machine is busy: give it more time
        shutil.rmtree("runs/auto-photos")
        end = CliRunner().invoke(app, [*words, "--minutes", "0.75"])
    ends.append((end.exit_code, end.stdout, end.output))
importlib.import_module("intarsia.serve.app")
print(json.dumps(ends))
"""


@dataclass(frozen=True)
class Environments:
    """Two virtual environments with the packages that are installed here.

    fresh: with the wheel, too.  stock: without any part of this library.
    """

    fresh: Path
    stock: Path

    def run(self, program: Path, *words: str, **options: str) -> str:
        """Run a program, and return what it prints; input: what it reads."""
        done = subprocess.run(
            [program, *words], env=_environment(), capture_output=True, text=True, **options
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def _environment() -> dict[str, str]:
    """Return the variables of this process without the path of the source."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    pytest.importorskip("hatchling", reason="what `make setup` installs builds the wheel")
    folder = tmp_path_factory.mktemp("first-hour")
    packages = folder / "packages"  # all that is installed here, but for this library
    packages.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("intarsia", "__editable__", "_editable_impl")):
            (packages / package.name).symlink_to(package)
    places = [folder / name for name in ("fresh", "stock")]
    for place in places:
        venv.create(place, symlinks=True)
        (site,) = (place / "lib").glob("python*/site-packages")
        (site / "packages.pth").write_text(f"{packages}\n")
    pip = ("-m", "pip", "--disable-pip-version-check")
    wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w"]
    subprocess.run([sys.executable, *wheel, folder, ROOT], check=True)
    (built,) = folder.glob("intarsia-*.whl")
    install = [*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", built]
    subprocess.run([places[0] / "bin" / "python", *install], env=_environment(), check=True)
    return Environments(*places)


@pytest.mark.thorough
def test_the_first_hour(
    environments: Environments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path)
    examples = list(commands("README.md"))
    lines = [line for typed_lines, _ in examples for line in typed_lines]
    lines += [line for line in ONE_LINERS if line not in lines]
    in_venv = [line for line in lines if line.startswith("intarsia ") and " serve " not in line]
    words = [typed(line) for line in (*in_venv, *REFUSED)]
    words = [[*w, "--seeds", "0", "--lr", "2e-3"] if w[0] == "compare" else w for w in words]
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
    python = environments.fresh / "bin" / "python"
    output = environments.run(python, "-c", HOUR, input=json.dumps(words))
    ends = dict(zip((*in_venv, *REFUSED), json.loads(output.splitlines()[-1]), strict=True))
    for line, text in REFUSED.items():
        code, _, output = ends.pop(line)
        assert code == 2 and text in output, output
    assert not [end for end in ends.items() if end[1][0] != 0]
    printed = {line: end[1] for line, end in ends.items()}
    printed |= _without_intarsia(environments, lines)
    for typed_lines, expected in examples:
        if expected:
            compare_words(expected, "".join(printed[line] for line in typed_lines))
    assert (tmp_path / "runs/auto-photos/report.html").is_file()
    _serve(environments, next(line for line in lines if " serve " in line))


def _fill(folder: Path) -> None:
    """Write what README's commands take: pictures, texts, pairs, documents and three models."""
    desk(folder)
    mixtral(folder / "my-mixtral")
    vocabulary = sorted({word for text in DOCUMENTS for word in text.split()})
    masked_language_model(_new(folder / "bert"), vocabulary)
    documents = [{"id": str(i), "text": text} for i, text in enumerate(DOCUMENTS)]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    pairs = []
    for i in range(8):
        picture(i).save(folder / f"{i}.png")
        pairs.append({"question": "which?", "image": f"{i}.png", "answer": "ab"[i % 2], "group": i})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _without_intarsia(environments: Environments, lines: list[str]) -> dict[str, str]:
    """Run the lines that begin with python where this library cannot be imported."""
    python = environments.stock / "bin" / "python"
    missing = subprocess.run(
        [python, "-c", "import intarsia"], env=_environment(), capture_output=True, check=False
    )
    assert b"No module named 'intarsia'" in missing.stderr
    scripts = [line for line in lines if line.startswith("python ")]
    assert scripts
    return {line: environments.run(python, *line.split()[1:]) for line in scripts}


def _serve(environments: Environments, line: str) -> None:
    """Start the server by its console script, ask it as OpenAI's client does, and stop it."""
    with (
        _serving(environments.fresh / "bin", line) as address,
        openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0) as client,
    ):
        (model,) = client.models.list()
        answer = client.completions.create(model=model.id, prompt="Once", max_tokens=4)
    assert model.id == "my-mixtral" and answer.usage is not None
    assert answer.usage.completion_tokens == 4


@contextmanager
def _serving(scripts: Path, line: str) -> Iterator[str]:
    """Yield the address of a server, which has to end well after SIGTERM."""
    server = subprocess.Popen(
        [scripts / line.split()[0], *line.split()[1:], "--port", "0"],
        env=_environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    try:
        addresses = (re.search(r"http://\S+", printed) for printed in server.stdout)
        yield next(filter(None, addresses))[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.stdout.close()


@pytest.mark.network
@pytest.mark.slow
def test_readme_shows_what_its_commands_print_on_its_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight minutes of an idle machine.

    A busy one tries fewer candidates and may choose another one: there the command by which README
    repeats its choice is carried out, and the figures of its test part and its export are compared.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stamps.py", "photos"])
    runpy.run_path(str(ROOT / "examples" / "stamps.py"), run_name="__main__")
    for lines, expected in commands("README.md"):
        printed = ""
        for line in lines:
            if line.startswith("python "):
                words = [sys.executable, *line.split()[1:]]
                printed += subprocess.run(words, capture_output=True, text=True, check=True).stdout
            else:
                printed += CliRunner().invoke(app, line.split()[1:]).stdout
        assert expected is not None
        compare_words(expected, printed)
        page, actual = read(expected), read(printed)
        if _candidates(expected) != _candidates(printed):
            _repeat_the_choice(expected)
            continue
        for pair in zip(page.sentences, actual.sentences, strict=True):
            compare_numbers(*pair)
        for tables in zip(page.tables, actual.tables, strict=True):
            first = [" ".join(cells[0] for cells in table.values()) for table in tables]
            compare_numbers(*first)  # the choice; how many others are tried is a matter of time


def _candidates(text: str) -> int | None:
    """Return how many candidates a search tried, by what it printed; None = not a search."""
    tried = re.search(r", by (\d+) candidates", text)
    return int(tried[1]) if tried else None


def _repeat_the_choice(page: str) -> None:
    """Put the model that README chose in the place of this search's choice, and check its accuracy.

    page: what README shows of `intarsia auto`.
    """
    lines = re.findall(r"^(?:Repeat:)? +(intarsia .*)$", page, re.M)
    shutil.rmtree(CHOICE)
    for line in lines:
        words = [*shlex.split(line)[1:], "--json"]
        if line is lines[-1]:
            words = [word for word in words if not word.endswith("choice-again")]
            words = [*(word for word in words if word != "--out"), "--out", str(CHOICE)]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    (table,) = read(page).tables
    promised = float(table["Test accuracy"][0].removesuffix(" %"))
    accuracy = json.loads((CHOICE / "run.json").read_text())["results"]["test"]["accuracy"]
    assert accuracy * 100 == pytest.approx(promised, abs=5)
