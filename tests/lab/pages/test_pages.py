"""The methods' pages are what the cards say, now."""

from __future__ import annotations

from pathlib import Path

from intarsia.catalog import cards, describe
from intarsia.core.errors import DataError
from intarsia.core.registry import index
from intarsia_lab.pages.methods import page, pages, published, reference, write
from intarsia_lab.pages.prose import markdown

from ...refusals import refused

# PEFT's own methods have no class here: a line in the index says it all
METHODS = [card for card in cards() if card.family != "peft"]
DOCS = Path(__file__).parents[3] / "docs" / "methods"


def test_every_card_has_a_page_and_a_line_in_the_index() -> None:
    page_texts = pages({})
    assert page_texts.keys() == {"index.md", *(f"{card.key}.md" for card in METHODS)}
    for card in METHODS:
        assert f"]({card.key}.md)" in page_texts["index.md"]
        text = page_texts[f"{card.key}.md"]
        assert card.summary in text and card.paper.url in text
        assert f".{card.config.__name__}`." in text


def test_every_page_is_up_to_date() -> None:
    for name, text in pages(*published(DOCS.parent)).items():
        assert (DOCS / name).read_text() == text, f"{name}: run intarsia_lab.pages.methods"


def test_a_page_has_a_line_on_its_paper_s_experiment_and_no_other() -> None:
    paper = next(card.paper.arxiv for card in METHODS if card.key == "mos")
    text = pages({paper: "It is so."})
    assert "## Measured\n\nIt is so." in text["mos.md"]
    assert "## Measured" not in text["mosa.md"] and "## Measured" not in pages({})["mos.md"]


def test_a_page_has_the_comparisons_with_the_official_code() -> None:
    run = {"function": "prune", "commit": "abc", "path": "lib/prune.py", "repository": "a/b"}
    run |= {"methods": ["mos"], "ours": "intarsia.adapters.Mos", "tolerance": 1e-6, "differs": ""}
    worked = {"function": "equation (3)", "methods": ["mos"], "repository": None}
    worked |= {"worked": "methods/test_mos.py::test_three", "differs": "Ours is plain."}
    text = pages({}, [run | {"equal": True}, run | {"equal": False}, worked])["mos.md"]
    source = "`prune` of [a/b](https://github.com/a/b/blob/abc/lib/prune.py)"
    assert f"| {source} | `intarsia.adapters.Mos` | yes, to 1e-06 |" in text
    assert f"| {source} | `intarsia.adapters.Mos` | **no** |" in text
    assert "equation (3)" in text and "Ours is plain." in text
    assert "not compared with an official" in pages({})["mos.md"]


def test_there_is_no_page_of_a_method_that_is_gone() -> None:
    assert {p.name for p in DOCS.glob("*.md")} == pages({}).keys()


def test_write_removes_old_pages_and_nothing_else(tmp_path: Path) -> None:
    for name in ("gone.md", "picture.svg"):
        (tmp_path / name).touch()
    write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"picture.svg", *pages({})}


def test_the_table_of_the_reference_is_up_to_date() -> None:
    text = (DOCS.parent / "reference.md").read_text()
    assert reference(text) == text, "run: python -m intarsia_lab.pages.methods"
    for card in METHODS:
        assert f"[`{card.config.__name__}`](methods/{card.key}.md)" in text
    without = "\n".join(line for line in text.splitlines() if "methods/topk.md" not in line)
    assert reference(without + "\n") == text
    with refused(DataError, what="reference page"):
        reference("# Reference\n")


def test_a_help_is_a_cell_of_the_methods_page() -> None:
    lora = describe(next(c for c in cards() if c.key == "lora")) | {"doc": ""}
    lora["settings"] = [{"name": "k", "type": "int", "default": 1, "help": "|key| < 2 of *.mlp*"}]
    assert "| `k` | `int` | `1` | \\|key\\| &lt; 2 of \\*.mlp\\* |" in page(lora)
    assert all(s["help"] for entry in index().values() for s in entry["settings"])


def test_a_docstring_is_markdown_with_links() -> None:
    doc = "here * is free, where `Lora` is 0 < 1.\n\nRaises: ConfigError, never.\n"
    doc += "Source: arXiv:2106.09685;\ndocs/benchmarks/even.md has more.\n  call(x)\n\nAnd\nso on."
    parts = markdown(doc, {"Lora": "lora.md"}).split("\n\n")
    assert parts[0] == r"here \* is free, where [`Lora`](lora.md) is 0 &lt; 1."
    assert parts[1] == "**Raises:** ConfigError, never."
    assert "[arXiv:2106.09685](https://arxiv.org/abs/2106.09685); [benchmarks/even]" in parts[2]
    assert parts[3:] == ["```python\ncall(x)\n```", "And so on."]


def test_a_method_has_its_paper_s_spelling_and_the_guides_that_show_it() -> None:
    guides = {
        "how-to/mix.md": "# Mix\n\nSee `intarsia.Mosa(4)`.",
        "start/a.md": "# Begin\n\nmosaic",
    }
    guides["areas/b.md"] = "# Compare\n\n    intarsia compare photos --methods lora,mosa\n"
    texts = pages({}, [], guides)
    # by the title of its tab, the search puts it behind a guide that begins with its word
    assert texts["mosa.md"].startswith("---\ntitle: Method MoSA\n---\n\n# MoSA\n")
    assert "Name: `mosa`" in texts["mosa.md"]
    assert "Shown in: [Mix](../how-to/mix.md), [Compare](../areas/b.md)." in texts["mosa.md"]
    assert "| [LoRA](lora.md) |" in texts["index.md"] and "| [hash](hash.md) |" in texts["index.md"]
