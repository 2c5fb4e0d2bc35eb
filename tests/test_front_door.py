"""What a newcomer is told to type, in a shell and in Python, as it stands on the page.

The pretrained models are replaced by tiny untrained ones, which need no network. What a page shows
under a command is compared with what the command prints: the words of its sentences and the heads
of its tables, since other models give other numbers. Python on the landing pages is carried out as
it stands, and there the numbers are compared, too.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import intarsia
from intarsia.cli import app
from intarsia.experiments import matrix

from .cli.conftest import mixtral
from .test_real_pages import language_model

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    *(f"docs/start/{name}.md" for name in ("vision", "language", "deploy")),
    *(f"docs/areas/{name}.md" for name in ("adapt", "sparse", "large-mixtures")),
)
PYTHON = ("README.md", *(f"docs/start/{name}.md" for name in ("language", "deploy", "mixtures")))
EXACT = tuple(f"docs/areas/{name}.md" for name in ("mixtures", "see-and-hear", "signals"))
PICTURES = ("--model", "test_vit", "--untrained", "--size", "32", "--epochs", "1")
TEXTS = ("--model", "tiny", "--epochs", "1", "--precision", "fp32")
QUICK = {  # the same command in seconds: what is typed after it counts
    "auto": (*PICTURES[:5], "--minutes", "0.25", "--methods", "linear,lora"),
    "compare": ("--seeds", "0,1", "--images", "0.8"),
    "sparsify": ("--rows", "8", "--length", "32", "--test", "2", "--calib", "notes.txt"),
    "compress": ("--force",),
    "trace": ("--rows", "8", "--length", "16"),
}
STAND_INS = {"smollm2": "tiny", "austen": "notes.txt"}
NUMBER = re.compile(r"[-+−±]?\d[\d.,]*(?:e[-+]?\d+)?")
TIME = re.compile(r"\d+(?:\.\d+)? (?:s|ms|min)\b")  # by the clock, which nothing compares
ALIKE = 0.5  # of the words of a shown sentence, in order
OUTCOME = ("The highest accuracy", "It trains")  # printed where one method is ahead
Block = tuple[list[str], str | None]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def commands(page: str) -> Iterator[Block]:
    """The lines of every shell block of a page, and what the page shows below them."""
    text = (ROOT / page).read_text()
    pattern = r"^```sh\n(.*?)^```$(?:\n\n```console\n(.*?)^```$)?"
    for typed, output in re.findall(pattern, text, re.M | re.S):
        yield typed.replace("\\\n", "").splitlines(), output or None


def photos(folder: Path, classes: tuple[str, ...] = ("food", "town"), n: int = 12) -> Path:
    """n grey pictures of each class, which differ in their brightness."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            noise = np.random.default_rng(100 * label + i).integers(-20, 20, (40, 40, 3))
            picture = Image.fromarray((50 + 140 * label + noise).astype(np.uint8))
            picture.save(folder / name / f"{i + 1:03}.png")
    return folder


def desk(folder: Path) -> None:
    """A newcomer's data: photos/, answers.jsonl, a text; and a small language model."""
    photos(folder / "photos")
    rows = [{"prompt": f"{n} and one", "response": str(n + 1)} for n in range(24)]
    (folder / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = (f"Line {i} of a plain text, which says {i * i}.\n" for i in range(80))
    (folder / "notes.txt").write_text("".join(lines))
    model, tokenizer = language_model("smollm2")
    model.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")


def typed(line: str) -> list[str]:
    """A line's words, file names filled in as a shell does, with the small model."""
    words = [name for word in shlex.split(line)[1:] for name in (sorted(glob(word)) or [word])]
    words = [STAND_INS.get(word, word) for word in words]
    if words[0] in ("fit", "compare"):
        words += TEXTS if words[1].endswith(".jsonl") else PICTURES
    return [*words, *QUICK.get(words[0], ())]


def carried_out(line: str) -> str:
    """Run a command and return its output; `python FILE` runs where this library is not found."""
    if line.startswith("python "):
        done = subprocess.run(
            [sys.executable, "-I", *shlex.split(line)[1:]], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
    assert line.startswith("intarsia ")
    result = CliRunner().invoke(app, typed(line))
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.stdout


def words_of(text: str) -> list[str]:
    """The words of a line, numbers and the frames of tables left out."""
    return re.sub(r"[^\w/.=-]+", " ", NUMBER.sub("", TIME.sub("", text))).lower().split()


def sentences(text: str) -> list[list[str]]:
    """The words of every line, heads of tables among them, but for the rows of tables."""
    lines = (line for line in text.splitlines() if not line.startswith((*"┏┡│├└╭╰", *OUTCOME)))
    lines = (line for line in lines if "ahead in" not in line)  # of the method that is ahead
    return [words for words in map(words_of, lines) if len(words) > 3]  # no end of a long line


def resembles(expected: str, printed: str) -> None:
    """Assert that an output has the tables and the sentences of the one that a page shows."""
    all_words = words_of(printed)
    for words in sentences(expected):
        matcher = SequenceMatcher(None, words, all_words, autojunk=False)
        common = sum(block.size for block in matcher.get_matching_blocks())
        assert common >= ALIKE * len(words), f"{' '.join(words)}\n\nprinted:\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_and_print_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    monkeypatch.setenv("COLUMNS", "200")
    desk(tmp_path)
    if page.endswith("large-mixtures.md"):
        mixtral(tmp_path / "my-mixtral")
    examples = list(commands(page))
    assert examples
    for lines, expected in examples:
        printed = "".join(map(carried_out, lines))
        if expected:
            resembles(expected, printed)
    if page == "docs/start/vision.md":  # whose Python reads what its commands trained
        monkeypatch.setattr(intarsia, "backbone", stand_in())
        python(page, tmp_path)


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intarsia, "backbone", stand_in())
    photos(tmp_path / "photos")
    python(page, tmp_path)


@pytest.mark.parametrize("page", EXACT)
def test_the_python_of_a_landing_page_prints_what_it_shows(
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    python(page, tmp_path)
    printed = capsys.readouterr().out
    (promised,) = blocks(page, "console")
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", promised).split()
    values, expected = (np.array([*map(_value, NUMBER.findall(t))]) for t in (printed, promised))
    # processors differ in the last bits, and training carries that on
    np.testing.assert_allclose(values, expected, rtol=0.25, atol=1e-5)


def _value(number: str) -> float:
    return float(number.replace("−", "-").rstrip(".,"))


def stand_in() -> Any:
    backbone = intarsia.backbone

    def small(name: str, **settings: Any) -> Any:
        return backbone("test_vit", **{**settings, "size": 32, "pretrained": False})

    return small


def python(page: str, folder: Path) -> None:
    programs = blocks(page, "python")
    assert programs
    for number, block in enumerate(programs):
        file = folder / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))


def test_an_output_of_other_words_is_noticed() -> None:
    table = "┃ Method ┃ Loss ┃ Rate ┃ Blocks ┃\n"
    sentence = "Chosen: lora, the best of 14 candidates.\n"
    resembles(table + sentence, table + sentence.replace("lora", "dora").replace("14", "3"))
    with pytest.raises(AssertionError):
        resembles(table + sentence, "┃ Method ┃\n" + sentence)
    with pytest.raises(AssertionError):
        resembles(table + sentence, table + "We took dora out of three.\n")


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 90
    prose = re.sub(r"\]\([^)]*\)", "]", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    assert len(prose.split()) <= 700


def test_the_readme_counts_the_verdicts_of_the_page_of_claims() -> None:
    counted = runpy.run_path(str(ROOT / "scripts" / "front_pages.py"))["counted"]
    claims = "| holds | 1 | 9 |\n| fails | 2 | 9 |\n| not decided | 3 | 9 |\n| void | 4 | 9 |\n"
    readme = (ROOT / "README.md").read_text()
    words = " ".join(counted(readme, claims).split())
    assert "1 hold, 2 fail, 3 are not decided, and in 4 the figure means nothing" in words


def test_pages_that_are_made_of_others_are_as_they_would_be_made() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "front_pages.py"))
    for path, text in script["pages"]().items():
        assert path.read_text() == text, "run scripts/front_pages.py"


def test_the_citation_has_the_version_of_both_distributions() -> None:
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    for project in (ROOT, ROOT / "lab"):
        assert f'\nversion = "{version}"\n' in (project / "pyproject.toml").read_text()
    assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text()
