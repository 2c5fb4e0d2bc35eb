"""fold: a stock model, the same outputs, or a refusal that says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from intarsia.adapters import Bottleneck, BottleneckCell, Lora, Ssf
from intarsia.core import Cell, Method, Site
from intarsia.core.errors import ConfigError, FoldError, UnknownName
from intarsia.folders.verbs import adapt
from intarsia.hosts.folding.fold import fold, fold_cell
from intarsia.hosts.folding.widen import (
    add_weight,
    exact,
    mlps,
    pad,
    plain_mlp,
    same_function,
    widen,
)
from intarsia.methods import Adamix, Mosa, Mosl

from ..refusals import refused
from ..toys import quiet

# PEFT asks a transformers model for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

Host = Callable[[], nn.Module]
SIZES: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
STAGES: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 24)}
TRANSFORMERS: dict[str, Any] = {
    "image_size": 32, "patch_size": 16, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_labels": 5,
}  # fmt: skip


def vit(**settings: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **SIZES, num_classes=5, **settings)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(1, 2),
        num_heads=(1, 2), num_classes=5,
    )  # fmt: skip


def convnext(name: str = "convnext_atto", **settings: Any) -> nn.Module:
    return timm.create_model(name, num_classes=5, **STAGES, **settings)


HOSTS: dict[str, Host] = {
    "vit": vit,
    "vit with layer scale": lambda: vit(init_values=0.5),
    "swin": swin,
    "convnext": convnext,
    "convnext of convolutions": lambda: convnext(conv_mlp=True),
    "transformers vit": lambda: ViTForImageClassification(
        ViTConfig(intermediate_size=96, **TRANSFORMERS)
    ),
    "transformers dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(**TRANSFORMERS)),
}
GELU = Bottleneck(6, activation="gelu")
METHODS: dict[str, Method] = {
    "adaptformer": GELU,
    "no norm": Bottleneck(6, activation="gelu", norm="none", scale=1.5),
    "learned scale": Bottleneck(6, activation="gelu", scale="layer"),
    "scale per channel": Bottleneck(6, activation="gelu", scale="channel", init="houlsby"),
    "dropout": Bottleneck(6, activation="gelu", dropout=0.5),
    "lora": Lora(2, alpha=5.0, roles=("qkv", "projection", "mlp_linear")),
    "lora on queries and values": Lora(2, alpha=5.0, roles=("qv", "projection")),
    "ssf": Ssf(std=0.02),
    "mosl": Mosl(2),
    "mosl on queries and values": Mosa(Lora(2, roles=("qv",)), split="both"),
    "adamix": Adamix(GELU),
    "official": Mosa(GELU, split="both", scaling="paper", decay="official", draw="batch"),
    **{
        f"mosa {split} {scaling}": Mosa(GELU, split=split, scaling=scaling, active=active)
        for split in ("up", "down", "both")
        for scaling, active in (("paper", 1), ("inverted", 1), ("inverted", 3))
    },
}


def moved(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Every weight away from its start: adapters, heads, gains of norms, layer scales."""
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            if "norm" in name and name.endswith("weight") and "intarsia" not in name:
                p.copy_(1 + 0.3 * noise.clamp(-2, 2))
            elif any(n in name for n in ("gamma", "ls1", "ls2", "lambda1", "layer_scale")):
                p.copy_(0.7 + 0.1 * noise)
            elif p.requires_grad:
                p.add_(scale * noise)
    return model


def adapted(host: Host = vit, method: Method = GELU, **settings: Any) -> PeftModel:
    torch.manual_seed(0)
    return moved(adapt(moved(host(), 0.1), method, **settings))


def images(dtype: torch.dtype = torch.float32, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2)).to(dtype)


def said(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, torch.Tensor) else out.logits


def assert_folds(model: PeftModel, dtype: torch.dtype, bound: float) -> nn.Module:
    model = model.to(dtype)
    stock = fold(model, report=quiet)
    y, x = said(model.eval(), images(dtype)), images(dtype)
    with model.disable_adapter():
        assert (said(model, x) - y).abs().max() > 1e-2 * y.abs().max(), "the adapter does nothing"
    assert (said(stock, x) - y).abs().max() <= bound * y.abs().max()
    return stock


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_every_method_folds_exactly(method: Method) -> None:
    assert_folds(adapted(vit, method), torch.float64, 1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", [Mosa(GELU, split="both"), Mosl(2)], ids=["mosa", "mosl"])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_every_host_folds(host: Host, method: Method, dtype: torch.dtype, bound: float) -> None:
    stock = assert_folds(adapted(host, method), dtype, bound)
    fresh = host()
    assert type(stock) is type(fresh)
    assert stock.state_dict().keys() == fresh.state_dict().keys()
    for name, module in stock.named_modules():
        assert type(module) is type(fresh.get_submodule(name))
    assert not any("intarsia" in type(m).__module__ for m in stock.modules())
    widened = isinstance(method, Mosa) and isinstance(method.over, Bottleneck)
    units = {p: m.hidden - mlps(fresh)[p].hidden for p, m in mlps(stock).items()}
    assert set(units.values()) == {6 if widened else 0}


@pytest.mark.parametrize("host", [h for h in HOSTS if h != "swin"])
def test_a_scale_and_a_shift_become_the_layers_weights(host: str) -> None:
    stock = assert_folds(adapted(HOSTS[host], Ssf()), torch.float64, 1e-11)
    assert stock.state_dict().keys() == HOSTS[host]().state_dict().keys()


def test_a_bias_that_is_not_there_is_needed_for_a_shift_only() -> None:
    model = adapted(HOSTS["swin"], Ssf())
    with refused(FoldError, what="fold 'layers.1.downsample.reduction'"):
        fold(model, report=quiet)
    with torch.no_grad():
        model.get_submodule("base_model.model.layers.1.downsample.reduction").get_parameter(
            "intarsia_cells.default.shift"
        ).zero_()
    assert fold(model, report=quiet)


def test_a_scale_of_more_than_one_layer_is_no_weight() -> None:
    model = moved(adapt(vit(), Ssf(), targets=["mlp"]))
    with refused(FoldError, what="fold 'blocks.0.mlp'", got="a scale behind Mlp"):
        fold(model, report=quiet)
    convolution = timm.layers.StdConv2d(3, 4, 2, bias=True)  # its weights' scale does not count
    cell = moved(Ssf().build(Site("c", 3, 4, "sequential"), generator=torch.Generator()))
    with refused(FoldError, what="fold 'c'"):
        fold_cell(exact(convolution), cell, "c", "sequential", "first")


def test_a_scale_that_reads_another_adapters_layer_is_not_folded_apart() -> None:
    model = adapt(vit(), Lora(2), name="lora", head=None)
    adapt(model, Ssf(), name="ssf", head=None)
    model.base_model.set_adapter(["lora", "ssf"])
    with refused(
        FoldError, what="fold", got="outputs that differ by 7.4e-03 (5.2e-02 of the largest output)"
    ):
        fold(moved(model), report=quiet)


@pytest.mark.parametrize(
    ("activation", "host"),
    [("relu", lambda: vit(act_layer="relu")), ("silu", lambda: vit(act_layer="silu"))],
    ids=["relu", "silu"],
)
def test_any_shared_activation_folds(activation: str, host: Host) -> None:
    method = Bottleneck(6, activation=activation)
    assert_folds(adapted(host, method), torch.float64, 1e-12)


def test_half_precision_trunk_folds_within_its_rounding() -> None:
    model = adapted()
    model.get_base_model().to(torch.bfloat16)
    for name, p in model.named_parameters():
        if "intarsia" in name:
            p.data = p.data.float()
    stock = fold(model, report=quiet)
    assert {p.dtype for p in stock.parameters()} == {torch.bfloat16}


def test_the_given_model_is_left_as_it_is() -> None:
    model = adapted(vit, Mosa(GELU))
    model.add_adapter("other", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("default")
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    stock = fold(model, name="other", report=quiet)
    with torch.no_grad():
        for p in stock.parameters():
            p.zero_()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert model.active_adapters == ["default"]


def test_a_folded_model_is_ready_and_free_of_leftovers() -> None:
    stock = fold(adapted(vit, Mosa(GELU)), report=quiet)
    assert not stock.training and all(p.requires_grad for p in stock.parameters())
    assert not hasattr(stock, "peft_config")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in stock.modules())


def test_the_named_adapter_is_folded_with_its_head() -> None:
    model = adapt(vit(), GELU)
    moved(adapt(model, Lora(2), name="second"))
    model.set_adapter("second")
    moved(model, 0.2)
    want = said(model.eval(), images())
    model.set_adapter("default")
    assert (said(fold(model, name="second", report=quiet), images()) - want).abs().max() < 1e-5
    mine = said(model.eval(), images())
    stock = fold(model, report=quiet)
    assert (said(stock, images()) - mine).abs().max() < 1e-5
    assert type(stock.head) is nn.Linear
    trained = model.get_base_model().head.modules_to_save["default"]
    assert torch.equal(stock.head.weight, trained.weight)
    assert (mine - want).abs().max() > 1e-3


def test_two_active_adapters_fold_together() -> None:
    model = adapt(vit(), GELU)
    adapt(model, Bottleneck(4, activation="gelu", scale="layer"), name="more", head=None)
    model.base_model.set_adapter(["default", "more"])
    moved(model)
    stock = fold(model, report=quiet)
    assert {m.hidden for m in mlps(stock).values()} == {96 + 6 + 4}
    assert (said(stock, images()) - said(model.eval(), images())).abs().max() < 1e-5


def test_the_difference_is_reported_and_judged() -> None:
    model, lines = adapted(), []
    fold(model, report=lines.append)
    assert len(lines) == 1 and "2 MLPs widened" in lines[0] and "difference" in lines[0]
    with refused(FoldError, what="fold") as caught:
        fold(model, tolerance=0.0, inputs=images(batch=8), report=quiet)
    # by how much they differ depends on the processor
    assert str(caught.value.got).startswith("outputs that differ by")


def test_a_broken_adapter_is_not_folded() -> None:
    model = adapted()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "up.weight" in n)[0, 0] = torch.nan
    with refused(
        FoldError,
        what="fold 'blocks.0.mlp'",
        got="outputs that differ by nan (nan of the largest output)",
    ):
        fold(model, report=quiet)


def test_inputs_may_be_named() -> None:
    model = adapted(HOSTS["transformers vit"])
    assert fold(model, inputs={"pixel_values": images()}, report=quiet)


class Picture(nn.Module):
    """A model that does not say its image size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


def test_a_model_of_unknown_input_needs_inputs() -> None:
    model = moved(adapt(Picture(), Lora(2), targets=["fc"], head=None))
    with refused(ConfigError, what="input of Picture"):
        fold(model, report=quiet)
    x = torch.randn(4, 8)
    assert (said(fold(model, inputs=x, report=quiet), x) - said(model, x)).abs().max() < 1e-5


REFUSED: dict[str, tuple[Host, Method, str]] = {
    "pfeiffer": (vit, Bottleneck(6, "pfeiffer"), "adapter beside its module"),
    "houlsby": (vit, Bottleneck(6, "houlsby"), "adapter beside its module"),
    "adapter+": (vit, Bottleneck(6, "adapter+"), "adapter beside its module"),
    "mosa over pfeiffer": (vit, Mosa(Bottleneck(6, "pfeiffer")), "adapter beside its module"),
    "own norm": (vit, Bottleneck(6, activation="gelu", norm="layer"), "norm='residual'"),
    "relu beside gelu": (vit, Bottleneck(6), "one activation"),
    "gelu beside its tanh form": (lambda: vit(act_layer="gelu_tanh"), GELU, "one activation"),
    "gate": (lambda: vit(mlp_layer=timm.layers.SwiGLU), GELU, "without gate"),
    "packed gate": (lambda: vit(mlp_layer=timm.layers.SwiGLUPacked), GELU, "without gate"),
    "norm inside": (lambda: vit(scale_mlp_norm=True), GELU, "without gate or norm"),
    "response norm": (lambda: convnext("convnextv2_atto"), GELU, "without gate or norm"),
    "efficientnet": (
        lambda: timm.create_model("efficientnet_b0", num_classes=5),
        Bottleneck(6, activation="gelu", norm="none"), "adapter beside",
    ),
    "no biases": (lambda: vit(proj_bias=False), GELU, "layer that has a bias"),
}  # fmt: skip


@pytest.mark.parametrize(("host", "method", "want"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_exact_is_refused(host: Host, method: Method, want: str) -> None:
    model = adapted(host, method)
    with pytest.raises(FoldError) as caught:
        fold(model, report=quiet)
    assert want in str(caught.value) and "got" in str(caught.value)
    places = [m.path for m in model.modules() if hasattr(m, "intarsia_cells")]
    assert any(repr(path)[1:-1] in caught.value.what for path in places)


def test_a_zero_gain_of_the_host_is_refused() -> None:
    model = adapted()
    cell = next(m for m in model.modules() if isinstance(m, BottleneckCell))
    with torch.no_grad():
        cell.norm.host_weight[3] = 0
    with refused(
        FoldError,
        what="fold 'blocks.0.mlp'",
        got="1 zero gains in the host's LayerNorm, or infinite ones",
    ):
        fold(model, report=quiet)


def test_lora_beside_a_whole_mlp_is_refused() -> None:
    model = moved(adapt(vit(), Lora(2), targets=["mlp"]))
    with refused(FoldError, what="fold 'blocks.0.mlp'", got="a linear adapter beside Mlp"):
        fold(model, report=quiet)


class Constant(Cell):
    """A cell of an unknown kind."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)


def test_an_unknown_cell_is_refused() -> None:
    with refused(FoldError, what="fold 'fc'"):
        fold_cell(nn.Linear(3, 3).double(), Constant(), "fc", "parallel")


def test_a_host_that_computes_something_else_is_found() -> None:
    class Doubled(timm.layers.Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(super().forward(x))

    site = Site("mlp", 8, 8)
    generator = torch.Generator().manual_seed(0)
    method = Bottleneck(4, activation="gelu", norm="none", init="houlsby", scale=1.0)
    cell = method.build(site, generator=generator)
    with refused(
        FoldError,
        what="fold 'mlp'",
        got="outputs that differ by 2.1e+00 (6.9e-01 of the largest output)",
    ):
        fold_cell(exact(Doubled(8, 16, 8)), moved(cell), "mlp", "parallel")
    assert fold_cell(exact(timm.layers.Mlp(8, 16, 8)), cell, "mlp", "parallel") == "widened"


def test_which_adapter_must_be_clear() -> None:
    model = adapted()
    with refused(UnknownName, what="unknown adapter", got="'defualt'"):
        fold(model, name="defualt", report=quiet)
    with model.disable_adapter(), refused(ConfigError, what="active adapter"):
        fold(model, report=quiet)
    with refused(FoldError, what="fold", got="VisionTransformer, which carries no adapter"):
        fold(vit(), report=quiet)  # pyright: ignore[reportArgumentType]


def test_a_merged_adapter_is_not_folded_twice() -> None:
    model = adapted(vit, Lora(2))
    model.merge_adapter()
    with refused(FoldError, what="fold", got="a model with ['default'] merged into its weights"):
        fold(model, report=quiet)
    model.unmerge_adapter()
    fold(model, report=quiet)


def test_unlike_widths_become_one() -> None:
    model = adapted(vit, GELU, layers=[1])
    widths = [m.hidden for m in mlps(fold(model, report=quiet)).values()]
    stock = fold(model, uniform=True, report=quiet)
    assert widths == [96, 102]
    assert [m.hidden for m in mlps(stock).values()] == [102, 102]
    assert (said(stock, images()) - said(model.eval(), images())).abs().max() < 1e-5
    assert pad(stock) == 0


@pytest.mark.parametrize("layers", [None, [0]], ids=["all blocks", "one block"])
@pytest.mark.parametrize("host", ["transformers vit", "transformers dinov2"])
def test_transformers_loads_a_uniform_model_again(
    host: str, layers: list[int] | None, tmp_path: Path
) -> None:
    model = adapted(HOSTS[host], GELU, layers=layers, classes=list("abcde"))
    stock = fold(model, uniform=True, report=quiet)
    stock.save_pretrained(tmp_path)
    again = type(stock).from_pretrained(tmp_path).eval()
    assert torch.equal(said(again, images()), said(stock, images()))
    assert again.config.id2label == dict(enumerate("abcde"))


def test_a_config_that_cannot_say_the_width_is_named() -> None:
    lines: list[str] = []
    fold(adapted(HOSTS["transformers dinov2"]), report=lines.append)
    assert "Dinov2Config" in lines[0] and "uniform=True" in lines[0]


def test_class_names_come_along() -> None:
    stock = fold(adapted(classes=["a", "b", "c", "d", "e"]), report=quiet)
    assert stock.pretrained_cfg["label_names"] == ["a", "b", "c", "d", "e"]


def test_a_tied_weight_changes_in_one_place_only() -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    before = b.weight.detach().clone()
    add_weight(a, torch.ones(3, 3), "a")
    assert torch.equal(b.weight, before) and torch.equal(a.weight, before + 1)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (nn.GELU(), timm.layers.GELU(), True),
        (nn.SiLU(), timm.layers.create_act_layer("swish"), True),
        (nn.GELU(), nn.GELU("tanh"), False),
        (nn.GELU(), timm.layers.create_act_layer("quick_gelu"), False),
        (nn.ReLU(), nn.ReLU6(), False),
        (nn.ReLU(), nn.GLU(), False),
    ],
)
def test_activations_are_compared_by_value(a: nn.Module, b: nn.Module, equal: bool) -> None:
    assert same_function(a, b) is equal


def test_an_mlp_is_known_by_its_parts() -> None:
    assert plain_mlp(timm.layers.Mlp(4, 8, 4)) is not None
    assert plain_mlp(timm.layers.ConvMlp(4, 8, 4)) is not None
    assert plain_mlp(timm.layers.GlobalResponseNormMlp(4, 8, 4)) is None
    spatial = timm.layers.ConvMlp(4, 8, 4)
    spatial.fc1 = nn.Conv2d(4, 8, 3, padding=1)
    assert plain_mlp(spatial) is None


def test_a_cell_of_other_widths_is_refused() -> None:
    cell = Bottleneck(2, activation="gelu", norm="none").build(
        Site("mlp", 5, 5), generator=torch.Generator()
    )
    with refused(FoldError, what="fold 'mlp'", got="an adapter 5 -> 5"):
        widen(timm.layers.Mlp(4, 8, 4), cell.units(), "mlp")
