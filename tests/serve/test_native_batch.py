"""The server's batch of native steps: answers of the torch path, whoever comes and goes."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia.decode.native_decoder import NativeText
from intarsia.folders.opened import save_language_model
from intarsia.formats import Bitmask, BlockInt
from intarsia.kernels import native
from intarsia.serve.models import ServedModel, open_models
from intarsia.serve.native_batch import PIECE, NativeBatch
from intarsia.serve.sampling import Sampling
from intarsia.serve.settings import Limits
from intarsia.serve.stock_batch import StockBatch

from .conftest import Running, until

pytestmark = [
    pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def dense(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=48, intermediate_size=67, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=400,
        bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.2, **settings,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def written(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a stock model, of packed ones, and of an adapter."""
    root = tmp_path_factory.mktemp("native")
    tokenizer = AutoTokenizer.from_pretrained(folders["mix"])
    dense().save_pretrained(root / "dense")
    tokenizer.save_pretrained(root / "dense")
    for name, form in (("int4", BlockInt(4)), ("int8", BlockInt(8)), ("bitmask", Bitmask("fp32"))):
        packed = intarsia.compress(dense(), form, force=True)
        save_language_model(packed, root / name, tokenizer=tokenizer)
    intarsia.save(intarsia.adapt(dense(), intarsia.Lora(rank=2)), root / "lora")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def opened(written: dict[str, Path]) -> dict[str, ServedModel]:
    sources = {name: str(path) for name, path in written.items() if name != "lora"}
    return open_models(sources)


def by_torch(served: ServedModel, prompt: str, tokens: int, **options: Any) -> str:
    """The text of the model's own layers."""
    ids = served.tokenizer(prompt, return_tensors="pt")["input_ids"]
    settings = {"max_new_tokens": tokens, "do_sample": False, **options}
    mask = torch.ones_like(ids)
    generate = type(served.model).generate
    with native.using("off"):
        row = generate(served.model, ids, attention_mask=mask, **settings)[0, ids.shape[1] :]
    return served.tokenizer.decode(row, skip_special_tokens=True)


@pytest.mark.parametrize("slots", [1, 3, 5])
def test_requests_that_join_and_leave_have_the_torch_path_s_texts(
    opened: dict[str, ServedModel], slots: int
) -> None:
    rng = random.Random(slots)
    requests = [
        (name, " ".join(rng.choices(WORDS, k=rng.randint(1, 20))), rng.randint(1, 17))
        for name in ("dense", "bitmask")
        for _ in range(6)
    ]
    requests.append(("dense", "x" * (PIECE + 30), 5))  # read in two pieces, while others go on
    server = Running(opened, at_once=slots, queue=64, tokens=64)
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda a: server.say(a[1], a[0], max_tokens=a[2]), requests))
        for (name, prompt, count), (status, answer) in zip(requests, answers, strict=True):
            assert status == 200, answer
            assert answer["choices"][0]["text"] == by_torch(opened[name], prompt, count)
        batch: Any = server.app.generations.of["dense"].batch
        assert isinstance(batch, NativeBatch) and batch.slots == slots
        assert sorted(batch.free) == list(range(slots)) and not batch.running
    finally:
        server.end()
    assert not batch.thread.is_alive()


def test_logits_of_slots_are_those_of_the_forward(opened: dict[str, ServedModel]) -> None:
    model = opened["dense"].model
    rng, lengths = random.Random(0), {0: 3, 2: 37, 4: 18}
    ids = {slot: [rng.randrange(1, 257) for _ in range(60)] for slot in lengths}
    with torch.no_grad():
        want = {slot: model(torch.tensor([row])).logits[0] for slot, row in ids.items()}
    text = NativeText(model, slots=5, length=60)
    for slot, length in lengths.items():
        text.prefill(slot, ids[slot][:length])
    for gone in (None, 2, 0):  # slots leave
        lengths.pop(gone, None)  # pyright: ignore[reportArgumentType, reportCallIssue]
        for _ in range(5):
            logits = text.step([ids[s][position] for s, position in lengths.items()], list(lengths))
            for row, (slot, position) in zip(logits, lengths.items(), strict=True):
                torch.testing.assert_close(row, want[slot][position], atol=1e-5, rtol=1e-5)
            lengths = {slot: position + 1 for slot, position in lengths.items()}


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_an_answer_does_not_depend_on_the_others(opened: dict[str, ServedModel], name: str) -> None:
    server = Running(opened, at_once=5, queue=64, tokens=64)
    try:
        prompts = [" ".join(WORDS[:n]) for n in (1, 3, 9, 2, 6, 4)]
        alone = [server.say(p, name)[1]["choices"][0]["text"] for p in prompts]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda p: server.say(p, name), prompts))
        assert [answer["choices"][0]["text"] for _, answer in together] == alone
    finally:
        server.end()


def test_draws_biases_penalties_and_probabilities_are_those_of_one_by_one(
    opened: dict[str, ServedModel],
) -> None:
    requests = [
        {"temperature": 1.4, "seed": 5},
        {"temperature": 0.9, "top_p": 0.7, "seed": 6, "n": 2},
        {"frequency_penalty": 1.5, "presence_penalty": 0.5},
        {"logit_bias": {"70": 4.5, "71": -9}},
        {"logprobs": 3, "max_tokens": 5},
    ]
    served = {"dense": opened["dense"]}
    results: list[list[Any]] = []
    for batching in ("continuous", "none"):
        server = Running(served, at_once=4, tokens=64, batching=batching)
        try:
            with ThreadPoolExecutor(len(requests)) as pool:
                futures = [
                    pool.submit(server.say, "one", "dense", **request) for request in requests
                ]
                answers = [future.result() for future in futures]
            assert all(status == 200 for status, _ in answers)
            results.append([futures["choices"] for _, futures in answers])
            batch = server.app.generations.of["dense"].batch
            assert isinstance(batch, NativeBatch) == (batching == "continuous")
        finally:
            server.end()
    assert results[0][:4] == results[1][:4]
    texts = [[choice["text"] for choice in choices] for choices in results[0]]
    assert len({text for choice in texts for text in choice}) == 6
    got, want = (choices[4][0]["logprobs"] for choices in results)
    assert got["tokens"] == want["tokens"]
    assert got["token_logprobs"] == pytest.approx(want["token_logprobs"], abs=1e-4)
    torch.manual_seed(5)
    drawn = by_torch(served["dense"], "one", 8, do_sample=True, temperature=1.4)
    assert texts[0] == [drawn]


def test_a_client_that_leaves_frees_its_slot_and_others_go_on(
    opened: dict[str, ServedModel],
) -> None:
    server = Running(opened, at_once=2, tokens=300, seconds=1.0, queue=8)
    try:
        server.say("one", "dense", max_tokens=1)
        batch: Any = server.app.generations.of["dense"].batch
        step = batch._draw_tokens

        def slow(text: NativeText) -> None:
            time.sleep(0.02)
            step(text)

        batch._draw_tokens = slow
        assert server.say("one", "dense", max_tokens=200)[0] == 504
        until(lambda: not batch.running)
        status, answer = server.say("two", "dense", max_tokens=4)
        assert answer["choices"][0]["text"] == by_torch(opened["dense"], "two", 4)
    finally:
        server.end()


def test_a_batch_that_dies_says_so(
    opened: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Running(opened, at_once=2, tokens=64)
    try:
        assert server.say("one", "dense")[0] == 200
        monkeypatch.setattr(NativeText, "step", lambda *_: 1 / 0)
        assert server.say("one", "dense")[0] == 503
        assert server.ask("/health")[0] == 503 and server.say("one", "dense")[0] == 503
    finally:
        server.end()


def test_an_adapter_keeps_the_torch_path_and_each_model_says_its_own(
    written: dict[str, Path],
) -> None:
    notes: list[str] = []
    adapters = {"lora": written["lora"]}
    opened = open_models({"dense": str(written["dense"])}, adapters, progress=notes.append)
    assert "dense: native steps, one call a token" in notes
    assert any(note.startswith("lora: transformers' layers: ") for note in notes)
    server = Running(opened, tokens=64)
    try:
        for name in opened:
            status, answer = server.say("one", name)
            assert status == 200
            assert answer["choices"][0]["text"] == by_torch(opened["dense"], "one", 8)
        assert isinstance(server.app.generations.of["lora"].batch, StockBatch)
        assert isinstance(server.app.generations.of["dense"].batch, NativeBatch)
    finally:
        server.end()


def test_a_short_prompt_is_read_before_the_rest_of_a_long_one(
    opened: dict[str, ServedModel],
) -> None:
    """Both are read to their end, the long one by a piece between two tokens of the short one."""
    heard: list[str] = []
    batch = NativeBatch(opened["int4"], Limits(at_once=2))
    config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=[])

    async def ask(name: str, ids: list[int]) -> None:
        async for _ in batch.tokens(ids, Sampling(config)):
            heard.append(name)

    async def both() -> None:
        # the batch's thread waits until both are in its queue
        with batch.changed:
            tasks = [asyncio.ensure_future(ask("long", [5] * 300))]
            tasks.append(asyncio.ensure_future(ask("short", [7] * 9)))
            while len(batch.waiting) < 2:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    asyncio.run(both())
    batch.stop()
    assert sorted(heard) == ["long"] * 6 + ["short"] * 6
    assert heard[:4] == ["short"] * 4  # 300 tokens are five pieces
