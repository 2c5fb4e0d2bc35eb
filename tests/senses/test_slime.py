"""SliME: its budget, its selection, its two experts, its stages, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import intarsia
from intarsia import Lora
from intarsia.conformance.made import moved
from intarsia.conformance.senses import Letters, decoder, picture
from intarsia.core.errors import ConfigError
from intarsia.senses import Slime
from intarsia.senses.answering import prompt
from intarsia.senses.connectors import pooled
from intarsia.senses.data.questions import Question
from intarsia.senses.slime import TiledView, select_largest, selection, set_budget, tiled_view
from intarsia.train.tasks.answers import Answers, answers_batch

from ..refusals import refused

TINY = Slime(tiles=4, whole=4, queries=4, budget=12, over=None)
WIDE = (224, 224)  # 2 x 2 tiles, so 16 local vectors


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.getbasetemp() / "senses"))


def coloured(size: tuple[int, int] = WIDE) -> Any:
    """A picture whose tiles differ."""
    page = picture(0, size)
    for i, box in enumerate(((112, 0), (0, 112), (112, 112)), 1):
        page.paste(picture(i), box)
    return page


@pytest.fixture
def model() -> Any:
    return moved(intarsia.apply(decoder(), TINY)).eval()


def make(model: nn.Module) -> Any:
    return intarsia.senses.processor(model, Letters(), progress=lambda _: None)


def row_of(
    model: nn.Module, text: str = "what?", size: tuple[int, int] = WIDE, answer: Any = None
) -> Any:
    return make(model).rows([Question(text, answer, image=(coloured(size),))])[0]


def logits(model: Any, *rows: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**{n: t for n, t in answers_batch(rows).items() if n != "labels"}).logits


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    st.floats(0, 1),
    st.integers(0, 40),
)
@settings(max_examples=25)
def test_what_is_kept(values: list[float], top_p: float, room: int) -> None:
    s = torch.tensor(values).softmax(0)
    exact = select_largest(s, top_p, room)
    assert int(exact.sum()) == min(room, len(s))
    if 0 < room < len(s):
        assert s[exact].min() >= s[~exact].max()
    some = select_largest(s, top_p, None)
    assert s[some].sum() >= min(top_p, 1) - 1e-5 and some.any()
    assert int(select_largest(s, min(1.0, top_p + 0.1), None).sum()) >= int(some.sum())
    assert select_largest(s, 1.0, None).all()


def test_all_are_kept_at_one_though_their_rounded_sum_is_above_it() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(100):
        assert select_largest((8 * torch.randn(96, generator=draw)).softmax(0), 1.0, None).all()


@pytest.mark.parametrize("budget", [6, 9, 20, 21, 50])
@pytest.mark.parametrize("size", [WIDE, (112, 112), (2240, 112), (1, 300)])
def test_the_budget_is_kept_exactly(model: Any, budget: int, size: tuple[int, int]) -> None:
    set_budget(model, budget)
    row = row_of(model, size=size)
    marks = int((row["input_ids"] < 0).sum())
    views = int(row["image_views"][0])
    assert marks == (4 if views == 1 else min(budget, 5 + 4 * (views - 1)))
    text = len(row["input_ids"]) - marks
    with torch.no_grad():
        assert prompt(model, row).shape[1] == text + marks
    assert str(marks - 5 if views > 1 else marks) in tiled_view(model).describe(views)


def test_all_tiles_are_no_selection(model: Any) -> None:
    set_budget(model, 21)
    everything = logits(model, row_of(model))
    set_budget(model, None)
    tiled_view(model).settings = Slime(tiles=4, whole=4, queries=4, budget=None, top_p=1, over=None)
    assert_close(logits(model, row_of(model)), everything)


def test_masked_vectors_are_as_if_left_out(model: Any) -> None:
    """top_p masks in a batch and leaves out in a prompt: one answer, that of an equal budget."""
    set_budget(model, None)
    row = row_of(model)
    count = int(selection(model, row)[0][1].sum())
    assert 0 < count < 16
    with torch.no_grad():
        embeds = prompt(model, row)
        short = model(inputs_embeds=embeds).logits[0, -1]
    assert embeds.shape[1] == len(row["input_ids"]) - 16 + count
    assert_close(logits(model, row)[0, -1], short, rtol=1e-4, atol=1e-5)
    set_budget(model, 5 + count)
    assert_close(logits(model, row_of(model))[0, -1], short, rtol=1e-4, atol=1e-5)


def test_the_answer_and_padding_change_no_choice(model: Any) -> None:
    set_budget(model, 9)
    short_row, long_row = row_of(model, answer="a"), row_of(model, answer="bcd")
    for a, b in zip(selection(model, short_row), selection(model, long_row), strict=True):
        assert torch.equal(a[1], b[1]) and torch.equal(a[0], b[0])
    prompt_length = len(row_of(model)["input_ids"])
    together = logits(model, short_row, long_row)[:, :prompt_length]
    assert_close(together[0], together[1], rtol=1e-4, atol=1e-5)


def test_permuted_tiles_are_scored_alike(model: Any) -> None:
    row = row_of(model)
    s, _ = selection(model, row)[0]
    order = torch.tensor([2, 0, 3, 1])
    permuted = dict(row) | {"image": row["image"][torch.cat([torch.zeros(1).long(), 1 + order])]}
    again, selected = selection(model, permuted)[0]
    assert_close(again, s[order])
    assert int(selected.sum()) == TINY.budget - 5  # pyright: ignore


def test_the_question_chooses(model: Any) -> None:
    set_budget(model, 7)
    selections = {
        tuple(selection(model, row_of(model, t))[0][1].flatten().tolist()) for t in "abcdefgh"
    }
    assert len(selections) > 1


def test_a_question_without_words_is_by_norm(model: Any) -> None:
    row = make(model).rows([Question("", None, image=(coloured(),))])[0]
    row["asked"] = torch.zeros_like(row["asked"])
    with pytest.warns(UserWarning, match="without words"):
        assert int(selection(model, row)[0][1].sum()) == 7


def test_the_gate_mixes_two_experts() -> None:
    view = TiledView(TINY, 588, 32, torch.Generator().manual_seed(0)).eval()
    x = torch.randn(2, 64, 588, generator=torch.Generator().manual_seed(1))
    both = view.mixture(x)
    view.stage = "global-mlp"
    mixed = view.mixture(x)
    view.stage = "global-queries"
    two = view.mixture(x)
    assert_close(both, (mixed + two) / 2)  # W_g = 0 at the start
    view.stage = "joint"
    with torch.no_grad():
        view.gate.gate[0] = 100 * x.mean((0, 1))
    g = torch.stack([view.gate.gate[0] @ v for v in x.mean(1)])
    assert g.abs().max() > 0 and not torch.allclose(view.mixture(x), both)
    # the first expert is the projection of means, the second that of queries
    read = view.projector.norm(pooled(x, TINY.whole, grid=True)).flatten(0, 1)
    tilt = 0.1 * torch.randn(588, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        view.gate.gate[0] = tilt
    share = (read @ tilt).sigmoid().view(2, -1, 1)  # the softmax of two logits, the second 0
    assert_close(view.mixture(x), share * mixed + (1 - share) * two)
    ahead = torch.linalg.lstsq(read, torch.full((len(read), 1), 100.0)).solution[:, 0]
    for sign, alone in ((1, mixed), (-1, two)):
        with torch.no_grad():
            view.gate.gate[0] = sign * ahead
        assert_close(view.mixture(x), alone, rtol=1e-4, atol=1e-5)


def test_the_gate_has_tokens_of_pictures_alone(model: Any) -> None:
    row = make(model).rows([Question("what is <image>", None, image=(coloured(),))])[0]
    batch = {n: t for n, t in answers_batch([row]).items() if n != "labels"}
    (table,) = intarsia.experts.expert_loads(model, [batch], by="modality").values()
    assert table.tolist() == [[0, 0], [4, 4], [0, 0]]


def test_each_stage_trains_and_reads_its_part(tmp_path: Path) -> None:
    settings_ = Slime(tiles=4, whole=4, queries=4, budget=12, over=Lora(2))
    model: Any = intarsia.apply(decoder(), settings_)
    model = intarsia.adapt(model, Lora(2), head=None)
    view = tiled_view(model)
    row = row_of(model)
    learned: dict[str, set[str]] = {}
    read: dict[str, int] = {}
    for phase in settings_.phases(model):
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        learned[phase.name] = {
            n.split("image.")[-1].split(".")[0] if "image" in n else "lora" for n in names
        }
        with torch.no_grad():
            read[phase.name] = prompt(model.eval(), row).shape[1] - int(
                (row["input_ids"] >= 0).sum()
            )
    assert learned == {
        "global-mlp": {"projector"},
        "global-queries": {"projector", "whole"},
        "local": {"local", "separator"},
        "joint": {"projector", "whole", "local", "separator", "gate", "lora"},
    }
    assert read == {"global-mlp": 4, "global-queries": 4, "local": 8, "joint": 12}
    assert view.stage == "joint"
    data = make(model).asked([Question("what?", "ab", image=(coloured(),))] * 4)
    options: dict[str, Any] = {"batch_size": 2, "lr": 1e-3, "trackers": (), "task": Answers()}
    intarsia.fit_in_phases(model, settings_, data, epochs=1, out=tmp_path / "run", **options)
    again = intarsia.load(decoder(), tmp_path / "run")
    assert_close(logits(again, row), logits(model.eval(), row))


def test_what_cannot_be_is_refused(model: Any) -> None:
    with refused(ConfigError, what="budget", got=17):
        Slime(budget=17)
    for given_ in ({"tau": 0}, {"top_p": 1.5}, {"tiles": 0}, {"whole": 5}):
        with pytest.raises(ConfigError):
            Slime(**given_)  # pyright: ignore
    with refused(ConfigError, what="budget", got=5):
        set_budget(model, 5)
    with refused(ConfigError, what="model", got="no LoRA in the decoder"):
        next(Slime(tiles=4, whole=4, queries=4, budget=12).phases(model))
    with refused(ConfigError, what="model", got="PlainConnector"):
        tiled_view(intarsia.apply(decoder(), intarsia.senses.Modalities(vectors=(4, 2))))


def test_scores_are_a_softmax_of_mean_cosines_with_a_little_noise_in_training() -> None:
    generator = torch.Generator().manual_seed(0)
    view = TiledView(TINY, 8, 6, generator).eval()
    local, embeds = torch.randn(5, 6, generator=generator), torch.randn(4, 6, generator=generator)
    asks = torch.tensor([True, False, True, True])
    lengths = local.norm(dim=1)[:, None] * embeds[asks].norm(dim=1)
    cosine = (local @ embeds[asks].T / lengths).mean(1)
    tau = TINY.tau or 1 / 3
    assert_close(view.scores(local, embeds, asks), (cosine / tau).softmax(0))
    view.train().noise.normal = lambda count: torch.arange(float(count))
    noisy = cosine + 0.1 / 3 * torch.arange(5.0)
    assert_close(view.scores(local, embeds, asks), (noisy / tau).softmax(0))
