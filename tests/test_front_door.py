"""What a newcomer is told to type, in a shell and in Python, as it stands on the page.

The pretrained models are replaced by tiny untrained ones, which need no network. What a page shows
under a command is compared with what the command prints, line by line but for the numbers, since
other models give other numbers. Python on the landing pages is carried out as it stands, and there
the numbers are compared, too. README's commands are in test_first_hour.py.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import intarsia
from intarsia.cli import app, shell
from intarsia.runs import matrix

from .areas.search.conftest import masked_language_model
from .language_models import mixtral
from .pages import (
    ROOT,
    Refused,
    accepts,
    all_commands,
    blocks,
    commands,
    compare_numbers,
    compare_words,
    desk,
    films,
    photos,
    typed,
    width,
)

PAGES = (
    *(f"docs/start/{name}.md" for name in ("vision", "language", "deploy")),
    *(f"docs/areas/{name}.md" for name in ("adapt", "sparse", "large-mixtures")),
    "docs/areas/search-and-recommend.md",
)
PYTHON = ("README.md", *(f"docs/start/{name}.md" for name in ("language", "deploy", "mixtures")))
SHOWN = [  # all but what a benchmark or a version of the past was called with
    page.relative_to(ROOT).as_posix()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page.parent.name not in ("benchmarks", "log", "results")
]
EXACT = tuple(f"docs/areas/{name}.md" for name in ("mixtures", "see-and-hear", "signals"))


def carried_out(line: str, options: Mapping[str, tuple[str, ...]]) -> str:
    """Run a command and return its output.  options: further ones of a verb."""
    assert line.startswith("intarsia ")
    result = CliRunner().invoke(app, [*typed(line), *options.get(line.split()[1], ())])
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_and_print_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    desk(tmp_path)
    if page.endswith("large-mixtures.md"):
        mixtral(tmp_path / "my-mixtral")
    if page.endswith("search-and-recommend.md"):
        (documents,) = blocks(page, "json")
        (tmp_path / "docs.jsonl").write_text(documents)
        films(tmp_path / "events")
        (tmp_path / "bert").mkdir()
        vocabulary = sorted({*re.findall("[a-z]+", documents.lower())})
        masked_language_model(tmp_path / "bert", vocabulary)
    examples = list(commands(page))
    assert examples
    for lines, expected in examples:
        monkeypatch.setattr(shell, "PIPE", width(expected or ""))
        # rates are searched only where the page shows what that prints
        settings = () if expected else ("--seeds", "0", "--lr", "2e-3")
        options = {"compare": settings}
        printed = "".join(carried_out(line, options) for line in lines)
        if expected:
            compare_words(expected, printed)
    if page == "docs/start/vision.md":  # whose Python reads what its commands trained
        monkeypatch.setattr(intarsia, "backbone", stand_in())
        python(page, tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(intarsia, "backbone", stand_in())
    photos(tmp_path / "photos")
    python(page, tmp_path)


@pytest.mark.thorough
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
    compare_numbers(promised, printed)


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


def test_every_command_that_a_page_shows_is_accepted() -> None:
    refused: list[str] = []
    for page in SHOWN:
        for line in all_commands(page):
            try:
                accepts(line)
            except Refused as error:
                refused.append(f"{page}: {line}: {error}")
    assert not refused


def test_a_command_that_would_be_refused_is_noticed() -> None:
    accepts("intarsia compress")
    for line in (
        "intarsia nosuch photos",
        "intarsia compress small --save packed",
        "intarsia generate small Once --tokens few",
        "intarsia search --explain --limit 3",
        "intarsia codec nosuch photo.png",
    ):
        with pytest.raises(Refused):
            accepts(line)


def test_an_output_of_other_words_or_numbers_is_noticed() -> None:
    table = "┏━━━┓\n┃ Method ┃ Loss ┃\n┡━━━┩\n│ lora ┃ 0.58 ┃\n└───┘\n".replace(
        "┃ 0.58 ┃", "│ 0.58 │"
    )
    sentence = "Chosen: lora, the best of 14 candidates; 3 min 2 s in all.\n"
    compare_words(table + sentence, table + sentence.replace("lora", "dora").replace("3 min ", ""))
    for wrong in (
        table.replace("Loss", "Score") + sentence,
        table.replace("0.58", "58 %") + sentence,
        table + sentence.replace("the best", "one"),
        table + sentence + "Report: page.html\n",
    ):
        with pytest.raises(AssertionError):
            compare_words(table + sentence, wrong)
    shown = "8 documents, 86.5 % found in 60 ms, off by 3.3e-06 of 25.2 dB"
    compare_numbers(shown, "8 documents, 83.5 % found in 40 ms, off by 4.1e-06 of 24.0 dB")
    for number, other in (
        ("8", "9"),
        ("86.5", "80.1"),
        ("60", "99"),
        ("3.3e-06", "1e-3"),
        ("25", "5"),
    ):
        with pytest.raises(AssertionError):
            compare_numbers(shown, shown.replace(number, other, 1))


def test_a_time_of_several_units_is_compared_as_one() -> None:
    shown = "The choice; 3 min 52 s in all."
    for close in ("4 min 12 s", "2 min 1 s", "232.5 s", "4 min", "5 min 47 s"):
        compare_numbers(shown, shown.replace("3 min 52 s", close))
    for far in ("52 s", "13 min 52 s", "1 min 52 s", "5 min 52 s", "3 h 3 min 52 s", "52 ms"):
        with pytest.raises(AssertionError):
            compare_numbers(shown, shown.replace("3 min 52 s", far))
    compare_numbers("1 h 5 min, then 2 of 1,200 ms", "58 min 10 s, then 2 of 1.5 s")
    with pytest.raises(AssertionError):
        compare_numbers("1 h 5 min, then 2 of 1,200 ms", "58 min 10 s, then 3 of 1.5 s")


def test_the_readme_has_the_counts_of_the_page_of_results() -> None:
    write_counts = runpy.run_path(str(ROOT / "scripts" / "front_pages.py"))["counted"]
    readme = "Each of their headlines has an experiment here: 1 with, 2 not ([all of them](x))."
    counted = write_counts(readme, "# Results\n\nThe 47 papers: 3 with, 1 not.\n")
    assert counted == readme.replace("1 with, 2 not", "3 with, 1 not")


def test_pages_that_are_made_of_others_are_as_they_would_be_made() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "front_pages.py"))
    for path, text in script["pages"]().items():
        assert path.read_text() == text, "run scripts/front_pages.py"


def test_the_citation_has_the_version_of_both_distributions() -> None:
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    for project in (ROOT, ROOT / "lab"):
        assert f'\nversion = "{version}"\n' in (project / "pyproject.toml").read_text()
    assert f"\n## [{version}]\n" in (ROOT / "CHANGELOG.md").read_text()
