"""Uni-MoE: stages, experts of modalities, degenerate cases, and what the routers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import intarsia
from intarsia import Lora
from intarsia.adapters import Sparse
from intarsia.conformance.made import moved
from intarsia.conformance.senses import Letters, decoder, questions
from intarsia.core.errors import ConfigError
from intarsia.gating import learned_routers
from intarsia.mixtures.lora_experts import OutputExperts
from intarsia.senses import Modalities, UniMoe
from intarsia.senses.data.questions import QuestionRows
from intarsia.senses.modalities import connectors_of, modality_of
from intarsia.senses.uni_moe import ModalityRouter, by_modality
from intarsia.train.tasks.answers import Answers, answers_batch

from ..refusals import refused

SEES = Modalities("pixels", "log-mel", (4, 2))
TINY = UniMoe(over=Lora(2), attention=Lora(2, roles=("qkv", "projection")))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.getbasetemp() / "senses"))


def model_of(method: UniMoe = TINY) -> Any:
    return intarsia.adapt(intarsia.apply(decoder(), SEES), method, head=None)


def data_of(model: nn.Module) -> QuestionRows:
    return intarsia.senses.processor(model, Letters(), progress=lambda _: None).asked(questions(2))


def experts(model: nn.Module) -> list[OutputExperts]:
    return [m for m in model.modules() if isinstance(m, OutputExperts)]


def batch_of(data: QuestionRows, *which: int) -> dict[str, torch.Tensor]:
    batch = answers_batch([data[i] for i in which])
    batch.pop("labels")
    return batch


def test_each_stage_trains_its_own() -> None:
    model = model_of()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    kinds: dict[str, set[str]] = {}
    for phase in TINY.phases(model):
        learned = {n for n, p in model.named_parameters() if p.requires_grad}
        forced = {r.forced for r in learned_routers(model).values()}  # pyright: ignore
        assert forced == {phase.name == "experts"} and phase.last == (phase.name == "joint")
        kinds[phase.name] = {
            next(k for k in ("connectors", ".experts.", ".router.", "self_attn") if k in n)
            for n in learned
        }
    assert kinds["alignment"] == {"connectors"}
    assert kinds["experts"] == {"connectors", ".experts."}
    assert kinds["joint"] == {"connectors", ".experts.", ".router.", "self_attn"}
    assert trainable <= {n for n, p in model.named_parameters() if p.requires_grad}
    assert [p.name for p in UniMoe(shares=(0.5, 0, 0.5)).phases(model)] == ["alignment", "joint"]


def test_a_start_after_an_interruption_trains_all_of_it() -> None:
    model = model_of()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    steps = TINY.phases(model)
    next(steps)
    steps.close()
    learned: set[str] = set()
    for _ in TINY.phases(model):
        learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable <= learned


def test_an_expert_learns_from_its_modality_alone() -> None:
    model = model_of()
    data = data_of(model)
    for row, expert in ((0, 1), (1, 2), (2, 0)):  # image, audio, text
        model.zero_grad()
        with by_modality(model):
            model(**batch_of(data, row)).logits.sum().backward()
        for cell in experts(model):
            for map_ in cell.experts.values():
                gradients = [[p.grad for p in e.parameters()] for e in map_]
                has_gradient = [
                    any(g is not None and bool(g.any()) for g in grads) for grads in gradients
                ]
                assert has_gradient == [e == expert for e in range(3)]


def test_forced_experts_are_copies_that_were_trained_apart() -> None:
    """A mixed batch with each sample's own expert = one model for each modality."""
    model = moved(model_of()).eval()
    data = data_of(model)
    with torch.no_grad(), by_modality(model):
        mixed = model(**batch_of(data, 0, 1, 2)).logits
    for row, expert in ((0, 1), (1, 2), (2, 0)):
        alone = moved(model_of()).eval()
        for cell in experts(alone):
            for map_ in cell.experts.values():
                for e, part in enumerate(map_):
                    if e != expert:
                        part.load_state_dict(map_[expert].state_dict())
        with torch.no_grad():
            want = alone(**batch_of(data, row)).logits[0]  # equal experts: any gate
        assert_close(mixed[row, : len(want)], want, rtol=1e-4, atol=1e-5)


def test_what_has_no_expert_of_its_own_goes_to_the_texts_wherever_that_stands() -> None:
    router = ModalityRouter(TINY.routing(), 8, generator=torch.Generator().manual_seed(0))
    router.forced, x = True, torch.randn(6, 8)
    modality = torch.tensor([[0, 0], [1, 0], [2, 2]])  # texts, a picture, and a sound
    for names, want in ((("image", "text"), [1, 0, 1]), (("image", "audio"), [0, 0, 1])):
        router.modalities = names
        with router.context.having(modality=modality):
            assert router(x).expert.tolist() == [e for e in want for _ in range(2)]
    with router.context.having(modality=None):
        router.modalities = ("image", "text")
        assert router(x).expert.tolist() == [1] * 6


def test_one_expert_is_plain_lora_on_the_mlp() -> None:
    method = UniMoe(modalities=("text",), over=Lora(2, 4.0), attention=None)
    ours = moved(model_of(method)).eval()
    plain = intarsia.adapt(intarsia.apply(decoder(), SEES),
                           Lora(2, 4.0, roles=("mlp_linear",)), head=None)  # fmt: skip
    our_parameters = dict(ours.named_parameters())
    for name, p in plain.named_parameters():
        if ".intarsia_cells.default." in name:
            path, _, part = name.partition(".intarsia_cells.default.")
            mlp, _, linear = path.rpartition(".")
            p.data.copy_(
                our_parameters[f"{mlp}.intarsia_cells.default.experts.{linear}.0.{part}"].data
            )
    connectors = {m: c.state_dict() for m, c in connectors_of(ours).items()}
    for modality, connector in connectors_of(plain).items():
        connector.load_state_dict(connectors[modality])
    batch = batch_of(data_of(ours), 0, 1, 2)
    with torch.no_grad():
        our_logits, plain_logits = ours(**batch).logits, plain.eval()(**batch).logits
    real = batch["attention_mask"].bool()  # padding gets no expert
    assert_close(our_logits[real], plain_logits[real], rtol=1e-4, atol=1e-5)


def test_experts_can_be_whole_mlps() -> None:
    """Compare an expert, every weight of it trained, with a model trained on its modality."""
    method = UniMoe(over=Sparse(1.0), attention=None)
    ours = moved(model_of(method)).eval()
    cells = {path.partition(".intarsia_cells")[0]: m for path, m in ours.named_modules()
             if isinstance(m, OutputExperts)}  # fmt: skip
    trained = sum(p.numel() for cell in cells.values() for p in cell.experts.parameters())
    data = data_of(ours)
    batch = batch_of(data, 0)  # a picture, whose expert is 1
    with torch.no_grad():
        with by_modality(ours):
            forced = ours(**batch).logits
        weights = 0
        for path, cell in cells.items():
            mlp: Any = ours.get_submodule(f"{path}.base_layer")
            for name in cell.experts:
                layer = mlp.get_submodule(name)
                weights += 3 * layer.weight.numel()
                layer.weight += cell.of(name)[1].delta()
                for change in cell.of(name):
                    change.values.zero_()
        assert trained == weights
        assert_close(ours(**batch).logits, forced, rtol=1e-4, atol=1e-5)


def test_weights_are_the_softmax_of_the_chosen_logits() -> None:
    """Softmax after top-k, as released, is the renormalised top-k of the whole softmax."""
    router = ModalityRouter(TINY.routing(), 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
    top, index = (x @ router.weight.T).topk(2)
    want = torch.zeros(50, 3).scatter(1, index, top.softmax(-1))
    assert_close(router.eval()(x).dense(), want)
    router_of_three = (
        UniMoe(active=3).routing().build(8, generator=torch.Generator().manual_seed(0)).eval()
    )
    assert_close(router_of_three(x).dense(), (x @ router_of_three.weight.T).softmax(-1))


def test_three_stages_train_save_and_come_back(tmp_path: Path) -> None:
    model = model_of()
    data = data_of(model)
    frozen = {n: p.clone() for n, p in model.named_parameters() if "intarsia" not in n
              and "connectors" not in n}  # fmt: skip
    options: dict[str, Any] = {"batch_size": 6, "lr": 1e-2, "trackers": (), "task": Answers()}
    result = intarsia.fit_in_phases(model, TINY, data, epochs=4, out=tmp_path / "run", **options)
    assert [name for name, _ in result.runs] == ["alignment", "experts", "joint"]
    now = dict(model.named_parameters())
    assert all(torch.equal(p, now[n]) for n, p in frozen.items())
    gates = [m.weight for m in model.modules() if isinstance(m, ModalityRouter)]
    fresh = [m.weight for m in model_of().modules() if isinstance(m, ModalityRouter)]
    assert not any(torch.equal(a, b) for a, b in zip(gates, fresh, strict=True))
    again = intarsia.load(decoder(), tmp_path / "run")
    batch = batch_of(data, 0, 1, 2)
    with torch.no_grad():
        assert_close(again(**batch).logits, model.eval()(**batch).logits)


def test_the_load_is_told_by_modality() -> None:
    model = moved(model_of())
    data = data_of(model)
    batches = [batch_of(data, 0, 1), batch_of(data, 2)]
    loads = intarsia.experts.expert_loads(model, batches, by="modality")
    kinds = torch.cat([modality_of(b["input_ids"])[b["attention_mask"] > 0] for b in batches])
    assert len(loads) == 2
    for path, table in loads.items():
        assert table.sum(1).tolist() == (2 * kinds.bincount(minlength=3)).tolist(), path
    total_loads = intarsia.experts.expert_loads(model, batches)
    for path, load in total_loads.items():
        assert torch.equal(loads[path].sum(0), load)
    with refused(ConfigError, what="loads by modality", got="none"):
        plain = intarsia.adapt(decoder(), TINY, head=None)
        intarsia.experts.expert_loads(plain, [torch.ones(1, 3).long()], by="modality")


def test_what_cannot_be_is_refused() -> None:
    for settings in (
        {"modalities": ("text", "smell")},
        {"modalities": ()},
        {"modalities": ("text", "text")},
        {"active": 0},
        {"shares": (1, 1, 0)},
        {"shares": (1, 1)},
    ):
        with pytest.raises(ConfigError):
            UniMoe(**settings)  # pyright: ignore
    with refused(ConfigError, what="model", got="one without connectors"):
        next(TINY.phases(intarsia.adapt(decoder(), TINY, head=None)))
    with refused(ConfigError, what="model", got="no experts"):
        next(TINY.phases(intarsia.apply(decoder(), SEES)))
