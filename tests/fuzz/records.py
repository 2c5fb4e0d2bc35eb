"""Records of runs and of measurements, indexes, priors, estimators and recommenders."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

import intarsia
from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import CARD, RecombinerSettings
from intarsia.areas.coding.bsc import BSC
from intarsia.areas.coding.mog import MoG
from intarsia.areas.recommend.recommending import open_recommender, save_recommender
from intarsia.areas.search.query_weights import QueryWeights
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.cli import app, index_steps
from intarsia.cli import recommending as cli_recommending
from intarsia.cli.codec import check_signal
from intarsia.cli.configuring import read_config
from intarsia.conformance.made import torch_seed
from intarsia.core.files import write_json
from intarsia.core.reading import read_bytes
from intarsia.data.interactions import ItemField, events
from intarsia.placement import Placement, Topology, Trace
from intarsia.placement.expertflow import TokenTable
from intarsia.reports import page
from intarsia.reports import spans as spans_page
from intarsia.reports import sparse as sparse_page
from intarsia.reports.runs import gather, write_report
from intarsia.runs import experiment, seeing
from intarsia.runs.blending import open_blend, write_blend
from intarsia.runs.choosing import auto

from .data import photos
from .kinds import Kind


def call(*words: object) -> Any:
    """Run the command line in this process; what it raises is raised here."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    if done.exit_code:
        raise AssertionError(done.output)
    return done.stdout


def _run(folder: Path, *names: str) -> None:
    words = ("--model", "test_vit", "--untrained", "--size", "32", "--epochs", "1")
    with tempfile.TemporaryDirectory() as place:
        photos(Path(place))
        words = (place, *words, "--batch-size", "4", "--lr", "1e-2", "--method", "mosa")
        for name in names or ("run",):
            call("fit", *words, "--out", folder / name)


def _blend(folder: Path) -> None:
    _run(folder, "a", "b")
    write_blend(folder / "blend", [folder / "a", folder / "b"], [2, 1], move=True)


def _open_blend(folder: Path) -> Any:
    run = open_blend(folder / "blend")
    return run.model.state_dict(), run.weights, run.temperatures, run.classes, run.record["results"]


def _open_run(folder: Path) -> Any:
    run = intarsia.open_run(folder / "run")
    return run.model.state_dict(), run.classes, run.record["results"]["val"]


def _open_report(folder: Path) -> Any:
    write_report([folder / "run"], folder / "report.html")
    run = gather([folder / "run"])[0]
    return run.scores, run.costs, run.curve, run.items and vars(run.items)


def _settings(folder: Path) -> None:
    flat = experiment.Experiment(experiment.Pictures("photos")).flat()
    write_json(folder / "experiment.json", flat)
    write_json(folder / "auto.json", flat | {"minutes": 1, "methods": ["mosa"]})
    record = {"data": "shop", "task": "sessions", "method": "m2trec", "settings": []}
    record |= {"schedule": None, "density": None, "seed": 0, "options": {}}
    write_json(folder / "recommend.json", record)
    write_json(index_steps.settings_file(folder / "part"), {"model": "toy"})


def _open_settings(folder: Path) -> Any:
    index_steps.check_same(folder / "part", {"model": "toy"}, folder / "idx")
    return (
        experiment.read(folder),
        read_config(folder),
        auto._stored_request(folder / "auto.json", None, {}),  # pyright: ignore[reportPrivateUsage]
        cli_recommending._read(folder / "recommend.json"),  # pyright: ignore
    )


def _pages(folder: Path) -> None:
    rows = [
        {"layer": f"model.layers.{i}.mlp.up", "weights": 64, "density": 0.5, "error_masked": 0.3,
         "error": 0.1 * i}
        for i in range(2)
    ]  # fmt: skip
    pruned = {
        "model": "tiny", "method": "wanda", "base": None, "settings": {"density": 0.5},
        "calibration": {"data": "mixed", "rows": 8, "tokens": 64}, "density": 0.5,
        "perplexity": {"dense": 20.0, "pruned": 30.0, "rows": 8},
        "bytes": {"dense": 1024, "bitmask": 700}, "seconds": 3.0, "layers": rows,
        "parts": {"kept values": 500, "bitmasks": 200, "zeros left out": 500, "other": 100},
    }  # fmt: skip
    (folder / "pruned").mkdir()
    write_json(folder / "pruned" / "sparsify.json", pruned)
    about_spans = {"dense": 3.0, "uniform": 3.2, "loss": {"a": 3.1}, "chosen": "a"}
    intarsia.spans.Spans.uniform(2, 2, 0.5, longest=128, about=about_spans).save(
        folder / "spans.json"
    )
    record = {"data": "questions.jsonl", "model": "smollm2", "method": "mixlora", "settings": []}
    record |= {"see": "pixels", "hear": "log-mel", "options": {"seed": 0}}
    write_json(folder / seeing.FILE, record)


def _open_pages(folder: Path) -> Any:
    pruned = page.html(sparse_page.report_of(sparse_page.gather([folder / "pruned"])))
    spans = page.html(spans_page.report_of(spans_page.read_spans(folder / "spans.json")))
    return pruned, spans, seeing.read_asked(folder)


def _trace() -> Trace:
    draws = torch.Generator().manual_seed(0)
    experts = torch.rand(60, 3, 4, generator=draws).topk(2).indices
    row = torch.arange(60)
    return Trace(experts, 4, row // 7, row % 7, torch.rand(60, 3, 2, generator=draws), row % 11)


def _placing(folder: Path) -> None:
    trace = _trace()
    trace.save(folder / "trace.safetensors")
    TokenTable.of(trace).save(folder / "table.safetensors")
    Placement.contiguous(3, 4, 2).save(folder / "placement.json")
    links = {"nodes": 1, "each": 2, "intra": {"gbps": 300, "us": 2}, "flops": 1e12}
    write_json(folder / "topology.json", links)


def _open_placing(folder: Path) -> Any:
    trace, table = (
        kind.load_file(folder / name)
        for kind, name in ((Trace, "trace.safetensors"), (TokenTable, "table.safetensors"))
    )
    placed = Placement.load_file(folder / "placement.json")
    links = Topology.load_file(folder / "topology.json")
    return [vars(record) for record in (trace, table, placed, links)]


WORDS = ("[UNK]", "the", "cat", "dog", "house", "sleeps")
DOCS = [("a", "the cat sleeps"), ("b", "the dog"), ("c", ""), ("d", "a cat a dog")]


class _Toy:
    """An encoder that weighs each word by its number."""

    name, digest = "toy", "0" * 64

    def __init__(self) -> None:
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        weights = np.linspace(0, 1, len(WORDS), dtype=np.float32)
        self.queries = QueryWeights(inner.to_str(), weights)

    def encode(self, texts: Sequence[str]) -> Any:
        rows = np.zeros((len(texts), len(WORDS)), np.float32)
        for i, tokens in enumerate(self.queries.tokens(texts)):
            rows[i, tokens] = tokens
        return sp.csr_matrix(rows)


def _open_index(folder: Path) -> Any:
    index = SparseIndex.load(folder / "i")
    return index.search_many(["cat", "the dog house"]), len(index)


def _codec(folder: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(4)]
    tiny = RecombinerSettings(**CARD.tiny)
    codec = Recombiner.train(pictures, 0.4, tiny, crops=16, steps=2)
    codec.save(folder / "prior")
    (folder / "a.irc").write_bytes(codec.encode(pictures[0], steps=2))


def _open_codec(folder: Path) -> Any:
    codec = Recombiner.load(folder / "prior")
    check_signal(folder / "a.irc")
    return codec.decode(read_bytes(folder / "a.irc"))


def _estimator(folder: Path) -> None:
    data = np.random.default_rng(0).normal(size=(40, 6))
    BSC(2, n_iter=1, random_state=0).fit(data).save(folder / "bsc")
    MoG(2, n_iter=1, random_state=0).fit(data).save(folder / "mog")


def _open_estimator(folder: Path) -> Any:
    data = np.linspace(-1, 1, 30).reshape(5, 6)
    return BSC.load(folder / "bsc").transform(data), MoG.load(folder / "mog").predict(data)


def _recommender(folder: Path) -> None:
    rows = [(f"u{i % 4}", f"i{i * 3 % 7}", float(i), 1.0) for i in range(40)]
    fields = {"colour": ItemField("token", tuple((f"c{i % 3}",) for i in range(7)))}
    data = events(rows, item_ids=[f"i{i}" for i in range(7)], fields=fields)
    with torch_seed(0):
        model = intarsia.recommend.M2TRec(width=16, layers=1).build(data)
    save_recommender(model, folder / "r", data)


def _open_recommender(folder: Path) -> Any:
    model: Any = open_recommender(folder / "r")
    return model.state_dict(), vars(model.known)


KINDS: tuple[Kind, ...] = (
    Kind("run", _run, _open_run),
    Kind("blend", _blend, _open_blend),
    Kind("report", _run, _open_report),
    Kind("settings", _settings, _open_settings),
    Kind("pages", _pages, _open_pages),
    Kind("placing", _placing, _open_placing),
    Kind("index", lambda folder: SparseIndex.build(_Toy(), DOCS).save(folder / "i"), _open_index),
    Kind("codec", _codec, _open_codec),
    Kind("estimator", _estimator, _open_estimator),
    Kind("recommender", _recommender, _open_recommender),
)
