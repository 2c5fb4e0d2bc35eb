"""Data: pictures, sounds, texts, tables, events, collections and weights of other formats."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import helper, numpy_helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from intarsia.cli.codec import read_signal
from intarsia.conformance.senses import Letters
from intarsia.core.pictured import lists_pictures
from intarsia.data import load_data
from intarsia.data.atomic_files import load_interactions, read_items
from intarsia.data.collections import load_collection, read_docs, read_queries
from intarsia.data.conversions import read_onnx
from intarsia.data.decode import read_image
from intarsia.data.texts import read_prompts, read_texts
from intarsia.senses.data.encoders import ENCODERS
from intarsia.senses.data.hearing import read_sound
from intarsia.senses.data.questions import Processor, read_questions

from .kinds import Kind


def photo(seed: int, side: int = 16) -> Image.Image:
    """A picture of noise, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def photos(folder: Path) -> None:
    """Two classes of eight pictures."""
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            photo(i).save(folder / name / f"{i}.png")


def _pictures(folder: Path) -> None:
    for end in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        photo(0).save(folder / f"a.{end}")


def _open_pictures(folder: Path) -> Any:
    return [read_image(path) for path in sorted(folder.iterdir())]


def _decoded(splits: Any) -> Any:
    """Read all pictures and labels of the parts."""
    parts = [part for part in (splits.train, splits.val, splits.test) if part is not None]
    return [
        (read_image(p) if isinstance(p, Path | bytes) else p, label, part.classes)
        for part in parts
        for p, label in zip(part.images, part.labels.tolist(), strict=True)
    ]


def _table(name: str, write: Callable[[Path, list[tuple[str, str]]], object]) -> Kind:
    """A table of pictures beside it."""

    def make(folder: Path) -> None:
        rows = [(f"{i}.png", "ab"[i % 2]) for i in range(8)]
        for i, (file, _) in enumerate(rows):
            photo(i).save(folder / file)
        write(folder / f"labels{name}", rows)

    return Kind(
        f"pictures{name}", make, lambda folder: _decoded(load_data(folder / f"labels{name}"))
    )


def _csv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(f"{a},{b}\n" for a, b in [("file_name", "label"), *rows]))


def _jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text(
        "".join(
            json.dumps({"image": a, "labels": ["a", "b"] if b == "a" else [b]}) + "\n"
            for a, b in rows
        )
    )


def _parquet(folder: Path) -> None:
    raw = io.BytesIO()
    photo(1).save(raw, "png")
    rows = {"image": [{"bytes": raw.getvalue(), "path": "a.png"}] * 8, "label": ["a", "b"] * 4}
    pq.write_table(pa.table(rows), folder / "photos.parquet")


def tokenizer() -> Any:
    """A tokenizer of transformers with a few words and a template of chats."""
    words = ["[UNK]", "</s>", "user", "assistant", "say", "the", "cat", "dog", "mouse", "house"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    template += "{% if add_generation_prompt %}assistant {% endif %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="</s>")
    fast.chat_template = template
    return fast


def _texts(folder: Path) -> None:
    (folder / "book.txt").write_text("the cat sleeps in the house. " * 20)
    rows = [{"prompt": f"say {w}", "completion": w} for w in ("cat", "dog", "a mouse")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = [{"role": "user", "content": "say cat"}, {"role": "assistant", "content": "cat"}]
    (folder / "chat.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 3)


def _open_texts(folder: Path) -> Any:
    parts = [
        list(read_texts(str(path), tokenizer(), length=16, progress=lambda _: None))
        for path in sorted(folder.iterdir())
    ]
    return parts, lists_pictures(folder / "rows.jsonl")


def _open_prompts(folder: Path) -> Any:
    return [read_prompts(folder / f, tokenizer()) for f in ("rows.jsonl", "chat.jsonl")]


def _collection(folder: Path) -> None:
    rows = [{"_id": f"d{i}", "title": "", "text": f"cat number {i}"} for i in range(3)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "cat"}) + "\n")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td1\t1\n")


def _open_collection(folder: Path) -> Any:
    collection = load_collection(str(folder), report=lambda _: None)
    docs, queries = read_docs(folder / "corpus.jsonl"), read_queries(folder / "queries.jsonl")
    return vars(collection), list(docs), queries


def _shop(folder: Path) -> None:
    rows = "".join(f"u{i % 3}\ti{i % 4}\t{i}\t{i % 5}\n" for i in range(12))
    head = "user_id:token\titem_id:token\ttimestamp:float\trating:float\n"
    (folder / "shop.inter").write_text(head + rows)
    items = "".join(f"i{i}\tred lamp\t{i}.5\n" for i in range(4))
    (folder / "shop.item").write_text("item_id:token\ttitle:token_seq\tprice:float\n" + items)


def _events(folder: Path) -> None:
    rows = "".join(f"u{i % 3},i{i % 4},{i},{i % 5}\n" for i in range(12))
    (folder / "events.csv").write_text("user,item,time,rating\n" + rows)


def _event_blocks(folder: Path) -> None:
    columns = {"user": ["a", "b"] * 4, "item": ["x", "y", "z", "x"] * 2, "time": list(range(8))}
    pq.write_table(pa.table(columns), folder / "events.parquet")


def _questions(folder: Path) -> None:
    photo(0).save(folder / "a.png")
    _wave(folder / "a.wav")
    rows = [{"question": "which?", "answer": "red", "image": "a.png"},
            {"question": "what?", "answer": "low", "audio": "a.wav"}]  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _open_questions(folder: Path) -> Any:
    both = {"image": ENCODERS["pixels"], "audio": ENCODERS["log-mel"]}
    counts = {"image": lambda views: 4 * views, "audio": lambda views: 2}
    make = Processor(Letters(), both, counts, progress=lambda _: None)
    return make.rows(read_questions(folder / "questions.jsonl"))


def _wave(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(np.arange(2_000, dtype="<i2").tobytes())


def _array(path: Path) -> None:
    np.save(path, np.linspace(0, 1, 60, dtype=np.float32).reshape(5, 4, 3))


def _onnx(folder: Path) -> None:
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=[weight])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())


KINDS = (
    Kind("pictures", _pictures, _open_pictures),
    Kind("folder", lambda folder: photos(folder / "p"), lambda f: _decoded(load_data(f / "p"))),
    _table(".csv", _csv),
    _table(".jsonl", _jsonl),
    Kind("pictures.parquet", _parquet, lambda f: _decoded(load_data(f / "photos.parquet"))),
    Kind("texts", _texts, _open_texts),
    Kind("prompts", _texts, _open_prompts),
    Kind("collection", _collection, _open_collection),
    Kind("shop", _shop, lambda f: (vars(load_interactions(f)), read_items(f / "shop.item"))),
    Kind("events.csv", _events, lambda f: vars(load_interactions(f / "events.csv"))),
    Kind("events.parquet", _event_blocks, lambda f: vars(load_interactions(f / "events.parquet"))),
    Kind("questions", _questions, _open_questions),
    Kind("sound", lambda f: _wave(f / "a.wav"), lambda f: read_sound(f / "a.wav")),
    Kind("signal.wav", lambda f: _wave(f / "a.wav"), lambda f: read_signal(f / "a.wav")),
    Kind("signal.npy", lambda f: _array(f / "a.npy"), lambda f: read_signal(f / "a.npy")),
    Kind("onnx", _onnx, lambda f: read_onnx(f / "model.onnx")),
)
