"""Experiments on texts in their smallest form, and the last blocks that they train."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from intarsia.folders.verbs import adapt
from intarsia_lab.experiments import lt_sft, mixtures, poly
from intarsia_lab.kit import ArmRate
from intarsia_lab.materials import last_blocks, short_texts
from intarsia_lab.materials.last_blocks import IGNORED, LanguageRows, padded, sentence_tail
from intarsia_lab.materials.short_texts import QuestionAnswer, definition

from ...toys import quiet

SENTENCE = "a red dog runs far from big old grey cats and sees six small green birds fly"
WORDS = SENTENCE.split()
SIZES = {"num_attention_heads": 2, "vocab_size": 40, "max_position_embeddings": 32}


def tokens(text: str, **_: Any) -> dict[str, list[int]]:
    """A token for each word and each line's end."""
    return {
        "input_ids": [zlib.crc32(w.encode()) % 39 + 1 for w in text.replace("\n", " . ").split()]
    }


def batch(texts: list[str], max_length: int, **_: Any) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(tokens(text)["input_ids"][:max_length]) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def asked(seed: int, count: int, *, prompt: bool = True) -> list[QuestionAnswer]:
    draws = np.random.default_rng(seed)

    def some(least: int) -> str:
        return " ".join(draws.choice(WORDS, int(draws.integers(least, 7))))

    return [QuestionAnswer(some(1) if prompt else "", some(2)) for _ in range(count)]


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
    llama = LlamaForCausalLM(LlamaConfig(**shape, **SIZES, num_key_value_heads=1)).eval()
    bert = BertModel(BertConfig(**shape, **SIZES)).eval()
    monkeypatch.setattr(last_blocks, "decoder", lambda: (llama, tokens))
    monkeypatch.setattr(last_blocks, "encoder", lambda: (bert, batch))
    yield
    lt_sft.bench.cache_clear()
    mixtures.bench.cache_clear()


def test_last_blocks_on_states_are_the_whole_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"asked": asked(0, 5), "texts": asked(1, 3, prompt=False)}
    language_rows = LanguageRows(sets)
    model, _ = last_blocks.decoder()
    for name, questions in sets.items():
        x, labels = padded(language_rows.rows[name])
        logits = language_rows.model()(**x).logits
        for i, question in enumerate(questions):
            text = f"{question.prompt}\n{question.answer}" if question.prompt else question.answer
            ids = torch.tensor(tokens(text)["input_ids"])
            want = model(input_ids=ids[None]).logits[0][:, language_rows.kept]
            assert torch.allclose(logits[i, : len(ids)], want, atol=1e-5)
            row = labels[i, : len(ids)]
            answer = row != IGNORED
            indices = torch.tensor(language_rows.kept)[row[answer]]
            assert indices.tolist() == ids[answer].tolist()
            count = len(question.answer.split()) - (not question.prompt)
            assert answer.tolist() == [False] * (len(ids) - count) + [True] * count
    assert len(model.model.layers) == 3  # cut, and put together again
    monkeypatch.setattr(last_blocks, "_prefix_states", None)  # read from its file
    again = LanguageRows(sets).rows["asked"][0]["inputs_embeds"]
    assert torch.equal(again, language_rows.rows["asked"][0]["inputs_embeds"])


def test_last_blocks_on_states_are_the_whole_encoder() -> None:
    texts = ["a red dog", "six small green birds fly far", "cats"]
    states = last_blocks.encoder_states(texts, 5)
    rows = [{"inputs_embeds": x, "labels": torch.tensor(0)} for x in states]
    batch: Any = padded(rows)[0]
    encoder, _ = last_blocks.encoder()
    for got, text in zip(sentence_tail(2).features(**batch), texts, strict=True):
        ids = torch.tensor([tokens(text)["input_ids"][:5]])
        want = encoder(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(got, want, atol=1e-5)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four kinds of twelve glosses, one of them held out, one epoch."""
    glosses = {w: [f"{w} {a.prompt}" for a in asked(i, 12)] for i, w in enumerate(WORDS[:4])}
    monkeypatch.setattr(poly, "by_kind", lambda: glosses)
    for name in ("HELD", "EPOCHS"):
        monkeypatch.setattr(poly, name, 1)
    for name, value in (("EACH", 8), ("TEST", 8)):
        monkeypatch.setattr(poly, name, value)
    poly.task_kinds.cache_clear()
    yield
    poly.task_kinds.cache_clear()


@pytest.mark.usefixtures("kinds")
def test_every_seed_holds_out_another_kind_and_tests_other_glosses() -> None:
    seeds = [poly.TaskKinds(seed) for seed in range(4)]
    assert len({draw.held[0] for draw in seeds}) == 4
    assert all(set(draw.known).isdisjoint(draw.held) for draw in seeds)
    parts = [poly.portion(list(range(20)), part) for part in ("test", "val", "train")]  # pyright: ignore
    assert sorted(i for part in parts for i in part) == list(range(20))  # pyright: ignore
    rows = seeds[0].mixed(seeds[0].train)
    base = seeds[0].base
    batch: Any = padded(rows)[0]
    batch.pop("task_ids")
    x = base.features(**batch).double()
    y = torch.stack([row["labels"] for row in rows]).double() * 2 - 1
    # the gradient of the ridge loss is zero at the head
    w = base.head.weight[1].double()
    rest = x @ w + base.head.bias[1].double() - y
    gradient = (x - x.mean(0)).T @ rest + poly.RIDGE * w
    assert gradient.abs().max() < 1e-3 and abs(rest.mean()) < 1e-5


@pytest.mark.usefixtures("kinds")
def test_poly_is_held_against_arms_that_are_no_smaller() -> None:
    for over in (poly.SHARED, poly.POLY):
        result = poly.on_known_tasks((0,), quiet, over=over)
        sizes = {row["arm"]: row["trained parameters"] for row in result.table}
        # it trains the two arms that it compares, and no others
        assert list(sizes) == [poly.BARE, over, poly.MHR] and result.value >= 0
        assert sizes[poly.BARE] == 0 < min(sizes[over], sizes[poly.MHR])


def test_arms_of_poly_at_minilms_size() -> None:
    """MHR has no more parameters than what it is held against, its logits counted."""
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 2}
    bert = BertModel(BertConfig(**shape, num_attention_heads=12, vocab_size=8))
    base = last_blocks.SentenceTail(bert.encoder.layer, 2)
    sizes = {}
    for name, method in poly.methods(18).items():
        model = poly.adapted(base, method, 0)
        sizes[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes[poly.MHR] <= min(sizes.values()) and max(sizes.values()) < 1.2 * sizes[poly.MHR]


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of each set, one epoch."""
    for i, name in enumerate(("kinds", "emoji", "old_kinds", "defined", "sentences")):
        monkeypatch.setattr(short_texts, name, lambda i=i: asked(i, 12))
    monkeypatch.setattr(short_texts, "old_texts", lambda: asked(9, 12, prompt=False))
    pairs = zip(mixtures.DOMAINS, ("kinds", "emoji", "defined", "sentences"), strict=True)
    monkeypatch.setattr(mixtures, "DOMAINS", {d: getattr(short_texts, n) for d, n in pairs})
    for module in (lt_sft, mixtures):
        for name, value in (("TRAIN", 4), ("TEST", 3), ("EPOCHS", 1), ("BATCH", 4)):
            monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("sets")
def test_places_that_drift_are_held_against_as_many_steps() -> None:
    result = lt_sft.of_places((0,), quiet, over=(lt_sft.TWICE,))
    # it trains the arms that it compares, and full training
    assert [row["arm"] for row in result.table] == [lt_sft.FULL, lt_sft.OURS, lt_sft.TWICE]
    parts = [lt_sft.rows("kinds", part) for part in ("test", "val", "train")]
    assert [len(part) for part in parts] == [3, 3, 4]
    assert len(lt_sft.rows(lt_sft.DOMAIN, "train")) == 4


def test_worse_task_and_better_baseline_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {lt_sft.OURS: 0.2, lt_sft.LORA: 0.4, lt_sft.ADAPTER: 0.25}

    def cell(arm: str, lr: float, task: str, seed: int, report: Any) -> float:
        return wrong.get(arm, 0.5) * (2 if task == "emoji" and arm == lt_sft.OURS else 1)

    monkeypatch.setattr(lt_sft, "cell", cell)
    monkeypatch.setattr(lt_sft, "rates", lambda names, _: [ArmRate(n, 1e-3, 1, ()) for n in names])
    result = lt_sft.of_places((0, 1), quiet, over=(lt_sft.LORA, lt_sft.ADAPTER))
    assert result.value == pytest.approx(0.4 / 0.25)
    assert lt_sft.of_places((0,), quiet, over=(lt_sft.TWICE,)).value == pytest.approx(0.4 / 0.5)


@pytest.fixture(scope="module")
def blocks() -> Any:
    """Blocks of SmolLM2's shape with random weights."""
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(**shape, num_key_value_heads=3, num_hidden_layers=2, vocab_size=8)
        )
    return model.to_empty(device="cpu")


def test_arms_of_lt_sft_have_as_many_parameters_at_smollm2s_size(blocks: Any) -> None:
    places = round(
        lt_sft.DENSITY
        * sum(
            p.numel() for n, p in blocks.named_parameters() if ".layers." in n and "norm" not in n
        )
    )
    for arm in (lt_sft.LORA, lt_sft.ADAPTER):
        method: Any = lt_sft.ARMS[arm].method
        model = adapt(blocks, method, head=None)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        model.unload()
        assert places <= count < 1.05 * places
    assert {lt_sft.ARMS[a].times for a in (lt_sft.TWICE, lt_sft.LORA, lt_sft.ADAPTER)} == {2}


@pytest.mark.usefixtures("sets")
@pytest.mark.thorough
def test_mixtures_are_held_against_loras_of_their_parameters() -> None:
    (headline,) = (study for study in mixtures.STUDIES if study.key == "mixlora")
    result = headline.measure((0,), quiet)
    # the headline trains the two arms that it compares, and no others
    assert [row["arm"] for row in result.table] == list(mixtures.WITH_MORE) and result.value > 0
    assert [rate.arm for rate in result.rates] == list(mixtures.WITH_MORE)
    shares = {row["arm"]: row["largest share"] for row in result.table}
    assert shares[mixtures.EQUAL] == "" and float(shares[mixtures.MIX]) >= 1 / 8

    def loras(name: str) -> int:
        model = adapt(mixtures.bench().model(), mixtures.ARMS[name].method, head=None)
        named = model.named_parameters()
        return sum(p.numel() for n, p in named if p.requires_grad and "router" not in n)

    assert loras(mixtures.MIX) == loras(mixtures.EQUAL)
    assert mixtures.ARMS[mixtures.MOLE].method.experts >= len(mixtures.DOMAINS)  # pyright: ignore


@pytest.mark.parametrize(("mixed", "want"), [(2.2, 0.5), (2.02, 0.0), (1.9, 0.0)])
def test_no_share_of_a_conflict_that_is_not_there(
    mixed: float, want: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = {mixtures.SINGLE: 2.0, mixtures.LORA: mixed, mixtures.MOLE: (2.0 * mixed) ** 0.5}

    def cell(name: str, lr: float, seed: int, report: Any) -> dict[str, Any]:
        return {"losses": {d: (loss.get(name, 2.0), 0.5) for d in mixtures.DOMAINS}, "share": 0.0}

    monkeypatch.setattr(mixtures, "cell", cell)
    monkeypatch.setattr(
        mixtures, "rates", lambda names, _: [ArmRate(arm, 1e-3, 1, ()) for arm in names]
    )
    assert mixtures.closed((0, 1), quiet).value == pytest.approx(want)


def test_definitions_are_read_from_entries() -> None:
    entry = 'Vo*lup"tu*a*ry\\ (?; 135), n.; pl. {Voluptuaries}. [L. voluptas pleasure.] A person'
    assert definition(entry) == ""  # no " n. "
    entry = 'Te*leg"ra*pher\\, n. One who sends {telegraphic} messages; an operator.'
    assert definition(entry) == "One who sends telegraphic messages"
    numbered = "Wold\\, n. [See {Weld}.] 1. (Bot.) An herb related to mignonette. 2. Else."
    assert definition(numbered) == "An herb related to mignonette"
    assert definition("Spoil\\, v. t. [imp.] To plunder and to strip by violence.") == ""
    assert definition("x n. too short") == "" == definition("")
