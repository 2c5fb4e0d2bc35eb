"""What was done to a model comes back from its folder; what does not fit leaves no trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia import TopK
from intarsia.core.change import steps_of
from intarsia.core.errors import CheckpointError, ConfigError, TargetError, UnknownName
from intarsia.core.files import write_json
from intarsia.core.registry import card
from intarsia.core.sealing import digests, seal_folder, sealed
from intarsia.mixtures import Capacity
from intarsia.routers import MoeX, PermutationSearch, Recurrent, Switch
from intarsia.sparse.swap.upcycle import places_in as places

from ..refusals import refused

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def vit(seed: int = 0, width: int = 32) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=width, num_heads=2, num_classes=5
    ).eval()


def llama(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()


def mixtral(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).eval()


def out(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if hasattr(model, "config"):
        return model(input_ids=torch.randint(1, 64, (2, 6), generator=generator)).logits
    return model(torch.randn(2, 3, 32, 32, generator=generator))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return intarsia.experts.save_mixture(
        intarsia.upcycle(vit(), TopK(experts=2)), tmp_path / "mixture"
    )


CASES: dict[str, tuple[Callable[[int], nn.Module], dict[str, object]]] = {
    "vit": (vit, {"router": TopK(experts=4), "how": "diversified", "layers": [1]}),
    "pyramid": (vit, {"router": Switch(), "experts": [2, 4], "capacity": Capacity(0.5, "random")}),
    "llama": (llama, {"router": TopK(experts=4, scale="none"), "how": "slices"}),
    "pyramid beside MLPs": (
        llama,
        {"router": Switch(), "experts": [2, 4], "residual": "learned"},
    ),
    "sum": (vit, {"router": TopK(experts=4), "how": "slices", "residual": "sum"}),
    "depth": (llama, {"router": Recurrent(experts=4, hidden=4)}),
    "search": (vit, {"router": PermutationSearch(TopK(experts=2))}),
    "read": (vit, {"router": MoeX(4, tau=0.1), "how": "diversified", "act": "relu"}),
    "read slices": (llama, {"router": MoeX(4, learn=True), "how": "slices", "act": "relu"}),
    "mixtral": (mixtral, {"router": TopK(experts=4)}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_comes_back(case: str, tmp_path: Path) -> None:
    make, settings = CASES[case]
    model = intarsia.upcycle(make(0), **settings)  # pyright: ignore
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    folder = intarsia.experts.save_mixture(model, tmp_path / "mixture")
    fresh = make(1)
    assert intarsia.experts.load_mixture(fresh, folder) is fresh
    assert_close(out(fresh), out(model))
    assert places(fresh) == places(model)
    assert sorted(p.name for p in folder.iterdir()) == ["host.safetensors", "intarsia.json"]


def test_a_mixture_into_the_dense_model_and_the_other_way_round(saved: Path) -> None:
    dense, mixture = vit(), intarsia.upcycle(vit(), TopK(experts=2))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*mlp\.experts\.up"):
        dense.load_state_dict(mixture.state_dict())
    with refused(CheckpointError, what="weights of 'blocks.0.mlp'"):
        mixture.load_state_dict(dense.state_dict())
    with refused(TargetError, what="model", got="one that was upcycled before"):
        intarsia.experts.load_mixture(mixture, saved)
    with refused(ConfigError, what="model", got="one that was not upcycled"):
        intarsia.experts.save_mixture(dense, saved)
    with refused(TargetError, what="model", got="one that was changed before, by 'upcycle'"):
        intarsia.load(mixture, saved)


def test_files_of_the_dense_model_and_of_the_mixture_are_told_apart(tmp_path: Path) -> None:
    """Files that `save_pretrained` writes and safetensors reads lose nothing in silence."""
    dense = llama()
    mixture: Any = intarsia.upcycle(llama(), TopK(experts=2))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    logits = out(mixture)
    for name, model in (("dense", dense), ("mixture", mixture)):
        cast(Any, model).save_pretrained(tmp_path / name)
    files = {n: load_file(tmp_path / n / "model.safetensors") for n in ("dense", "mixture")}
    for strict in (True, False):
        with refused(CheckpointError, what="weights of 'model.layers.0.mlp'"):
            mixture.load_state_dict(files["dense"], strict=strict)
    assert_close(out(mixture), logits), "refused before anything was overwritten"
    with pytest.raises(RuntimeError, match=r"Missing key.*mlp\.gate_proj(.|\n)*Unexpected key"):
        dense.load_state_dict(files["mixture"])
    again = intarsia.upcycle(llama(1), TopK(experts=2))
    keys = again.load_state_dict(files["mixture"], strict=False)
    assert keys.missing_keys == ["lm_head.weight"] and not keys.unexpected_keys  # tied, there once
    assert_close(out(again), logits)


def test_the_own_gate_of_a_sparse_model_is_told_from_a_router() -> None:
    plain, routed = mixtral(), intarsia.upcycle(mixtral(), TopK(experts=4), experts=4)
    for strict in (True, False):
        with refused(CheckpointError, what="weights of 'model.layers.0.mlp.gate'"):
            routed.load_state_dict(plain.state_dict(), strict=strict)
    with pytest.raises(RuntimeError, match=r"Missing key.*gate\.weight"):
        plain.load_state_dict(routed.state_dict())


def half(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def edit(folder: Path, change: Callable[[Any], object], name: str = "intarsia.json") -> None:
    """Change the content of a JSON file of a folder, and nothing else."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def resealed(folder: Path) -> None:
    """Seal a folder as it is now, so that the checks behind the seal are met."""
    content = json.loads((folder / "intarsia.json").read_text())
    seal_folder(folder, "intarsia.json", content)


def put(*path: str | int, value: object) -> Callable[[Path], None]:
    """Replaces a value of intarsia.json, as if it had been written so."""

    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    def damage(folder: Path) -> None:
        edit(folder, change)
        resealed(folder)

    return damage


def step(*path: str, value: object) -> Callable[[Path], None]:
    return put("steps", 0, *path, value=value)


FEWER = {"paths": ["blocks.0.mlp"], "experts": [2], "parts": [1]}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda f: (f / "intarsia.json").unlink(), "want a folder with"),
    "no weights": (lambda f: (f / "host.safetensors").unlink(), "no such file"),
    "half of the settings": (half("intarsia.json"), "not JSON"),
    "half of the weights": (half("host.safetensors"), "bytes that changed"),
    "a list": (lambda f: (f / "intarsia.json").write_text("[]"), "no object"),
    "another format": (put("format", value=2), "format 2, not 1"),
    "no format": (put("format", value=None), "format None, not 1"),
    "a step of its own": (put("steps", 0, value={"key": "upcycle"}), "want \\['decided'"),
    "no such key": (step("key", value="nobody"), "unknown method"),
    "code": (step("key", value="os.system"), "unknown method"),
    "a router": (step("key", value="topk"), "no change"),
    "an unknown router": (step("settings", "router", value={"method": "nobody"}), "'nobody'"),
    "no router": (step("settings", "router", value={"method": "lora"}), "a router of tokens"),
    "an unknown activation": (step("settings", "act", value="swish"), "act: got 'swish'"),
    "an unknown setting": (step("settings", value={"routers": 1}), "Did you mean router"),
    "another E": (step("decided", "experts", value=[2, 3]), "want \\(3, "),
    "other places": (
        step("decided", "paths", value=["layers.0.mlp"] * 2),
        "without 'layers.0.mlp'",
    ),
    "another branch": (step("settings", "residual", value="half"), "residual: got 'half'"),
    "parts of nothing": (step("decided", "parts", value=[1]), "a number of experts and of parts"),
    "fewer places": (step("decided", value=FEWER), "do not belong"),
    "another model": (step("on", "layout", value="0" * 32), "with other layers"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_and_leaves_the_model(case: str, saved: Path) -> None:
    damage, message = DAMAGE[case]
    damage(saved)
    model = vit(1)
    logits, kinds = out(model), [type(m) for m in model.modules()]
    with pytest.raises(CheckpointError, match=message):
        intarsia.experts.load_mixture(model, saved)
    assert [type(m) for m in model.modules()] == kinds and not steps_of(model)
    assert not model._forward_pre_hooks
    assert_close(out(model), logits)


def test_another_architecture_is_refused(saved: Path) -> None:
    with refused(CheckpointError, what="trunk", got="LlamaForCausalLM with other layers"):
        intarsia.experts.load_mixture(llama(), saved)
    slices = intarsia.upcycle(llama(), TopK(experts=3), how="slices")
    folder = intarsia.experts.save_mixture(slices, saved.parent / "slices")
    with refused(CheckpointError, what="trunk", got="MixtralForCausalLM with other layers"):
        intarsia.experts.load_mixture(mixtral(), folder)
    with refused(CheckpointError, what="trunk", got="VisionTransformer with other layers"):
        intarsia.experts.load_mixture(vit(width=48), saved)


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    adapted = intarsia.adapt(intarsia.upcycle(vit(), TopK(3, 2)), intarsia.Lora(2))
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.experts.save_mixture(adapted, tmp_path / "a")
    with refused(ConfigError, what="model", got="one that was not changed"):
        intarsia.save(vit(), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    model = intarsia.upcycle(vit(), TopK(3, 2))
    for folder in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ConfigError, match="want a new"):
            intarsia.save(model, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


HOSTS: dict[str, tuple[Callable[[int], nn.Module], list[str]]] = {
    "vit": (vit, ["blocks.0.mlp", "blocks.1.mlp"]),
    "llama": (llama, ["model.layers.0.mlp", "model.layers.1.mlp"]),
}


def moved(model: nn.Module) -> nn.Module:
    """Change every number that is not frozen, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def comes_back(model: nn.Module, make: Callable[[int], nn.Module], folder: Path) -> nn.Module:
    """Saved, loaded into the pretrained model, with the same outputs and the same steps."""
    intarsia.save(model, folder)
    again = intarsia.load(make(0), folder).eval()
    assert_close(out(again), out(model))
    assert [s.plan.change for s in steps_of(again)] == [s.plan.change for s in steps_of(model)]
    return again


@pytest.mark.parametrize("host", HOSTS)
def test_changes_stack_and_come_back_at_each_stage(host: str, tmp_path: Path) -> None:
    """Upcycled, with momentum, adapted twice, folded: each stage is a folder."""
    make, _ = HOSTS[host]
    model = moved(intarsia.upcycle(make(0), TopK(experts=2)))
    comes_back(model, make, tmp_path / "experts")
    model = moved(
        intarsia.apply(model, intarsia.methods.Momentum(intarsia.mixtures.HeavyBall(0.3)))
    )
    comes_back(model, make, tmp_path / "momentum")
    adapted = moved(intarsia.adapt(model, intarsia.Lora(2)))
    comes_back(adapted, make, tmp_path / "adapter")
    intarsia.apply(adapted, intarsia.methods.S2ft(down=0.0, output=0.5), name="second")
    adapted.set_adapter("second")
    moved(adapted)
    comes_back(adapted, make, tmp_path / "second")
    inputs = torch.randint(1, 64, (2, 6)) if host == "llama" else None
    folded = intarsia.fold(adapted, inputs=inputs, report=lambda _: None)
    assert_close(out(folded), out(adapted), rtol=1e-4, atol=1e-5)
    assert not any("peft" in type(m).__module__ for m in folded.modules())
    comes_back(folded, make, tmp_path / "folded")


@pytest.mark.parametrize("host", HOSTS)
def test_peft_reads_the_adapter_of_a_stack(host: str, tmp_path: Path) -> None:
    make, _ = HOSTS[host]
    model = moved(intarsia.adapt(intarsia.upcycle(make(0), TopK(experts=2)), intarsia.Lora(2)))
    intarsia.save(model, tmp_path / "stack")
    upcycled = intarsia.upcycle(make(0), TopK(experts=2))
    again = PeftModel.from_pretrained(upcycled, str(tmp_path / "stack")).eval()
    assert_close(out(again), out(model))


def test_an_adapter_that_does_not_fit_leaves_the_host_as_it_was(tmp_path: Path) -> None:
    model = intarsia.adapt(
        moved(intarsia.upcycle(vit(), TopK(experts=2))), intarsia.methods.Mosl(2)
    )
    folder = intarsia.save(model, tmp_path / "stack")
    folder_of_mosl = intarsia.save(
        intarsia.adapt(vit(), intarsia.methods.Mosl(3)), tmp_path / "other"
    )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((folder_of_mosl / name).read_bytes())
    resealed(folder)
    dense = vit(2)
    logits, kinds = out(dense), [type(m) for m in dense.modules()]
    with refused(CheckpointError, what="trunk", got="VisionTransformer with other layers"):
        intarsia.load(dense, folder)
    assert [type(m) for m in dense.modules()] == kinds and not steps_of(dense)
    assert torch.equal(out(dense), logits)


@pytest.mark.parametrize("key", ["bitfit", "last-k", "vpt-deep", "peft-lora", "full"])
def test_a_baseline_wants_its_own_pretrained_model(key: str, tmp_path: Path) -> None:
    model = moved(intarsia.apply(vit(), card(key).config()))
    comes_back(model, vit, tmp_path / key)
    if key != "peft-lora":  # PEFT's files do not say what they belong to
        with refused(
            CheckpointError, what="trunk", got="the right architecture with other weights"
        ):
            intarsia.load(vit(1), tmp_path / key)


def test_a_trained_part_under_an_adapter_is_saved(tmp_path: Path) -> None:
    model = moved(intarsia.apply(vit(), intarsia.methods.BitFit()))
    comes_back(moved(intarsia.adapt(model, intarsia.Lora(2))), vit, tmp_path / "both")


def test_several_adapters_come_back_by_name(tmp_path: Path) -> None:
    model = intarsia.adapt(vit(), intarsia.Lora(2), name="one")
    intarsia.adapt(model, intarsia.adapters.Ssf(), name="two")
    for name in ("two", "one"):
        model.set_adapter(name)
        moved(model)
    intarsia.save(model, tmp_path / "both")
    both = intarsia.load(vit(), tmp_path / "both").eval()
    two = intarsia.load(vit(), tmp_path / "both", name="two").eval()
    assert list(both.peft_config) == ["one", "two"] and list(two.peft_config) == ["two"]
    assert_close(out(both), out(model))
    model.set_adapter("two")
    assert_close(out(two), out(model))
    with refused(UnknownName, what="unknown adapter", got="'twe'", near=("two",)):
        intarsia.load(vit(), tmp_path / "both", name="twe")


def test_a_coded_head_and_a_packed_adapter_are_read_by_the_same_load(tmp_path: Path) -> None:
    intarsia.apply(model := vit(), intarsia.sparse.CodeHead())
    model = moved(intarsia.adapt(model, intarsia.methods.BiAdapter()))
    comes_back(model, vit, tmp_path / "coded")
    intarsia.pack(model, tmp_path / "packed")
    assert_close(out(intarsia.load(vit(), tmp_path / "packed")), out(model))


def test_the_file_of_a_delta_is_read_by_the_same_load(tmp_path: Path) -> None:
    model = moved(intarsia.adapt(vit(), intarsia.Lora(2)))
    intarsia.sparse.delta_of(model).save(tmp_path / "delta.safetensors")
    assert_close(out(intarsia.load(vit(), tmp_path / "delta.safetensors").eval()), out(model))


SAVED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a baseline": lambda model: intarsia.apply(model, card("bitfit").config()),
    "PEFT's": lambda model: intarsia.apply(model, card("peft-lora").config(r=2, roles=("qkv",))),
    "a mixture": lambda model: intarsia.upcycle(model, TopK(experts=2)),
    "a stack": lambda model: intarsia.adapt(
        intarsia.upcycle(model, TopK(experts=2)), intarsia.Lora(rank=2)
    ),
}


@pytest.mark.parametrize("case", SAVED)
def test_one_flipped_bit_in_any_file_of_weights_is_refused(case: str, tmp_path: Path) -> None:
    folder = intarsia.save(SAVED[case](vit()), tmp_path / "saved")
    files = sorted(folder.rglob("*.safetensors"))
    assert files
    for file in files:
        content = file.read_bytes()
        for position in (12, len(content) // 2, len(content) - 1):
            file.write_bytes(
                content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
            )
            with pytest.raises(CheckpointError) as error:
                intarsia.load(vit(), folder)
            assert error.value.got and error.value.want and "Copy it again" in error.value.fix
        file.write_bytes(content)
    intarsia.load(vit(), folder)


def test_sizes_that_the_weights_do_not_have_are_refused(saved: Path) -> None:
    put("steps", 0, "settings", "router", "experts", value=10**9)(saved)
    with refused(
        CheckpointError, got="settings.router.experts=1000000000, where the largest size is 4096"
    ):
        intarsia.load(vit(), saved)


def test_an_adapter_of_a_run_has_its_digest_in_the_record(tmp_path: Path) -> None:
    peft = get_peft_model(vit(), LoraConfig(r=2, target_modules=["qkv"]))
    peft.save_pretrained(tmp_path / "adapter")
    write_json(tmp_path / "run.json", sealed({"record": {}}, digests(tmp_path)))
    intarsia.load(vit(), tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with refused(CheckpointError, got="bytes that changed after they were written"):
        intarsia.load(vit(), tmp_path)


MIXTURE_EDITS: dict[str, Callable[[Any], object]] = {
    "active 2 -> 1": lambda c: router(c).update(active=1, scale="prob"),
    "scale -> none": lambda c: router(c).update(scale="none"),
    "experts 4 -> 8": lambda c: router(c).update(experts=8),
    "active 2.0": lambda c: router(c).update(active=2.0),
    "active 'two'": lambda c: router(c).update(active="two"),
    "decided {}": lambda c: c["steps"][0].update(decided={}),
    "no sha256": lambda c: c.pop("sha256"),
}
ADAPTER_EDITS: dict[str, Callable[[Any], object]] = {
    "experts 'four'": lambda c: c["options"].update(experts="four"),
    "experts renamed": lambda c: c["options"].update(expert=c["options"].pop("experts")),
    "method mosaic": lambda c: c.update(method="mosaic"),
}


def router(content: Any) -> dict[str, Any]:
    return content["steps"][0]["settings"]["router"]


@pytest.mark.parametrize("sealed_again", [False, True])
@pytest.mark.parametrize("name", MIXTURE_EDITS)
def test_an_edited_mixture_is_refused(name: str, sealed_again: bool, tmp_path: Path) -> None:
    folder = intarsia.save(intarsia.upcycle(vit(), TopK(experts=4)), tmp_path / "mixture")
    intarsia.load(vit(), folder)
    edit(folder, MIXTURE_EDITS[name])
    if sealed_again:  # who writes such a folder on purpose gets words, too
        resealed(folder)
        if name in ("active 2 -> 1", "scale -> none", "experts 4 -> 8", "no sha256"):
            intarsia.load(vit(), folder)  # it is another mixture, and a sealed one
            return
    model = vit()
    with pytest.raises(CheckpointError) as error:
        intarsia.load(model, folder)
    assert error.value.got and error.value.want and error.value.fix and not steps_of(model)


@pytest.mark.parametrize("name", ADAPTER_EDITS)
def test_an_edited_adapter_is_refused(name: str, tmp_path: Path) -> None:
    folder = intarsia.save(intarsia.adapt(vit(), intarsia.Mosa(experts=4)), tmp_path / "adapter")
    content = json.loads((folder / "intarsia.json").read_text())
    assert content["adapters"] == [{"name": "default", "left_out": None}] and not content["steps"]
    intarsia.load(vit(), folder)
    edit(folder, ADAPTER_EDITS[name], "adapter_config.json")
    for damage in (lambda: None, lambda: resealed(folder)):
        damage()
        with pytest.raises(CheckpointError) as error:
            intarsia.load(vit(), folder)
        assert error.value.got and error.value.want and error.value.fix
