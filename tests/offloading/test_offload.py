"""Experts on disk: the same bits at any number of slots, and what happens to damaged files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralForCausalLM

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError, TargetError, TrainingError
from intarsia.core.files import write_json
from intarsia.core.sealing import sealed
from intarsia.offloading.resident import slot_count, slots_of
from intarsia.offloading.slots import Slots
from intarsia.offloading.store import INDEX, ExpertStore
from intarsia.placement.cache import Cache
from intarsia.placement.expertflow import PredictedNextUse, Predictive, TokenTable
from intarsia.placement.policies import Expected, Lfu, Lru

from ..hosts.test_tracing import IDS, MODELS, mixtral
from ..refusals import refused

STOCK = [name for name in MODELS if name != "ours"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of save_pretrained of each architecture."""
    folders: dict[str, Path] = {}
    for name in STOCK:
        folders[name] = tmp_path_factory.mktemp("models") / name
        model: Any = MODELS[name]()
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def store(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return intarsia.offloading.pack_experts(
        saved["mixtral"], tmp_path_factory.mktemp("stores") / "s"
    )


def resident(name: str) -> Any:
    model: Any = MODELS[name]()
    model.set_experts_implementation("eager")
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", STOCK)
def test_outputs_are_the_same_bits(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    dense, store = resident(name), tmp_path / "s"
    want = dense(IDS).logits
    words = dense.generate(IDS[:, :4], max_new_tokens=6, do_sample=False)
    for slots, policy in ((2, None), (5, Lru()), (0.5, Lfu()), (16, Expected())):
        model: Any = intarsia.offload(saved[name], slots=slots, policy=policy, store=store)
        assert torch.equal(model(IDS).logits, want)
        assert torch.equal(model.generate(IDS[:, :4], max_new_tokens=6, do_sample=False), words)
        use = intarsia.offloading.residency(model)
        assert use.bytes == use.loads * ExpertStore(store).bytes and use.loads
        assert not any(".experts." in name for name, _ in model.named_parameters())
    assert use.loads <= 16  # pyright: ignore


def test_a_store_is_safetensors_that_others_read(store: Path) -> None:
    model: Any = mixtral()
    entries = json.loads((store / INDEX).read_text())["layers"]
    for layer, entry in zip(model.model.layers, entries, strict=True):
        with safe_open(str(store / entry["file"]), "pt") as file:
            for name in ("gate_up_proj", "down_proj"):
                for expert in range(8):
                    want = getattr(layer.mlp.experts, name)[expert]
                    assert torch.equal(file.get_tensor(f"{expert}.{name}"), want)


def test_two_models_have_their_own_slots(store: Path) -> None:
    a, b = (intarsia.offload(store, slots=n) for n in (2, 16))
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(a(IDS).logits, b(IDS).logits)
    assert intarsia.offloading.residency(a).loads > intarsia.offloading.residency(b).loads == 16


@torch.no_grad()
def test_a_wrong_predictor_changes_no_bit(store: Path) -> None:
    dense = resident("mixtral")
    table = TokenTable.of(intarsia.trace(dense, [IDS]))
    wrong = TokenTable(1 - table.share)
    rates: dict[str, float] = {}
    for name, predictor in (("right", table), ("wrong", wrong), ("none", None)):
        model: Any = intarsia.offload(store, slots=6, policy=Predictive(), predictor=predictor)
        for ids in (IDS, IDS[:, :3], IDS[:1], IDS[:, 2:]):
            assert torch.equal(model(input_ids=ids).logits, dense(ids).logits)
        words = model.generate(IDS[:1, :4], max_new_tokens=6, do_sample=False)
        assert torch.equal(words, dense.generate(IDS[:1, :4], max_new_tokens=6, do_sample=False))
        embedded = model.get_input_embeddings()(IDS)
        assert torch.equal(model(inputs_embeds=embedded).logits, dense(IDS).logits)
        rates[name] = intarsia.offloading.residency(model).rate
    assert rates["right"] >= rates["wrong"]
    alone: Any = intarsia.offload(store, slots=6, predictor=table)  # and no policy
    assert isinstance(slots_of(alone).cache.policy, PredictedNextUse)
    with refused(ConfigError, what="predictor", got="one with Lru()"):  # it would do nothing
        intarsia.offload(store, slots=6, policy=Lru(), predictor=table)
    with refused(ConfigError, what="predictor", got="chances (5, 8)"):
        zeros = TokenTable(torch.zeros(3, 5, 8))
        intarsia.offload(store, slots=6, policy=Predictive(), predictor=zeros)


@torch.no_grad()
def test_what_is_foreseen_is_read_before_its_layer_asks(store: Path) -> None:
    """And gives way where it was wrong; a read ahead that fails is told to nobody in vain."""
    dense = resident("mixtral")
    right = TokenTable.of(intarsia.trace(dense, [IDS]), smoothing=0)
    for share in (right.share, 1 - right.share):
        model: Any = intarsia.offload(
            store, slots=8, policy=Predictive(), predictor=TokenTable(share)
        )
        slots = slots_of(model)
        read, failed = slots.store.read, list[tuple[int, int]]()

        def once(layer: int, expert: int, into: Any, read: Any = read, failed: Any = failed) -> int:
            if layer == 1 and (layer, expert) not in failed:
                failed.append((layer, expert))
                raise OSError("gone")
            return read(layer, expert, into)

        for ids in (IDS[:1, :3], IDS[1:2, :3], IDS[2:, 3:6]):
            assert torch.equal(model(ids).logits, dense(ids).logits)
        use = intarsia.offloading.residency(model)
        assert use.ahead > 0 and use.hits + use.loads == use.asks
        assert len(slots.cache.pinned) == len(slots.guesses) <= 3
        slots.store.read = once  # type: ignore[method-assign]
        for ids in (IDS[:1, :3], IDS[1:2, :3]) * 12:
            try:
                assert torch.equal(model(ids).logits, dense(ids).logits)
            except OSError as error:
                assert str(error) == "gone"  # asked for, and not to be had
        slots.store.read = read  # type: ignore[method-assign]
        assert torch.equal(model(IDS[:2]).logits, dense(IDS[:2]).logits)


@torch.no_grad()
def test_the_next_experts_are_read_while_one_is_computed(store: Path) -> None:
    want = resident("mixtral")(IDS).logits
    for count in (2, 3, 16):
        model: Any = intarsia.offload(store, slots=count)
        slots, log = slots_of(model), list[tuple[str, int]]()
        read = slots.store.read

        def logged(layer: int, expert: int, into: Any, read: Any = read, log: Any = log) -> int:
            log.append((threading.current_thread().name, expert))
            return read(layer, expert, into)

        slots.store.read = logged  # type: ignore[method-assign]
        slots.ask(0, [1, 3, 5, 6])
        slots.expert(0, 1)
        slots.thread.submit(int).result()  # what was begun is over
        assert [expert for _, expert in log] == [1, 3, 5][: min(count, 3)]
        assert all(name.startswith("experts") for name, _ in log)
        slots.expert(0, 5)  # one is left out: what was read ahead for it is let go
        slots.let_go()
        assert not slots.cache.pinned and not slots.taken and slots.in_use is None
        assert torch.equal(model(IDS).logits, want)
        assert not slots.cache.pinned and len(slots.cache.at) <= count


@torch.no_grad()
def test_an_error_ahead_leaves_nothing_behind(store: Path) -> None:
    model: Any = intarsia.offload(store, slots=4)
    slots = slots_of(model)
    read = slots.store.read

    def failing(layer: int, expert: int, into: Any) -> int:
        if expert == 5:
            raise OSError("gone")
        return read(layer, expert, into)

    slots.store.read = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        model(IDS)  # asks for all
    slots.ask(0, [1, 5])
    slots.expert(0, 1)
    slots.let_go()  # 5 was read ahead, in vain
    assert not slots.cache.pinned and (0, 5) not in slots.cache.at
    slots.store.read = read  # type: ignore[method-assign]
    assert torch.equal(model(IDS).logits, resident("mixtral")(IDS).logits)


def test_a_cache_that_memory_has_no_room_for_says_how_many_fit(store: Path) -> None:
    opened = ExpertStore(store)
    opened.bytes = 1 << 55
    with refused(ConfigError, what="slots", got="no room for 8 experts of 36028797018963968 bytes"):
        Slots(opened, Cache(8, Expected().build(2, 8)))
    opened.close()


def damaged(store: Path, tmp_path: Path, position: int = 4096 + 5) -> Path:
    """A copy of which one bit of the first layer is another."""
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    file = copy / "layer-0000.safetensors"
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)
    return copy


def test_a_flipped_bit_is_found_at_first_use(store: Path, tmp_path: Path) -> None:
    copy = damaged(store, tmp_path)
    model: Any = intarsia.offload(copy, slots=4)
    with torch.no_grad(), refused(CheckpointError, got="bytes that changed"):
        model(IDS)
    with torch.no_grad(), refused(CheckpointError, got="bytes that changed"):
        model(IDS)  # what was read is in no slot
    trusting: Any = intarsia.offload(copy, slots=4, check="never")
    with torch.no_grad():
        trusting(IDS)


def test_a_short_missing_or_foreign_file_is_refused(store: Path, tmp_path: Path) -> None:
    copy = damaged(store, tmp_path)
    file = copy / "layer-0001.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    model: Any = intarsia.offload(copy, slots=4, check="never")
    with torch.no_grad(), refused(CheckpointError, got="2972 bytes"):
        model(IDS)
    file.unlink()
    with pytest.raises(CheckpointError, match="intarsia offload"):
        intarsia.offload(copy, slots=4)
    file.write_bytes(content)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))
    with refused(CheckpointError, got="bytes that changed after they were written"):
        intarsia.offload(copy, slots=4)
    for text in ("{", "[]", '{"layers": [{}]}'):
        (copy / INDEX).write_text(text)
        with pytest.raises(CheckpointError):
            intarsia.offload(copy, slots=4)


@pytest.mark.parametrize("slots", [0, 1, -3, 0.01, "1KB", "8XB", "1.2.3GB", "", float("nan")])
def test_too_few_slots_are_refused(slots: Any, store: Path) -> None:
    with refused(ConfigError, what="slots", want="2 ... 16 experts of 3072 bytes each"):
        intarsia.offload(store, slots=slots)


def test_slots_are_counted_in_bytes_and_capped(store: Path) -> None:
    opened = ExpertStore(store)
    assert slot_count("10KB", opened) == 3 and slot_count("1GiB", opened) == 16
    assert slot_count(0.25, opened) == 4
    with pytest.warns(UserWarning, match="more than the 16"):
        assert slot_count(99, opened) == 16
    opened.close()


def test_a_store_that_is_whole_is_packed_again_and_no_other_one_is_lost(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    """A command that was killed after its last rename is repeated."""
    store = intarsia.offloading.pack_experts(saved["mixtral"], tmp_path / "s")
    before = (store / "experts.json").read_bytes()
    assert intarsia.offloading.pack_experts(saved["mixtral"], store) == store
    assert (store / "experts.json").read_bytes() == before
    content = json.loads(before)
    assert content["format"] == 1
    changed = shutil.copytree(saved["mixtral"], tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    with refused(ConfigError, got="another result"):
        intarsia.offloading.pack_experts(changed, store)
    assert (store / "experts.json").read_bytes() == before
    for number in (True, 1.0, 2):
        record = {key: content[key] for key in content if key not in ("format", "sha256")}
        files = content["sha256"]["files"]
        sealed_again = sealed(record | {"format": number}, files)
        (store / "experts.json").write_text(json.dumps(sealed_again))
        with pytest.raises(CheckpointError, match="format"):
            ExpertStore(store)


def test_what_cannot_be_offloaded_is_refused(
    store: Path, saved: dict[str, Path], tmp_path: Path
) -> None:
    with refused(CheckpointError, got="an empty folder"):
        intarsia.offloading.pack_experts(tmp_path, tmp_path / "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").touch()
    with refused(ConfigError, got="other files in it, such as 'x'"):
        intarsia.offloading.pack_experts(saved["mixtral"], tmp_path / "mine")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
    LlamaForCausalLM(
        LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "dense")
    with refused(TargetError, got="llama without experts"):
        intarsia.offloading.pack_experts(tmp_path / "dense", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model: Any = intarsia.offload(store, slots=2)
    model.train()
    with refused(ConfigError, what="offloaded model"):
        model(IDS)
    for call in (
        lambda: intarsia.trace(model, [IDS]),
        lambda: intarsia.experts.relabel(model, IDS),
    ):
        with refused(
            TargetError, what="experts at 'model.layers.0.mlp.experts'", got="experts on disk"
        ):
            call()
    with refused(ConfigError, what="model", got="a Linear in memory"):
        intarsia.offloading.residency(nn.Linear(1, 1))
    with refused(ConfigError, what="check", got="'sometimes'"):
        intarsia.offload(store, slots=2, check="sometimes")


def test_the_size_that_is_advised_works(store: Path) -> None:
    opened = ExpertStore(store)
    for opened.bytes in (3072, 9_437_184, 88_080_384, 88_080_385, 603_979_776, 60_000_000_000):
        with pytest.raises(ConfigError) as error:
            slot_count(0, opened)
        assert slot_count(error.value.fix.split("'")[1], opened) in (2, 3), error.value
    opened.close()


def test_generate_ends_and_samples_as_the_folder_says(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(saved["mixtral"], tmp_path / "m")
    config_file = source / "generation_config.json"
    config_file.write_text('{"eos_token_id": [3, 5], "do_sample": true, "temperature": 0.5}')
    model: Any = intarsia.offload(source, slots=4)
    config = model.generation_config
    assert (config.eos_token_id, config.do_sample, config.temperature) == ([3, 5], True, 0.5)
    (tmp_path / "m-experts" / config_file.name).write_text("{")
    with refused(CheckpointError, got="bytes that changed after they were written"):
        intarsia.offload(source, slots=4)


def test_a_folder_that_was_written_again_does_not_get_its_old_experts(tmp_path: Path) -> None:
    model: Any = resident("mixtral")
    for turn in range(2):
        model.save_pretrained(tmp_path / "m")
        if turn:  # clocks of file systems are coarse
            stat = (tmp_path / "m-experts" / INDEX).stat()
            (file,) = (tmp_path / "m").glob("*.safetensors")
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
            with refused(CheckpointError, got="experts of an earlier m"):
                intarsia.offload(tmp_path / "m", slots=4)
            shutil.rmtree(tmp_path / "m-experts")
        small: Any = intarsia.offload(tmp_path / "m", slots=4)
        with torch.no_grad():
            assert torch.equal(small(IDS).logits, model(IDS).logits)
            for weight in model.model.layers[0].mlp.experts.parameters():
                weight.mul_(2)


def changed(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a model whose weights are others."""
    shutil.copytree(folder, target)
    (file,) = target.glob("*.safetensors")
    save_file(change({n: t.clone() for n, t in load_file(file).items()}), file)
    return target


def test_weights_that_are_missing_or_coded_are_said_to_be(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    mix = saved["mixtral"]
    expert = "experts.3.w2"
    coded = changed(
        mix,
        tmp_path / "fp8",
        lambda weights: {
            n: t.to(torch.float8_e4m3fn) if "experts" in n else t for n, t in weights.items()
        },
    )
    with refused(
        TargetError,
        what="experts model.layers.0.block_sparse_moe.experts",
        got="{torch.float8_e4m3fn}",
    ):
        intarsia.offloading.pack_experts(coded, tmp_path / "s")
    torn = changed(
        mix,
        tmp_path / "torn",
        lambda weights: {n: t for n, t in weights.items() if expert not in n},
    )
    with refused(CheckpointError, got="no model.layers.0.block_sparse_moe.experts.3.w2.weight"):
        intarsia.offloading.pack_experts(torn, tmp_path / "s")
    assert not (tmp_path / "s").exists()
    short = changed(
        mix,
        tmp_path / "short",
        lambda weights: {
            n: t for n, t in weights.items() if "1.block_sparse_moe.experts.7" not in n
        },
    )
    with refused(CheckpointError, got="7 experts at model.layers.1.mlp.experts"):
        intarsia.offload(short, slots=4)


def test_a_full_disk_leaves_no_store(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intarsia.offloading import store as packing

    def full(*_: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_raw_bytes", full)
    with refused(TrainingError, got="OSError: [Errno 28] No space left on device"):
        intarsia.offloading.pack_experts(saved["mixtral"], tmp_path / "s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"start": -5},
        {"start": "a"},
        {"sha256": ["0"]},
        {"bytes": 10**15},
        {"bytes": 3071},
        {"parts": None},
        {"parts": [{"name": "down_proj", "shape": [33, 16], "dtype": "F32"}]},
        {"parts": [{"name": "down_proj", "shape": [16, 16], "dtype": "F33"}]},
        {"file": "../m/model.safetensors"},
    ],
)
def test_an_index_that_contradicts_itself_is_refused(
    store: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    copy = shutil.copytree(store, tmp_path / "copy")
    record = json.loads((copy / INDEX).read_text())
    record["layers"][0] |= change
    write_json(copy / INDEX, sealed(record, record["sha256"]["files"]))
    with pytest.raises(CheckpointError, match="again"):
        intarsia.offload(copy, slots=4)


LIMITED = """
    import resource, sys, torch, transformers, intarsia
    from transformers import MixtralForCausalLM
    from intarsia.offloading import resident
    torch.set_num_threads(1)
    source, store, room = sys.argv[1], sys.argv[2], int(sys.argv[3])
    lines = open("/proc/self/status").read().splitlines()
    used = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + room, used + room))
    if sys.argv[4] == "whole":
        MixtralForCausalLM.from_pretrained(source)
    else:
        model = intarsia.offload(store, slots=4)
        with torch.no_grad():
            print(float(model(torch.arange(8)[None]).logits.double().sum()))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="no limit of a process's data")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_model_larger_than_the_memory_limit_is_built(tmp_path: Path) -> None:
    """96 MB of experts under 60 MB: building it whole fails, offloaded it gives the same."""
    from transformers import MixtralConfig

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=16,
    )
    torch.manual_seed(0)
    model: Any = MixtralForCausalLM(config).eval()
    model.set_experts_implementation("eager")
    model.save_pretrained(tmp_path / "m")
    intarsia.offloading.pack_experts(tmp_path / "m", tmp_path / "s")

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        words = (tmp_path / "m", tmp_path / "s", 60_000_000, mode)
        code = textwrap.dedent(LIMITED)
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True
        )

    assert run("whole").returncode != 0
    process = run("offloaded")
    assert process.returncode == 0, process.stderr[-2000:]
    with torch.no_grad():
        want = float(model(torch.arange(8)[None]).logits.double().sum())
    assert float(process.stdout) == want
