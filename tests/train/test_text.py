"""Rows of tokens in the training loop: padding, labels, scores, routers' losses, the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import intarsia
from intarsia.core import Routing
from intarsia.core.errors import ConfigError, DataError
from intarsia.gating import Router, task_ids
from intarsia.gating.load import CollapseWarning
from intarsia.processes.exchange import Meter
from intarsia.train import (
    Classes,
    TokenMetrics,
    Tokens,
    evaluate,
    logits_of,
    next_token,
    task_of,
    trainer_loss,
)
from intarsia.train.learner import Learner
from intarsia.train.objectives import two_pass
from intarsia.train.order import Reader

from ..refusals import refused

VOCABULARY = 17


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


class Rows(Dataset[Any]):
    """Rows of different lengths; the first `hidden` tokens have no label."""

    def __init__(self, lengths: tuple[int, ...], hidden: int = 0, tasks: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = [torch.randint(VOCABULARY, (n,), generator=generator) for n in lengths]
        self.hidden, self.tasks = hidden, tasks

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        labels = self.ids[i].clone()
        labels[: self.hidden] = -100
        row: dict[str, Any] = {"input_ids": self.ids[i], "labels": labels}
        return row | ({"task_ids": i % 2} if self.tasks else {})


def test_rows_are_padded_to_the_longest_of_their_batch() -> None:
    data = Rows((3, 5, 4))
    x, y = Reader(data, seed=0)[(0, (0, 1))]
    assert not isinstance(x, Tensor)
    assert x["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert y[0].tolist() == [*data.ids[0].tolist(), -100, -100]
    x, y = Reader(Rows((3, 3), tasks=True), seed=0)[(0, (0, 1))]
    assert not isinstance(x, Tensor) and x["task_ids"].tolist() == [0, 1]
    assert task_of(data) == Tokens()


def test_padding_changes_no_score() -> None:
    model = llama()
    data = Rows((3, 9, 6, 2), hidden=1)
    single, all_ = evaluate(model, data, batch_size=1), evaluate(model, data, batch_size=4)
    assert isinstance(single, TokenMetrics) and isinstance(all_, TokenMetrics)
    assert single.loss == pytest.approx(all_.loss, rel=1e-5)
    assert single.tokens == all_.tokens == 2 + 8 + 5 + 1
    # by hand: the mean over all labelled tokens
    total = 0.0
    for row in data.ids:
        logits = model(row[None]).logits[0, :-1].log_softmax(-1)
        total -= float(logits.gather(1, row[1:, None]).sum().detach())
    assert single.loss == pytest.approx(total / single.tokens, rel=1e-5)
    assert single.perplexity == pytest.approx(torch.tensor(single.loss).exp().item(), rel=1e-5)


def test_exact_match_is_what_greedy_generation_gives() -> None:
    model = llama(3).eval()
    prompt = torch.tensor([[1, 2, 3]])
    answer = model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0)[0]

    class Two(Dataset[Any]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, i: int) -> dict[str, Tensor]:
            ids = answer.clone()
            if i:
                ids[-2] = (ids[-2] + 1) % VOCABULARY
            labels = ids.clone()
            labels[:3] = -100
            return {"input_ids": ids, "labels": labels}

    metrics = evaluate(model, Two())
    assert isinstance(metrics, TokenMetrics) and metrics.exact_match == 0.5


def test_next_token_ignores_what_has_no_label_and_is_that_of_transformers() -> None:
    model = llama()
    x, y = Reader(Rows((5, 4), hidden=2), seed=0)[(0, (0, 1))]
    assert not isinstance(x, Tensor)
    want = model(**x, labels=y).loss
    torch.testing.assert_close(next_token(logits_of(model, x), y), want)
    logits = torch.zeros(1, 3, 4)
    assert Tokens().noted(logits, (x, torch.tensor([[0, 0, -100]])))["accuracy"] == 1


def test_parts_of_a_batch_count_by_their_labels() -> None:
    short, long = torch.tensor([[1, 2, -100]]), torch.tensor([[1, 2, 3, 4]])
    once, three = (Tokens().count(({}, labels)) for labels in (short, long))
    assert 3 * once == three > 0
    assert [Classes().count(({}, torch.zeros(n))) for n in (3, 1)] == [3, 1]


def test_accumulated_parts_learn_what_the_whole_batch_does() -> None:
    data = Rows((3, 9, 6, 4), hidden=1)
    learned = []
    for accumulate in (1, 2):
        model = intarsia.adapt(llama(), intarsia.Lora(rank=2), head=None)
        intarsia.fit(model, data, epochs=2, batch_size=4, accumulate=accumulate, lr=1e-2)
        learned.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    for first, second in zip(*learned, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_fit_trains_a_language_model_and_says_perplexity(tmp_path: Path) -> None:
    model = intarsia.adapt(llama(), intarsia.Lora(rank=4), head=None)
    data = Rows((8,) * 128)
    before = evaluate(model, data)
    run = intarsia.fit(
        model, data, test=data, val=data, epochs=3, batch_size=8, lr=5e-2, out=tmp_path / "run"
    )
    assert isinstance(before, TokenMetrics) and isinstance(run.test, TokenMetrics)
    assert run.test.loss < before.loss
    assert set(run.record["results"]["test"]) == set(before.scores())
    tensors = load_file(tmp_path / "run" / "predictions.safetensors")
    tokens = tensors["tokens"].sum()
    assert float(tensors["loss"].sum() / tokens) == pytest.approx(run.test.loss)
    assert float(tensors["hits"].sum() / tokens) == pytest.approx(run.test.accuracy)


class Byte(Router):
    """Notes which task ids it was told."""

    def __init__(self) -> None:
        super().__init__(2)
        self.told: list[list[int]] = []

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        assert self.context.task_ids is not None
        self.told.append(self.context.task_ids.tolist())
        index = torch.zeros(len(rows), 1, dtype=torch.int64)
        return Routing.from_topk(
            index, torch.ones(len(rows), 1), 2, {"half": rows.mean() * 0 + 0.5}
        )


class Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = Byte(), nn.Linear(4, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        self.router(pictures)
        return self.head(pictures)


def test_task_ids_of_a_batch_reach_the_routers_and_their_losses_are_added() -> None:
    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"pictures": torch.eye(4)[i], "labels": i % 3, "task_ids": i}

    model = Told()
    with pytest.warns(CollapseWarning, match="balance"):
        run = intarsia.fit(model, Pictures(), epochs=1, batch_size=2, lr=0.0)
    assert sorted(sum(model.router.told[-2:], [])) == [0, 1, 2, 3]
    lines = [line for line in run.history if line["split"] == "train"]
    assert all(line["auxiliary"] == 0.5 for line in lines)
    # the last step of an epoch says how the load was shared out
    assert lines[-1]["load_entropy"] == 0 and run.record["results"]["routing"] == {"router": [1, 0]}
    loss = next_to(model)
    assert lines[-1]["loss"] == pytest.approx(loss + 0.5, abs=1.0)


def next_to(model: Told) -> float:
    with torch.no_grad(), task_ids(model, torch.arange(4)):
        logits = model(torch.eye(4))
    return float(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))


def test_the_trainer_takes_the_losses_of_routers(tmp_path: Path) -> None:
    class Aux(LlamaForCausalLM):
        def __init__(self, config: LlamaConfig) -> None:
            super().__init__(config)
            self.router = Byte()
            self.router.context.task_ids = torch.tensor([0])

        def forward(self, input_ids: Tensor, **rest: Any) -> Any:
            self.router(input_ids.float()[..., None])
            return super().forward(input_ids, **rest)

    torch.manual_seed(0)
    model = Aux(llama().config)
    rows = Rows((6,) * 8)
    losses: list[float] = []
    loss_of_trainer = trainer_loss(model)

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        losses.append(float((loss := loss_of_trainer(*args, **kwargs)).detach()))
        return loss

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2,
        max_steps=1, learning_rate=0.0, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, label_names=["labels"],
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, compute_loss_func=noted).train()
    plain = evaluate(model, rows)
    assert isinstance(plain, TokenMetrics)
    with refused(ConfigError, what="labels of a batch"):
        loss_of_trainer({"logits": torch.zeros(1, 2)}, None)
    # two parts of one step, each with its share of both losses
    assert sum(losses) == pytest.approx(plain.loss + 0.5, rel=1e-4)


def test_texts_without_anything_to_predict_are_refused() -> None:
    with refused(DataError, what="evaluation texts"):
        evaluate(llama(), Rows((3, 3), hidden=3))
    row = [(torch.zeros(4), torch.zeros(2, dtype=torch.int64))]
    with refused(DataError, what="the model's output", got="shape (1, 3) for labels (1, 2)"):
        intarsia.fit(nn.Linear(4, 3), row, task=Tokens(), epochs=1)  # pyright: ignore
    with refused(DataError, what="the model's output", got="shape (1, 3) for labels (1, 2)"):
        intarsia.fit(nn.Linear(4, 3), row, epochs=1)  # pyright: ignore


def test_what_stands_beside_a_token_is_padded_along_the_tokens() -> None:
    class Boxes(Rows):
        def __getitem__(self, i: int) -> dict[str, Any]:
            row = super().__getitem__(i)
            return row | {"boxes": torch.ones(len(row["input_ids"]), 4)}

    x, _ = Reader(Boxes((3, 5)), seed=0)[(0, (0, 1))]
    assert not isinstance(x, Tensor) and x["boxes"].shape == (2, 5, 4)
    assert x["boxes"][0].sum(1).tolist() == [4, 4, 4, 0, 0]


def test_a_part_without_a_labelled_token_leaves_the_accuracy_a_number() -> None:
    class Half(Rows):
        def __getitem__(self, i: int) -> dict[str, Any]:
            row = super().__getitem__(i)
            return row if i else row | {"labels": torch.full_like(row["labels"], -100)}

    data = Half((4, 4))
    run = intarsia.fit(llama(), data, epochs=1, batch_size=2, accumulate=2, lr=0.0)
    first, metrics = run.history[0], evaluate(llama(), data)
    assert isinstance(metrics, TokenMetrics)
    assert first["accuracy"] == pytest.approx(metrics.accuracy)
    assert first["loss"] == pytest.approx(metrics.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("mean", "counts", "shares"),
    [(0.5, [1], [2.0]), (0.0, [0, 0], [0.0, 0.0]), (4.0, [3, 1], [0.75, 0.25])],
)
def test_shares_are_of_the_mean_over_processes(
    mean: float, counts: list[int], shares: list[float]
) -> None:
    class Ranks:
        num_processes, device = 2, torch.device("cpu")

        def reduce(self, own: Tensor, how: str) -> Tensor:
            return torch.full_like(own, mean)

    learner: Any = object.__new__(Learner)
    learner.accelerator, learner.meter = Ranks(), Meter()
    assert learner._shares(counts) == shares


def test_padding_counts_in_no_deep_alignment() -> None:
    model = llama()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    x, y = Reader(Rows((3, 9)), seed=0)[(0, (0, 1))]
    outputs: list[Tensor] = []
    hook = model.model.layers[0].register_forward_hook(lambda _m, _x, out: outputs.append(out))
    result = two_pass(model, x, Tokens().loss_of((x, y)), deep=1.0)
    hook.remove()
    first, second = outputs[0].chunk(2)
    real = torch.tensor([[1] * 3 + [0] * 6, [1] * 9]).bool()
    assert not torch.equal(first[~real], second[~real])
    want = (first - second)[real].square().mean()
    torch.testing.assert_close(result.parts["deep"], want, rtol=1e-5, atol=0)
