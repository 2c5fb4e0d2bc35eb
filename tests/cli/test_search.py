"""`intarsia search` on a saved index: words, JSON, a run file, and the page in a browser."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.cli import app, index_steps
from intarsia.cli.searching import answers, page_of
from intarsia.reports.local_page import LocalPage, running

TOYS = Path(__file__).parents[1] / "areas" / "search" / "conftest.py"


def _toys() -> Any:
    spec: Any = importlib.util.spec_from_file_location("toys", TOYS)
    toys: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    return toys


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toys = _toys()
    docs = [*toys.DOCS, ("<i>x</i>", "<script>alert(1)</script> mouse")]
    built = SparseIndex.build(toys.Toy(), docs, lexical=None)
    return built.save(tmp_path_factory.mktemp("search") / "idx")


def _call(*words: object) -> Any:
    return CliRunner().invoke(app, ["search", *map(str, words)])


def test_a_query_prints_documents_and_why(folder: Path) -> None:
    plain = _call(folder, "cat dog")
    assert plain.exit_code == 0 and "a cat a dog a tree" in plain.stdout
    result = _call(folder, "animal cat", "--explain", "-k", 1)
    assert "animal* 0.50" in result.stdout and "cat 1.30" in result.stdout
    assert "the cat sleeps" in result.stdout  # the text is shown, too
    record = json.loads(_call(folder, "cat dog", "--json").stdout)
    assert [hit["id"] for hit in record["hits"]] == ["d", "b", "a"]
    assert "no known word" in _call(folder, "zzz").stdout
    assert "none has one of these words" in _call(folder, "runs").stdout


def test_stems_are_searched_and_said_too(folder: Path, tmp_path: Path) -> None:
    docs = [(hit.id, hit.text) for hit in SparseIndex.load(folder).search("the a cat dog", 9)]
    both = SparseIndex.build(_toys().Toy(), docs).save(tmp_path / "both")
    output = _call(both, "sleeping cats", "--explain").stdout
    assert "sleep~ 0.38, cat~ 0.22" in output  # both of BM25's share of 0.6
    assert "no known word" in _call(both, "zzz").stdout


def test_queries_of_a_file_become_a_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("cat\nzzz\ndog\n")
    done = _call(folder, "--queries", tmp_path / "q.txt", "--out", tmp_path / "r.trec", "-k", 1)
    assert done.exit_code == 0
    assert [r.split()[:3] for r in (tmp_path / "r.trec").read_text().splitlines()] == [
        ["q1", "Q0", "a"], ["q3", "Q0", "b"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [(), ("cat", "--serve"), ("--queries", "q.txt"), ("cat", "--out", "r")],
    ids=["nothing", "both", "no run", "no queries"],
)
def test_unclear_questions_are_refused(folder: Path, words: tuple[str, ...]) -> None:
    assert _call(folder, *words).exit_code == 2


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    done = _call(tmp_path, "cat")
    assert done.exit_code == 2 and "folder of an index" in done.stderr


def test_indexing_refuses_what_it_could_not_write(tmp_path: Path, folder: Path) -> None:
    def index(*words: object) -> Any:
        return CliRunner().invoke(app, ["index", *map(str, words)])

    wrong = [("d.jsonl",), ("d.jsonl", "--out", folder), ("d.jsonl", "--append", tmp_path)]
    wrong += [(folder, "--form", "lucene", "--out", "x"), (folder, "--form", "trec")]
    for words in wrong:
        assert index(*words).exit_code == 2
    done = index(folder, "--form", "qdrant", "--out", tmp_path / "points.jsonl")
    points = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert done.exit_code == 0 and len(points) == 6 and points[0]["payload"]["id"] == "a"


def test_documents_are_indexed_without_a_model(intarsia: Any, tmp_path: Path) -> None:
    docs, out = tmp_path / "docs.jsonl", ("--out", str(tmp_path / "index"))
    rows = ({"id": "a", "text": "a cat sleeps"}, {"id": "b", "text": "dogs bark"})
    docs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = intarsia("index", str(docs), "--model", "none", "--language", "none", *out)
    assert result.code == 2 and "--model and --language" in result.words
    result = intarsia("index", str(docs), "--model", "none", *out, "--json")
    assert result.code == 0 and result.json["lexical"]["share"] == 1, result.err
    result = intarsia("search", out[1], "barking dogs")
    assert result.code == 0 and "dogs bark" in result.out and "a cat" not in result.out
    rows = ({"id": "c", "text": "the dog and the cat"},)
    docs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = intarsia("index", str(docs), "--model", "none", "--append", out[1], "--json")
    assert result.code == 0 and result.json["documents"] == 3


def test_a_shop_s_table_is_indexed_filtered_and_changed(intarsia: Any, tmp_path: Path) -> None:
    shop, changed, out = tmp_path / "shop.csv", tmp_path / "changed.jsonl", str(tmp_path / "index")
    shop.write_text("sku;titel;preis\nL1;red lamp;19.5\nL2;oil lamp;40\nC1;chair;8\n")
    refused = intarsia("index", str(shop), "--out", out)
    assert refused.code == 2 and "want an id and a text" in refused.words
    assert "Loading" not in refused.err  # nor was a model
    words = ("--columns", "text=titel", "--model", "none", "--json")
    result = intarsia("index", str(shop), "--out", out, *words)
    assert result.code == 0 and result.json["documents"] == 3, result.err
    result = intarsia("search", out, "lamp", "--filter", "preis<20", "--json")
    (hit,) = result.json["hits"]
    assert hit["id"] == "L1" and hit["fields"] == {"preis": "19.5"}
    assert "preis=19.5" in intarsia("search", out, "lamp").out
    result = intarsia("search", out, "lamp", "--filter", "prize<20")
    assert result.code == 2 and "preis" in result.words
    changed.write_text(json.dumps({"id": "L2", "text": "an owl", "preis": 5}) + "\n")
    for order in ((str(changed), "--update", out), (out, "--update", str(changed))):
        result = intarsia("index", *order, "--json")
        assert result.code == 0 and result.json["documents"] == 3, result.err
    assert intarsia("search", out, "owl", "--json").json["hits"][0]["id"] == "L2"
    for wrong in (("--delete", "L9"), ("--delete", "L1", "--delete", "L9"),
                  ("--delete", "L1", "--out", out)):  # fmt: skip
        assert intarsia("index", out, *wrong).code == 2
    assert intarsia("index", str(changed), "--delete", "L2").code == 2
    result = intarsia("index", out, "--delete", "L1", "--delete", "C1", "--json")
    assert result.code == 0 and result.json["documents"] == 1, result.err
    assert intarsia("search", out, "owl", "--json").json["documents"] == 1
    assert intarsia("search", out, "red lamp", "--json").json["hits"] == []


def test_a_table_of_texts_is_read_without_ids(intarsia: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,label\na red lamp,3\nan owl,4\n")
    out = str(tmp_path / "index")
    result = intarsia("index", str(tmp_path / "texts.csv"), "--model", "none", "--out", out)
    assert result.code == 0, result.err
    # BM25 has stems and no tokens to count
    assert "2 documents, 0.0 MB" in result.out
    (hit,) = intarsia("search", out, "owls", "--json").json["hits"]
    assert (hit["id"], hit["text"], hit["fields"]) == ("2", "an owl", {"label": "4"})


def test_requests_have_filters_and_answers_fields(tmp_path: Path) -> None:
    import urllib.request

    docs = [{"id": "a", "text": "a red lamp", "price": 3}, {"id": "b", "text": "a lamp"}]
    index = SparseIndex.build(docs)
    with running(LocalPage(page_of(index, tmp_path), answers(index))) as url:

        def ask(question: dict[str, Any]) -> Any:
            data, kind = json.dumps(question).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}search", data, kind)
            try:
                with urllib.request.urlopen(request) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                return json.load(error)

        (hit,) = ask({"query": "lamp", "filter": ["price<4"]})["hits"]
        assert hit["id"] == "a" and hit["fields"] == {"price": 3}
        assert len(ask({"query": "lamp"})["hits"]) == 2
        for wrong in ({"filter": "price<4"}, {"filter": [3]}, {"filter": ["prize<4"]}):
            assert "hits" not in ask({"query": "lamp"} | wrong)
        with urllib.request.urlopen(f"{url}?q=red%20lamp") as page:
            assert b"<form" in page.read()  # its script reads the query


def test_training_refuses_options_of_another_task(folder: Path) -> None:
    task = ("--task", "sparse-retrieval")
    for words in (task, (*task, "--out", folder), (*task, "--out", "x", "--epochs", 3),
                  ("--out", "x"), ("--teachers", "bm25")):  # fmt: skip
        done = CliRunner().invoke(app, ["fit", "d.jsonl", *map(str, words)])
        assert done.exit_code == 2 and "want" in done.output


def test_searching_loads_no_torch(folder: Path) -> None:
    # a query takes less than a millisecond; importing torch takes seconds
    import subprocess

    code = (
        "import sys; from intarsia.areas.search.showing import search_results; "
        "from intarsia.areas.search.sparse_index import SparseIndex; "
        f"print(search_results(SparseIndex.load({str(folder)!r}), 'cat')['hits'][0]['id'], "
        "'torch' in sys.modules)"
    )
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["a", "False"]


class _Address:
    """A page's address, as the browser takes a file's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def as_uri(self) -> str:
        return self.address


def test_the_page_searches_in_a_browser(folder: Path, browse: Callable[..., str]) -> None:
    index = SparseIndex.load(folder)
    with running(LocalPage(page_of(index, folder), answers(index))) as url:
        wait = ("--virtual-time-budget=4000", "--window-size=390,844", "--dump-dom")
        dom = browse(_Address(f"{url}#q=animal%20mouse%20cat"), *wait)
    assert "The best 3 of 6 documents" in dom and "<mark>cat</mark>" in dom
    assert 'class="expanded"' in dom
    # a document's text is text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in dom and "&lt;i&gt;x&lt;/i&gt;" in dom


def test_a_begun_index_goes_on_with_the_same_documents_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")
    from intarsia.areas.search.inference_free import InferenceFree

    spec: Any = importlib.util.spec_from_file_location("toys", TOYS)
    toys: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    monkeypatch.setattr(InferenceFree, "from_pretrained", lambda *_, **__: toys.Toy())
    monkeypatch.setattr(index_steps, "BLOCK", 1)
    for name, words in (("a", ("the cat", "a dog", "a tree")), ("b", ("a mouse", "a house"))):
        rows = [json.dumps({"id": f"{name}{i}", "text": text}) for i, text in enumerate(words)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))

    def index(name: str, *words: object) -> Any:
        arguments = (tmp_path / f"{name}.jsonl", "--out", tmp_path / "idx", *words)
        return CliRunner().invoke(app, ["index", *map(str, arguments)])

    append = SparseIndex.append

    def stopped(self: SparseIndex, *args: Any, **options: Any) -> SparseIndex:
        if len(self) == 2:
            raise KeyboardInterrupt
        return append(self, *args, **options)

    with monkeypatch.context() as killed:
        killed.setattr(SparseIndex, "append", stopped)
        assert index("a").exit_code != 0
    for result in (index("b"), index("a", "--stored", "uint8"), index("a", "--prune", 0.1)):
        assert result.exit_code == 2 and "begun of other documents" in result.output
    assert index("a").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "idx"]
    opened = SparseIndex.load(tmp_path / "idx")
    assert len(opened) == 3 and [hit.id for hit in opened.search("tree cat")] == ["a2", "a0"]


def test_training_begins_without_what_an_earlier_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentence_transformers")
    from intarsia.areas.search import inference_free, learning

    (tmp_path / "d.jsonl").write_text(json.dumps({"id": 1, "text": "one two " * 8}))
    checkpoints: list[bool] = []

    def fit(*_: Any, out: Path, **__: Any) -> None:
        checkpoints.append((out / "checkpoint-240").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(inference_free.InferenceFree, "from_pretrained", lambda *_, **__: None)
    monkeypatch.setattr(learning, "fit_retriever", fit)
    for options in (["--resume"], []):
        (tmp_path / ".enc.training" / "checkpoint-240").mkdir(parents=True, exist_ok=True)
        words = [tmp_path / "d.jsonl", "--task", "sparse-retrieval", "--out", tmp_path / "enc"]
        CliRunner().invoke(app, ["fit", *map(str, words), *options])
    assert checkpoints == [True, False]
