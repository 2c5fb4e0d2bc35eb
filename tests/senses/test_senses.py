"""A decoder with connectors: what goes where, training, answers, folders, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import intarsia
from intarsia import Lora
from intarsia.conformance.made import moved
from intarsia.conformance.senses import Letters, decoder, picture, questions, sound
from intarsia.core.errors import ConfigError, ShapeError, TargetError, UnknownName
from intarsia.senses import Modalities
from intarsia.senses.connectors import PlainConnector, Resampler, pooled
from intarsia.senses.data.questions import Question, QuestionRows
from intarsia.senses.modalities import connectors_of
from intarsia.train.tasks.answers import Answers, answers_batch

from ..refusals import refused

SMALL = Modalities("pixels", "log-mel", (4, 2))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.getbasetemp() / "senses"))


def quiet(model: nn.Module) -> Any:
    return intarsia.senses.processor(model, Letters(), progress=lambda _: None)


@pytest.fixture(scope="module")
def seeing() -> nn.Module:
    return moved(intarsia.apply(decoder(), SMALL))


@pytest.fixture
def rows(seeing: nn.Module) -> QuestionRows:
    return quiet(seeing).asked(questions(2))


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**{n: t for n, t in batch.items() if n != "labels"}).logits


def test_vectors_stand_at_their_marks(seeing: Any, rows: QuestionRows) -> None:
    row = rows[0]
    ids = row["input_ids"]
    embeds = seeing.get_input_embeddings()(ids.clamp(min=0))[None]
    connector = connectors_of(seeing)["image"]
    vectors = connector(row["image"], row["image_views"], None).rows
    embeds[0, (ids == -1)] = vectors
    want = seeing(inputs_embeds=embeds).logits
    assert_close(logits(seeing, answers_batch([row])), want)


def test_a_row_does_not_depend_on_its_batch(seeing: Any, rows: QuestionRows) -> None:
    together = logits(seeing, answers_batch([rows[i] for i in range(6)]))
    for i in range(6):
        alone = logits(seeing, answers_batch([rows[i]]))[0]
        assert_close(together[i, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_text_alone_is_computed_as_before(seeing: Any, rows: QuestionRows) -> None:
    ids = rows[2]["input_ids"][None]
    assert (ids >= 0).all()
    assert torch.equal(seeing(input_ids=ids).logits, decoder()(input_ids=ids).logits)


def test_pictures_decide(seeing: Any) -> None:
    make = quiet(seeing)
    first, second = (make.rows([Question("a", image=(picture(i),))])[0] for i in (0, 1))
    assert not torch.allclose(*(logits(seeing, answers_batch([r])) for r in (first, second)))


def test_only_connectors_learn_and_encoders_are_no_part_of_it(seeing: Any) -> None:
    learned = {n.split(".")[0] for n, p in seeing.named_parameters() if p.requires_grad}
    assert learned == {"connectors"}


def test_a_batch_of_text_has_a_gradient_of_nothing(rows: QuestionRows) -> None:
    model: Any = intarsia.apply(decoder(), SMALL)
    model.train()
    batch = answers_batch([rows[2]])
    labels = batch.pop("labels")
    model(**batch, labels=labels).loss.backward()
    grads = [p.grad for p in model.connectors.parameters()]
    assert all(g is not None and not g.any() for g in grads)


def test_fit_learns_and_the_folder_has_it(tmp_path: Path) -> None:
    model = intarsia.apply(decoder(), SMALL, seed=1)
    model = intarsia.adapt(model, Lora(4, roles=("qkv", "mlp_linear")), head=None)
    for connector in connectors_of(model).values():
        connector.requires_grad_(True)
    make = quiet(model)
    data = make.asked(questions(4))
    options: dict[str, Any] = {"batch_size": 6, "lr": 1e-2, "trackers": (), "task": Answers()}
    run = intarsia.fit(model, data, epochs=12, out=tmp_path / "run", **options)
    before = intarsia.evaluate(intarsia.apply(decoder(), SMALL, seed=1), data, task=Answers())
    after = intarsia.evaluate(model, data, task=Answers())
    assert after.loss < 0.95 * before.loss and run is not None
    intarsia.save(model, tmp_path / "saved")
    for folder in ("saved", "run"):
        again: Any = intarsia.load(decoder(), tmp_path / folder)
        batch = answers_batch([data[i] for i in range(3)])
        assert_close(logits(again, batch), logits(model.eval(), batch))
        size = sum(f.stat().st_size for f in (tmp_path / "saved").rglob("*.safetensors"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert size < 4.5 * trained  # nothing of the decoder
    question = Question("which?", image=(picture(1),))
    first, second = (
        intarsia.senses.answer(m, quiet(m), "which?", image=picture(1)) for m in (model, again)
    )
    assert first == second and isinstance(question.modality, str)


def test_answers_are_those_of_the_whole_row(seeing: Any) -> None:
    """Generation from embeddings gives what a forward over the row with marks says."""
    make = quiet(seeing)
    row = make.rows([Question("which?", image=(picture(2),), audio=(sound(1),))])[0]
    step = logits(seeing, answers_batch([row]))[0, -1].argmax()
    with torch.no_grad():
        answer = intarsia.senses.answer(
            seeing, make, "which?", image=picture(2), audio=sound(1), tokens=1
        )
    assert answer == Letters().decode([int(step)]).strip()


def test_a_rate_is_any_number(seeing: Any) -> None:
    samples, rate = sound(1)
    rates = rate, np.int64(rate), float(rate)
    answers = [
        intarsia.senses.answer(seeing, quiet(seeing), audio=(samples, r), tokens=2) for r in rates
    ]
    assert answers[0] == answers[1] == answers[2]


def test_trainer_of_transformers_works(tmp_path: Path, rows: QuestionRows) -> None:
    from transformers import Trainer, TrainingArguments

    model: Any = intarsia.apply(decoder(), SMALL)
    before = copy.deepcopy(model.connectors.state_dict())
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2,
        report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    data: Any = rows
    Trainer(model, arguments, data_collator=answers_batch, train_dataset=data).train()
    changed = {n: not torch.equal(t, before[n]) for n, t in model.connectors.state_dict().items()}
    assert changed["image.projector.outer.weight"] and changed["audio.resampler.queries"]


def test_means_and_queries_make_so_many_vectors() -> None:
    draws = torch.Generator().manual_seed(0)
    x = torch.arange(64.0).view(1, 64, 1).expand(2, 64, 8).contiguous()
    assert pooled(x, 4, True)[0, :, 0].tolist() == [13.5, 17.5, 45.5, 49.5]
    assert pooled(x, 4, False)[0, :, 0].tolist() == [7.5, 23.5, 39.5, 55.5]
    resampler = Resampler(8, 9, generator=draws)
    out = resampler(x)
    assert out.shape == (2, 9, 8)
    assert not torch.allclose(resampler(x.flip(1)), resampler(x) + 1)
    short = Resampler(8, 3, generator=draws)(x[:, :5])
    assert short.shape == (2, 3, 8) and torch.isfinite(short).all()


def test_what_cannot_be_is_refused(seeing: Any, rows: QuestionRows) -> None:
    for settings in (
        {"image": None, "audio": None},
        {"vectors": (0, 1)},
        {"vectors": (4,)},
        {"by": ("mlp", "magic")},
    ):
        with pytest.raises(ConfigError):
            Modalities(**settings)  # pyright: ignore
    with refused(UnknownName, what="unknown encoder of image", got="'clip'"):
        Modalities(image="clip")
    with refused(ConfigError, what="vectors", got=5):
        intarsia.apply(decoder(), Modalities(vectors=(5, 2)))
    with refused(TargetError, what="model for pictures and sounds", got="Linear"):
        intarsia.apply(nn.Linear(2, 2), SMALL)
    with refused(TargetError, what="model for pictures"):
        intarsia.apply(copy.deepcopy(seeing), SMALL)
    with refused(TargetError, what="model for pictures"):
        intarsia.apply(intarsia.adapt(decoder(), Lora(2), head=None), SMALL)
    with refused(ConfigError, what="model", got="one without connectors"):
        intarsia.senses.processor(decoder(), Letters())


def test_a_batch_that_does_not_fit_is_refused(seeing: Any, rows: QuestionRows) -> None:
    batch = answers_batch([rows[0]])
    batch.pop("labels")
    with refused(ShapeError, what="batch", got="4 marks and no image"):
        seeing(**{n: t for n, t in batch.items() if "image" not in n})
    twice = torch.cat([batch["image"]] * 2)
    with refused(ShapeError, what="batch", got="4 marks for 2 views of 2 images"):
        seeing(**batch | {"image": twice, "image_views": torch.tensor([1, 1])})
    with refused(ShapeError, what="batch", got="0 marks for 2 views of 2 images"):
        seeing(input_ids=rows[2]["input_ids"][None], image=twice)
    with refused(ShapeError, what="connector"):
        seeing(**batch | {"image": batch["image"][..., :5]})
    deaf = intarsia.apply(decoder(), Modalities(audio=None, vectors=(4, 2)))
    with refused(ConfigError, what="batch"):
        logits(deaf, answers_batch([rows[1]]))


def test_ids_and_mask_may_come_by_place(seeing: Any, rows: QuestionRows) -> None:
    batch = answers_batch([rows[0], rows[1]])
    want = logits(seeing, batch)
    inputs = {n: t for n, t in batch.items() if n in ("image", "image_views", "audio", "asked")}
    with torch.no_grad():
        got = seeing(batch["input_ids"], batch["attention_mask"], **inputs).logits
    assert torch.equal(got, want)


def test_a_connector_counts_its_vectors() -> None:
    draws = torch.Generator().manual_seed(0)
    connector = PlainConnector(6, 8, reads=16, vectors=4, by="mlp", grid=True, generator=draws)
    vectors = connector(torch.randn(3, 16, 6), torch.tensor([1, 2]), None)
    assert vectors.counts.tolist() == [4, 8] and vectors.rows.shape == (12, 8)


def test_connectors_of_two_modalities_start_with_draws_of_their_own() -> None:
    connectors = connectors_of(intarsia.apply(decoder(), SMALL))
    first = [next(p for p in c.parameters() if p.dim() > 1) for c in connectors.values()]
    draws = torch.stack([p.detach().flatten()[:64] for p in first])
    assert torch.corrcoef(draws)[0, 1] < 0.9
