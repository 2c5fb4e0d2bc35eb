"""Roles become the right places on every architecture, and what cannot carry a cell is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from intarsia.adapters import Bottleneck, Lora, Ssf
from intarsia.core import Method
from intarsia.core.errors import TargetError
from intarsia.folders.verbs import adapt
from intarsia.hosts.anatomy.blocks import blocks
from intarsia.hosts.anatomy.sites import find_sites, site_at

from ..refusals import refused

Make = Callable[[str], nn.Module]

MLP, PFEIFFER = Bottleneck(4), Bottleneck(4, "pfeiffer")
HOULSBY, BLOCK = Bottleneck(4, "houlsby"), Bottleneck(4, "adapter+")
QKV, LINEAR = Lora(2), Lora(2, roles=("projection", "mlp_linear"))
QV, EVERY = Lora(2, roles=("qv",)), Ssf()
NORMS, EMBEDDING, ALL_LINEAR = Ssf(("norm",)), Ssf(("embedding",)), Ssf(("linear",))


@pytest.mark.parametrize(
    ("name", "method", "count", "first", "last"),
    [
        ("vit", MLP, 2, "blocks.0.mlp", "blocks.1.mlp"),
        ("vit", HOULSBY, 4, "blocks.0.attn", "blocks.1.mlp"),
        ("vit", BLOCK, 2, "blocks.0", "blocks.1"),
        ("vit", QKV, 2, "blocks.0.attn.qkv", "blocks.1.attn.qkv"),
        ("vit", LINEAR, 6, "blocks.0.attn.proj", "blocks.1.mlp.fc2"),
        ("deit", MLP, 2, "blocks.0.mlp", "blocks.1.mlp"),
        ("dinov2", HOULSBY, 4, "blocks.0.attn", "blocks.1.mlp"),
        ("swin", MLP, 3, "layers.0.blocks.0.mlp", "layers.1.blocks.1.mlp"),
        ("swin", LINEAR, 9, "layers.0.blocks.0.attn.proj", "layers.1.blocks.1.mlp.fc2"),
        ("convnext", MLP, 5, "stages.0.blocks.0.mlp", "stages.3.blocks.0.mlp"),
        ("convnext", QKV, 10, "stages.0.blocks.0.mlp.fc1", "stages.3.blocks.0.mlp.fc2"),
        ("efficientnet", PFEIFFER, 4, "blocks.1.0", "blocks.4.0"),
        ("efficientnet", QKV, 6, "blocks.1.0.conv_pwl", "blocks.4.0.conv_pwl"),
        ("hf_vit", MLP, 2, "vit.layers.0.mlp", "vit.layers.1.mlp"),
        ("hf_vit", QKV, 6, "vit.layers.0.attention.q_proj", "vit.layers.1.attention.v_proj"),
        ("vit", QV, 2, "blocks.0.attn.qkv", "blocks.1.attn.qkv"),
        ("hf_vit", QV, 4, "vit.layers.0.attention.q_proj", "vit.layers.1.attention.v_proj"),
        ("vit", EVERY, 14, "patch_embed.proj", "norm"),
        ("vit", NORMS, 5, "blocks.0.norm1", "norm"),
        ("hf_vit", NORMS, 5, "vit.layers.0.layernorm_before", "vit.layernorm"),
        ("hf_vit", EMBEDDING, 1, *["vit.embeddings.patch_embeddings.projection"] * 2),
        ("swin", NORMS, 9, "patch_embed.norm", "norm"),
        ("swin", EMBEDDING, 2, "patch_embed.proj", "layers.1.downsample.reduction"),
        ("convnext", NORMS, 10, "stem.1", "head.norm"),
        ("convnext", EMBEDDING, 4, "stem.0", "stages.3.downsample.1"),
        ("convnext", ALL_LINEAR, 15, "stages.0.blocks.0.conv_dw", "stages.3.blocks.0.mlp.fc2"),
        ("efficientnet", EMBEDDING, 2, "conv_stem", "blocks.0.0.conv"),
        ("hf_dinov2", HOULSBY, 4, "dinov2.encoder.layer.0.attention", "dinov2.encoder.layer.1.mlp"),
    ],
)  # fmt: skip
def test_roles_become_paths(
    make: Make, name: str, method: Method, count: int, first: str, last: str
) -> None:
    paths = [site.path for site in find_sites(make(name), method)]
    assert (len(paths), paths[0], paths[-1]) == (count, first, last)
    assert len(set(paths)) == count


ATTENTIVE = (
    "vit", "deit", "dinov2", "swin", "hf_vit", "hf_dinov2", "hf_deit", "hf_registers",
)  # fmt: skip
CONVOLUTIONAL = ("convnext", "convnext_conv_mlp", "efficientnet")


SITED = dict.fromkeys(ATTENTIVE, (MLP, HOULSBY, BLOCK, QKV, LINEAR, QV, EVERY))
SITED |= dict.fromkeys(CONVOLUTIONAL, (MLP, BLOCK, QKV, LINEAR))
SITED |= {"convnext": (MLP, BLOCK, QKV, LINEAR, EVERY), "convnextv2": (EVERY,)}
SITED["convnext_conv_mlp"] = SITED["convnext"]


@pytest.mark.parametrize("name", SITED)
def test_declared_widths_and_channels_are_those_of_a_forward(
    make: Make, images: Callable[[str], Tensor], name: str
) -> None:
    model = make(name)
    sites = [site for method in SITED[name] for site in find_sites(model, method)]
    shapes: dict[str, tuple[Tensor, Tensor]] = {}
    for site in sites:
        model.get_submodule(site.path).register_forward_hook(
            lambda m, args, kwargs, out, path=site.path: shapes.__setitem__(
                path,
                ((*args, *kwargs.values())[0], out[0] if isinstance(out, tuple) else out),
            ),
            with_kwargs=True,
        )
    model(images(name))
    for site in sites:
        x, y = shapes[site.path]
        axis = -1 if site.channels == "last" else 1
        assert (x.shape[axis], y.shape[axis]) == (site.inputs, site.outputs)
        if site.position == "parallel":  # a cell beside the module keeps every other axis
            assert x.movedim(axis, -1).shape[:-1] == y.movedim(axis, -1).shape[:-1]


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "deit",
        "dinov2",
        "swin",
        "convnext",
        "convnext_conv_mlp",
        "hf_vit",
        "hf_dinov2",
        "hf_deit",
        "hf_registers",
    ],
)
@pytest.mark.parametrize("method", [MLP, QKV])
def test_norm_is_the_layernorm_whose_output_the_site_reads(
    make: Make, images: Callable[[str], Tensor], name: str, method: Method
) -> None:
    model = make(name)
    sites = [s for s in find_sites(model, method) if s.norm is not None]
    if method is MLP or "convnext" not in name:
        assert sites
    outputs: dict[int, Tensor] = {}
    reads: dict[str, Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(
                lambda m, _, out: outputs.__setitem__(m.weight.data_ptr(), out)
            )
    for site in sites:
        model.get_submodule(site.path).register_forward_pre_hook(
            lambda m, args, path=site.path: reads.__setitem__(path, args[0])
        )
    model(images(name))
    for site in sites:
        assert site.norm is not None
        out = outputs[site.norm[0].data_ptr()]
        # Swin cuts the image into windows in between
        assert torch.equal(out.flatten().sort()[0], reads[site.path].flatten().sort()[0])


def test_a_sequential_cell_reads_no_layernorm(make: Make) -> None:
    assert all(s.norm is None for s in find_sites(make("vit"), PFEIFFER))


def test_a_post_norm_block_has_no_norm_before_its_mlp(make: Make) -> None:
    assert all(s.norm is None for s in find_sites(make("swinv2"), MLP))


def test_layers_count_blocks_over_all_stages(make: Make) -> None:
    model = make("swin")
    assert [p for p, _ in blocks(model)] == [
        "layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1",
    ]  # fmt: skip
    paths = [s.path for s in find_sites(model, MLP, layers=[0, -1])]
    assert paths == ["layers.0.blocks.0.mlp", "layers.1.blocks.1.mlp"]
    named = [s.path for s in find_sites(model, MLP, targets=["mlp.fc1"], layers=[1])]
    assert named == ["layers.1.blocks.0.mlp.fc1"]


@pytest.mark.parametrize(
    ("targets", "want"),
    [
        ("fc1", ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]),
        (["blocks.1.mlp"], ["blocks.1.mlp"]),
        (["blocks.*.attn", "blocks.0.mlp"], ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn"]),
    ],
)
def test_targets_are_paths_ends_or_globs(make: Make, targets: list[str], want: list[str]) -> None:
    assert [s.path for s in find_sites(make("vit"), MLP, targets)] == want


@pytest.mark.parametrize(
    ("name", "method", "targets", "layers", "says"),
    [
        ("vit", MLP, ["mpl"], None, "Did you mean 'mlp'"),
        ("vit", MLP, ["blocks.7.mlp"], None, "no module of that name"),
        ("vit", MLP, [], None, "empty list"),
        ("vit", MLP, ["attn_drop"], None, "Dropout, which has no input and output width"),
        ("vit", MLP, ["blocks.0.ls1"], None, "Candidates"),
        ("vit", MLP, ["mlp", "fc1"], None, "around 'blocks.0.mlp.fc1'"),
        ("vit", MLP, ["mlp", "blocks.0"], None, "around 'blocks.0.mlp'"),
        ("vit", MLP, None, [2], "-2 ... 1"),
        ("vit", MLP, None, [], "negative numbers count from the last"),
        ("vit", MLP, ["mlp"], [0, 5], "-2 ... 1"),
        ("convnext", HOULSBY, None, None, "role 'attention'"),
        ("convnext", QKV, ["conv_dw"], None, "spatial or strided convolutions"),
        ("efficientnet", QKV, ["conv_stem"], None, "spatial or strided convolutions"),
    ],
)
def test_what_cannot_be_a_site_is_refused(
    make: Make, name: str, method: Method, targets: list[str] | None,
    layers: list[int] | None, says: str,
) -> None:  # fmt: skip
    model = make(name)
    before = dict(model.named_modules())
    with pytest.raises(TargetError) as error:
        adapt(model, method, targets=targets, layers=layers)
    assert says in str(error.value)
    assert dict(model.named_modules()).keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["swinv2", "eva"])
def test_a_layer_that_the_host_reads_as_a_weight_is_called_once_it_has_a_cell(
    make: Make, images: Callable[[str], Tensor], name: str
) -> None:
    x, model = images(name), make(name)
    for norm in model.modules():
        if isinstance(norm, nn.LayerNorm):  # some of Swin v2's start at zero
            nn.init.ones_(norm.weight)
    before = model(x)
    adapted = adapt(model, QKV, head=None)
    assert torch.allclose(adapted(x), before, atol=1e-5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    assert (adapted(x) - before).norm() > 1e-2 * before.norm()


def test_a_layer_that_is_only_ever_read_as_a_weight_is_refused(make: Make) -> None:
    model = make("eva")
    del model.blocks[0].attn.qkv_bias_separate
    with refused(TargetError, what="target 'blocks.0.attn.qkv'"):
        adapt(model, QKV)


def test_an_unknown_model_is_told_its_candidates() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
    with refused(
        TargetError, what="model Sequential", got="no block that is known by its structure"
    ):
        find_sites(model, MLP)
    named = nn.ModuleDict({"stem": nn.Linear(4, 8), "out": nn.Linear(8, 2)})
    with refused(TargetError, what="model ModuleDict"):
        find_sites(named, MLP)


def test_any_model_can_be_adapted_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model = adapt(model, Lora(2), targets=["0", "2"], head=None)
    assert model(torch.randn(3, 4)).shape == (3, 2)


def test_widths_of_an_attention_are_not_those_of_its_position_bias(make: Make) -> None:
    site = site_at(make("swinv2"), "layers.0.blocks.0.attn", "sequential")
    assert (site.inputs, site.outputs) == (16, 16)


def test_chosen_layers_leave_out_what_is_around_the_blocks(make: Make) -> None:
    paths = [site.path for site in find_sites(make("vit"), EVERY, layers=[-1])]
    assert len(paths) == 6 and all(path.startswith("blocks.1.") for path in paths)
    with refused(TargetError, what="role 'embedding'"):
        find_sites(make("vit"), EMBEDDING, layers=[-1])


def test_a_norm_with_an_activation_inside_is_no_norm(make: Make) -> None:
    with refused(TargetError, what="role 'norm'"):
        find_sites(make("efficientnet"), NORMS)
    model = make("vit")
    model.blocks[0].norm1 = timm.layers.LayerNormAct(32)
    paths = [site.path for site in find_sites(model, NORMS)]
    assert "blocks.0.norm1" not in paths and "blocks.1.norm1" in paths


def test_bert_has_its_roles_though_its_mlp_is_two_modules() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24,
    )  # fmt: skip
    model = BertModel(config).eval()

    def places(*roles: str) -> list[str]:
        sites = find_sites(model, Lora(2, roles=roles), layers=[1])
        return [site.path.removeprefix("encoder.layer.1.") for site in sites]

    assert places("qkv") == [f"attention.self.{n}" for n in ("query", "key", "value")]
    assert places("qv") == ["attention.self.query", "attention.self.value"]
    assert places("projection", "mlp_linear") == [
        "attention.output.dense", "intermediate.dense", "output.dense",
    ]  # fmt: skip
    with refused(TargetError, what="role 'mlp'"):
        find_sites(model, Bottleneck(4))
    ids = torch.randint(50, (2, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(ids).last_hidden_state
        adapted = adapt(model, Lora(2), head=None).eval()
        torch.testing.assert_close(adapted(input_ids=ids).last_hidden_state, want)
