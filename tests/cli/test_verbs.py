"""What every verb has in common: help, examples, errors, Ctrl-C, a fast start."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from intarsia.catalog import cards
from intarsia.cli import app, listing, shell
from intarsia.cli.groups import HOMES
from intarsia.cli.simulating import PLANS, POLICIES
from intarsia.core.errors import ConfigError
from intarsia.core.registry import unpredicted_policies
from intarsia.placement.topology_file import KEYS
from intarsia.runs.stack_entries import ENTRIES

from .conftest import Intarsia, commands

GROUP: Any = typer.main.get_group(app)
VERBS = sorted(GROUP.list_commands(None))
ALL = dict(commands())
EXAMPLE = re.compile(r"^\s*(?:Example:)?\s+((?:intarsia|torchrun) .*)", re.MULTILINE)


def test_the_verbs_of_the_design_are_there() -> None:
    verbs = {"list", "show", "fit", "evaluate", "predict", "compare", "export", "report"}
    assert verbs | {"demo", "reproduce"} <= set(VERBS)


@pytest.mark.parametrize("command", ALL)
def test_help_has_examples_that_parse(intarsia: Intarsia, command: str) -> None:
    name = command.split()
    help = intarsia(*name, "--help")
    assert help.code == 0 and intarsia(*name, "-h").out == help.out
    text = str(ALL[command].help)
    assert "Example:" in text
    for example in re.findall(
        r"^\s*(?:Example:)?\s+((?:intarsia|torchrun) .*)", text, re.MULTILINE
    ):
        words = shlex.split(example.partition(" > ")[0])
        begin = words.index("intarsia") + 1
        assert words[begin : begin + len(name)] == name
        # the parser alone: nothing runs, unknown options and missing arguments are refused
        ALL[command].make_context(command, words[begin + len(name) :])


# what is refused, too: a typing error costs no eight seconds
LIGHT = (
    "--help",
    "fit --help",
    "--version",
    "list",
    "list RMoE --json",
    "show mosa",
    "show nosuch",
    "list --kind nosuch",
    "fit nosuchdata",
    "fit nosuch/folder",
    "fit elpv --method nosuch",
    "fit elpv --method switch",
    "fit elpv --set expert=4",
    "fit elpv --precision bf17",
    "compare elpv --methods lora,nosuch",
    "compare elpv --steps 10",
    "evaluate nosuch",
    "predict nosuch x.png",
    "export nosuch",
    "bench nosuch",
    "reproduce nosuch",
    "auto",
    "auto nosuch",
    "auto elpv --methods nosuch",
    "auto elpv --device gpu",
    "reproduce mosa --seeds x",
    "compare elpv --seeds 0;1",
    "compare-routers austen --routers nosuch",
    "demo --seeds x",
    "fit elpv --epochs 0",
    "fit elpv --device gpu",
    "fit elpv --tracker nosuch",
    "fit elpv --class-weights a",
    "fit --resume --out nosuch",
    "fit --config nosuch.json",
    "evaluate .",
    "fit elpv --out .",
    "recommend nosuch --user 1",
    "report nosuch",
    "simulate nosuch",
    "serve smollm2 --memory lots",
    "serve smollm2 --port 99999",
    "sparsify smollm2 --pattern 4:2 --out new",
    "list zzzz",
)
TRIED = """
import contextlib, io, sys
from intarsia.cli import app
commands, sys.argv = sys.argv[1:], ["intarsia"]
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            app(command.split())
    if found := {"torch", "peft", "timm", "transformers"} & sys.modules.keys():
        sys.exit(f"{command}: imports {sorted(found)}")
"""


def test_start_imports_nothing_heavy() -> None:
    words = [sys.executable, "-c", TRIED, *LIGHT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_verb_is_imported_when_it_is_called() -> None:
    code = "import sys; from intarsia.cli import app; app(['fit', 'elpv', '--epochs', '0'])"
    modules = "sorted(m for m in sys.modules if m.startswith('intarsia.cli.'))"
    words = [
        sys.executable,
        "-c",
        f"import atexit, sys; atexit.register(lambda: print({modules})); {code}",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "'intarsia.cli.training'" in done.stdout
    assert not any(f"intarsia.cli.{m}'" in done.stdout for m in ("searching", "placing", "demo"))


def test_every_home_of_a_verb_is_a_function_of_its_module() -> None:
    for name in HOMES:
        assert GROUP.get_command(None, name).name == name


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "intarsia", "show", "moza", "--debug"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" in done.stderr and "Did you mean" in done.stderr


def test_an_error_is_a_panel_with_got_want_and_fix(intarsia: Intarsia) -> None:
    result = intarsia("show", "moza")
    assert result.code == 2 and not result.out
    assert "UnknownName: unknown method" in result.err and "Traceback" not in result.err
    assert re.search(r"got +'moza'.*want +one of.*fix +Did you mean .*mosa", result.words)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:137] CPUAllocator: can't allocate memory"),
        RuntimeError("unable to mmap 513 bytes from file <x>: Cannot allocate memory (12)"),
        ImportError("x.so: failed to map segment from shared object"),
        RuntimeError("Storage size calculation overflowed with sizes=[100000000, 1000000000000]"),
    ],
)
def test_what_does_not_fit_into_memory_is_a_panel(
    error: Exception, intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(_: object) -> None:
        raise error

    monkeypatch.setattr(listing, "show_json", show)
    result = intarsia("list", "--json")
    assert result.code == 2 and "memory of this machine" in result.words


def test_debug_and_quiet_may_stand_anywhere() -> None:
    assert shell.arguments(["fit", "--quiet", "x", "--debug"]) == ["--debug", "--quiet", "fit", "x"]
    assert shell.arguments(["fit", "x", "--debug"]) == ["--debug", "fit", "x"]
    assert shell.arguments(["fit", "x"]) == ["fit", "x"]


def test_errors_that_are_not_ours_are_not_dressed_up(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "show_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        intarsia("list", "--json")


def test_ctrl_c_is_a_clean_stop(intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt("Half of it is done.")

    monkeypatch.setattr(listing, "show_json", stop)
    result = intarsia("list", "--json")
    assert result.code == 130 and result.words == "Stopped. Half of it is done."


def test_keywords_of_the_library_are_told_as_options(capsys: pytest.CaptureFixture[str]) -> None:
    shell.show_error(ConfigError("x", got=1, want=2, fix="Pass on_error='skip' or [resume=True]."))
    assert "Pass --skip-unreadable or [--resume]." in capsys.readouterr().err


def test_an_unknown_verb_and_an_unknown_option(intarsia: Intarsia) -> None:
    result = intarsia("fti", "elpv")
    assert result.code == 2 and "fti" in result.err
    result = intarsia("fit", "elpv", "--epoch", "3")
    assert result.code == 2 and "--epoch" in result.err


def test_list_as_json(intarsia: Intarsia) -> None:
    cards = {card["name"]: card for card in intarsia("list", "--json").json}
    assert {"adamix", "bottleneck", "lora", "mosa"} <= cards.keys()
    card = cards["mosa"]
    assert {"kind", "paper", "tags", "summary"} <= card.keys()
    assert card["paper"]["arxiv"] == "2312.02923" and card["paper"]["year"] == 2023
    assert card["paper"]["url"].endswith("2312.02923") and card["paper"]["title"]
    assert "stochastic" in card["tags"]


def test_list_filters(intarsia: Intarsia) -> None:
    result = intarsia("list", "--kind", "adapter", "--tag", "linear", "--json")
    assert [card["name"] for card in result.json] == [c.key for c in cards("adapter", "linear")]
    result = intarsia("list", "--family", "adapter mixtures", "--json")
    names = [card["name"] for card in result.json]
    assert "mosa" in names and "mixlora" in names and "lora" not in names


def test_the_list_fits_a_line_and_cuts_nothing(
    intarsia: Intarsia, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = intarsia("list", "--json").json
    out = intarsia("list").out
    assert max(map(len, out.splitlines())) <= listing.NARROW == 80 and "…" not in out
    for card in described:
        assert f" {card['name']} " in out and card["paper"]["arxiv"] in out
    assert "zero_start" not in out
    monkeypatch.setattr(listing, "NARROW", listing.WIDE)
    wide = intarsia("list").out
    assert "zero_start" in wide and max(map(len, wide.splitlines())) <= listing.WIDE


def test_no_title_and_no_number_of_a_table_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "PIPE", 52)
    columns = ("method", "Largest difference", "Peak memory", "Adapter parameters")
    numbers = ("−12.345", "2.32 GB", "1,234,567")
    shell.show_table("", columns, [("converged probe", *numbers)], right=",".join(columns[1:]))
    out = capsys.readouterr().out
    assert "…" not in out and max(map(len, out.splitlines())) <= shell.PIPE
    for word in (*" ".join(columns[1:]).split(), *numbers):
        assert word in out


@pytest.mark.parametrize("command", ALL)
def test_the_help_is_broken_by_the_terminal_alone(command: str) -> None:
    lines = str(ALL[command].help).splitlines()
    prose = [bool(line) and not line.startswith((" ", "Example:")) for line in lines]
    assert not any(a and b for a, b in zip(prose, prose[1:], strict=False)), lines


def test_a_help_keeps_its_examples_apart() -> None:
    text = "Do it,\nor not.\n\nMore of\n--out.\n\nExample:  intarsia a\n          intarsia b\nEnd"
    paragraphs = shell.reflowed(text).split("\n\n")
    assert paragraphs[:2] == ["Do it, or not.", "More of --out."]
    assert paragraphs[2].splitlines() == ["Example:  intarsia a", "          intarsia b", "End"]


def test_baselines_are_listed_and_shown(intarsia: Intarsia) -> None:
    cards = {card["name"]: card for card in intarsia("list", "--kind", "baseline", "--json").json}
    assert {"linear", "full", "bitfit", "last-k", "vpt-deep", "peft-dora"} <= cards.keys()
    assert all(
        {"name", "kind", "paper", "tags", "summary"} <= card.keys() for card in cards.values()
    )
    assert cards["vpt-deep"]["paper"]["url"].endswith("2203.12119")
    assert "mosa" not in cards
    assert cards.keys() < {card["name"] for card in intarsia("list", "--json").json}
    out = intarsia("show", "peft-dora").out
    assert "use_dora" in out and "arxiv.org/abs/2402.09353" in out
    example = re.search(r"intarsia fit (.*)", out)
    assert example and "--method peft-dora --set r=8" in example[1]
    assert intarsia("show", "linear").code == 0
    assert intarsia("show", "linear probe").out == intarsia("show", "linear").out
    assert "Did you mean vpt-deep" in intarsia("show", "vpt-dep").words
    assert "Did you mean prompts" in intarsia("list", "--family", "prompt").words


def test_show_tells_paper_settings_tags_and_an_example(intarsia: Intarsia) -> None:
    out = intarsia("show", "mosa").out
    for text in ("arxiv.org/abs/2312.02923", "experts", "int", "4", "stochastic", "two forwards"):
        assert text in out
    example = re.search(r"intarsia fit (.*)", out)
    assert example
    GROUP.get_command(None, "fit").make_context("fit", shlex.split(example[1]))
    assert "intarsia.Mosa(experts=4)" in out
    assert "In Python: intarsia.Mosa\n" in out


def test_show_names_the_class_where_it_can_be_imported(intarsia: Intarsia) -> None:
    assert "In Python: intarsia.routers.RandomRouting\n" in intarsia("show", "random").out
    assert "In Python: intarsia.LinearProbe\n" in intarsia("show", "linear").out
    assert "In Python" not in intarsia("show", "peft-dora").out


def test_help_says_what_an_option_means_to_its_verb(intarsia: Intarsia) -> None:
    assert "Setting of one method" in intarsia("compare", "--help").out
    assert "over.bottleneck=16" in intarsia("fit", "--help").out
    assert "'intarsia[ray]'" in intarsia("bench", "--help").out


def test_show_as_json(intarsia: Intarsia) -> None:
    card = intarsia("show", "lora", "--json").json
    assert {s["name"]: s["default"] for s in card["settings"]}["rank"] == 16


def test_every_verb_module_is_small() -> None:
    sizes = {
        p.name: len(p.read_text().splitlines())
        for p in Path(str(shell.__file__)).parent.glob("*.py")
    }
    assert max(sizes.values()) < 350, sizes


@pytest.mark.parametrize("words", [("search", "idx"), ("generate", "smollm2")])
def test_a_text_in_bytes_that_are_no_utf8_is_refused(
    intarsia: Intarsia, words: tuple[str, ...]
) -> None:
    result = intarsia(*words, b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert result.code == 2 and "got bytes that are no UTF-8" in result.words


def test_the_list_knows_the_survey_whose_techniques_a_command_stacks(intarsia: Intarsia) -> None:
    (row,) = intarsia("list", "2412.14219", "--json").json
    assert (row["name"], row["kind"], row["paper"]["arxiv"]) == ("combine", "command", "2412.14219")
    assert row["name"] in VERBS and "combine" in intarsia("list", "inference optimization").out
    rows = intarsia("list", "combine", "--kind", "change", "--json").json
    assert "command" not in {row["kind"] for row in rows}


@pytest.mark.parametrize(
    "words",
    [
        ("components", "photos"),
        ("codec", "encode", "signal", "--prior", "photos"),
        ("evaluate", "photos"),
        ("generate", "photos", "hello"),
        ("offload", "photos", "--out", "new"),
        ("predict", "photos", "signal"),
        ("search", "photos", "cat"),
    ],
    ids=lambda words: words[0],
)
def test_a_folder_of_another_kind_is_named_in_words(
    words: tuple[str, ...], intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    Image.new("RGB", (8, 8)).save("signal", "PNG")
    result = intarsia(*words)
    assert result.code == 2 and "a folder with 1 .png file" in result.words, result.err


def test_what_is_no_signal_is_told_which_signals_there_are(
    intarsia: Intarsia, tmp_path: Path
) -> None:
    (tmp_path / "docs.jsonl").write_text("{}")
    assert "a .wav, or a .npy" in intarsia("codec", "encode", tmp_path / "docs.jsonl").words


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("simulate", [*PLANS, *POLICIES, *KEYS]),
        ("combine", [*ENTRIES, *unpredicted_policies(), "w2", "w3", "stay"]),
    ],
)
def test_the_help_has_every_word_that_is_taken(
    verb: str, words: list[str], intarsia: Intarsia
) -> None:
    text = re.split(r"[^a-z0-9]+", intarsia(verb, "--help").out)
    assert not {*words} - {*text}
