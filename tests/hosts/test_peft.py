"""Several adapters, switching, mixed batches, draws, merging: what the plug-in adds to PEFT."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.core.errors import ConfigError, FoldError, TargetError
from intarsia.folders.saved import load
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.config import IntarsiaConfig
from intarsia.hosts.attach.peft import IntarsiaLayer, IntarsiaModel
from intarsia.methods import Mosa, Mosl
from intarsia.routers import random_routers

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(  # PEFT asks a transformers 5 model by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Make = Callable[[str], nn.Module]
Images = Callable[[str], Tensor]
Run = Callable[..., Tensor]
MOSA = Mosa(Bottleneck(4, norm="layer"), experts=2)


@pytest.fixture
def two(make: Make, images: Images, train: Callable[..., None]) -> PeftModel:
    """A ViT with "mosa" (active) on its MLPs and "lora" on its attentions, both trained."""
    model = adapt(make("vit"), MOSA, name="mosa")
    train(model, images("vit"))
    adapt(model, Lora(2), name="lora")
    model.set_adapter("lora")
    train(model, images("vit"))
    model.set_adapter("mosa")
    return model.eval()


def outputs(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    results = {}
    for name in ("mosa", "lora"):
        model.set_adapter(name)
        results[name] = model(x)
    model.set_adapter("mosa")
    with model.disable_adapter():
        results["__base__"] = model(x)
    return results


def test_adding_an_adapter_changes_nothing(make: Make, images: Images) -> None:
    x, model = images("vit"), adapt(make("vit"), Lora(2), name="one")
    y, trained = model(x), [n for n, p in model.named_parameters() if p.requires_grad]
    adapt(model, Bottleneck(4), name="two")
    assert model.active_adapters == ["one"]
    assert torch.equal(model(x), y)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained


@pytest.mark.parametrize("mode", [True, False])
def test_a_cell_takes_the_mode_of_the_model_it_comes_into(make: Make, mode: bool) -> None:
    model = adapt(make("vit").train(mode), MOSA, name="one")
    adapt(model, MOSA, name="two")
    layers = [m for m in model.modules() if isinstance(m, IntarsiaLayer)]
    assert {m.training for layer in layers for m in layer.modules()} == {mode}


def test_switching_and_disabling(two: PeftModel, make: Make, images: Images) -> None:
    x = images("vit")
    logits = outputs(two, x)
    assert torch.equal(logits["__base__"], make("vit")(x))
    assert not torch.allclose(logits["mosa"], logits["lora"])
    assert torch.equal(two(x), logits["mosa"])


def test_only_the_active_adapter_and_head_are_trainable(two: PeftModel) -> None:
    for name in ("lora", "mosa"):
        two.set_adapter(name)
        trained = [n for n, p in two.named_parameters() if p.requires_grad]
        assert trained
        assert all(f".{name}." in n for n in trained)


def test_two_active_adapters_add_up(make: Make, images: Images) -> None:
    x, model = images("vit"), make("vit")
    for name, method in (("a", Lora(2)), ("b", Lora(3))):
        model = adapt(model, method, name=name, head=None)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".up." in n:
                p.fill_(0.02)
    layer = model.get_base_model().blocks[0].attn.qkv
    tokens = torch.randn(2, 3, 32)
    model.base_model.set_adapter(["a", "b"])
    cells = layer.intarsia_cells
    want = layer.base_layer(tokens) + cells["a"](tokens) + cells["b"](tokens)
    torch.testing.assert_close(layer(tokens), want)
    assert model(x).isfinite().all()


def test_mixed_batches(two: PeftModel, images: Images) -> None:
    x = images("vit")
    logits = outputs(two, x)
    names = ["lora", "mosa", "__base__", "mosa"]
    mixed = two(x, adapter_names=names)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], logits[name][i])
    assert torch.equal(two(x), logits["mosa"])  # the hooks are gone again


@pytest.mark.parametrize("host", ["swin", "convnext_conv_mlp", "efficientnet", "hf_vit"])
def test_mixed_batches_elsewhere(make: Make, images: Images, logits: Run, host: str) -> None:
    x = images(host)
    model = make(host)
    # Swin's attention gets windows, several for each image
    placement = "houlsby" if host == "swin" else "adapter+"
    for name, width in (("a", 4), ("b", 2)):
        model = adapt(model, Bottleneck(width, placement), name=name)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".up." in n:
                p.add_(0.05)
    model.eval()
    names = ["b", "a", "a", "b"]
    key = {"pixel_values": x} if host.startswith("hf") else {"x": x}
    mixed = model(**key, adapter_names=names)
    mixed = getattr(mixed, "logits", mixed)
    for name in ("a", "b"):
        model.set_adapter(name)
        rows = [i for i, n in enumerate(names) if n == name]
        torch.testing.assert_close(mixed[rows], logits(model, x)[rows])


@pytest.mark.parametrize(
    ("names", "got"),
    [(["mosa"], "1 names for 4 samples"), (["mosa", "x", "lora", "mosa"], "['x']")],
)
def test_wrong_adapter_names_are_refused(
    two: PeftModel, images: Images, names: list[str], got: str
) -> None:
    with refused(ConfigError, got=got):
        two(images("vit"), adapter_names=names)


def test_adapter_names_in_training_are_refused(two: PeftModel, images: Images) -> None:
    with refused(ConfigError, what="adapter_names", got="a model in training mode"):
        two.train()(images("vit"), adapter_names=["mosa"] * 4)


@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted:UserWarning")
@pytest.mark.parametrize("gone", ["mosa", "lora"])
@pytest.mark.parametrize("active", ["mosa", "lora"])
def test_deleting(two: PeftModel, images: Images, gone: str, active: str) -> None:
    x = images("vit")
    logits = outputs(two, x)
    two.set_adapter(active)
    two.delete_adapter(gone)
    rest = "lora" if gone == "mosa" else "mosa"
    assert list(two.peft_config) == two.active_adapters == [rest]
    assert torch.equal(two(x), logits[rest])
    assert not [n for n in two.state_dict() if f".{gone}." in n]
    layers = [m for m in two.modules() if isinstance(m, IntarsiaLayer)]
    assert all(layer.active_adapters in ([rest], rest) for layer in layers)
    assert not [m for m in layers if gone in m.intarsia_sites]


def test_everything_saves_and_loads(
    two: PeftModel, make: Make, images: Images, tmp_path: object
) -> None:
    x = images("vit")
    logits = outputs(two, x)
    two.save_pretrained(str(tmp_path))
    model = load(make("vit"), f"{tmp_path}/mosa", name="one")
    load(model, f"{tmp_path}/lora", name="two")
    assert torch.equal(model(x), logits["mosa"])
    model.set_adapter("two")
    assert torch.equal(model.eval()(x), logits["lora"])


def test_a_copy_is_a_model_of_its_own(two: PeftModel, images: Images) -> None:
    x = images("vit")
    twin = copy.deepcopy(two)
    assert torch.equal(twin(x), two(x))
    # its draws too: the same next ones, from a generator of its own
    a, b = two.train()(x), twin.train()(x)
    assert torch.equal(a, b)
    assert not torch.equal(a, two(x))
    host = twin.get_base_model()
    assert len(host._forward_pre_hooks) == 1
    assert not twin.unload()._forward_pre_hooks
    assert len(two.get_base_model()._forward_pre_hooks) == 1


@pytest.mark.parametrize("draw", ["sample", "batch"])
def test_each_call_draws_anew_and_a_pass_meets_one_draw(
    make: Make, images: Images, draw: str
) -> None:
    x, model = images("vit"), adapt(make("vit"), Mosa(Bottleneck(4), experts=4, draw=draw))
    routers = random_routers(model)
    assert len(routers) == 2
    assert all(router.context.hold for router in routers.values())
    model.train()
    draws_seen = set()
    for _ in range(12):
        model(x)
        draws = [tuple(r.held.flatten().tolist()) for r in routers.values()]
        assert draws == [tuple(r.held.flatten().tolist()) for r in routers.values()]
        draws_seen.add(tuple(draws))
    assert len(draws_seen) > 6
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_loaded_and_an_injected_model_draw_anew_too(
    make: Make, images: Images, tmp_path: object
) -> None:
    x = images("vit")
    adapt(make("vit"), MOSA).save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(make("vit"), str(tmp_path), is_trainable=True)
    config = IntarsiaConfig(method="mosa", options={"experts": 2}, init_weights=False)
    injected = inject_adapter_in_model(config, make("vit"))
    for model in (loaded, injected):
        with torch.no_grad():
            for n, p in model.named_parameters():
                if ".up." in n:
                    p.add_(0.1)
        model.train()
        assert len({model(x).sum().item() for _ in range(6)}) > 1


@pytest.mark.parametrize("method", [MOSA, Mosa(Bottleneck(4), draw="batch"), Mosl(2)])
@pytest.mark.parametrize("host", ["vit", "swin", "convnext", "hf_vit"])
def test_gradients_are_those_without_checkpointing(
    make: Make, images: Images, logits: Run, host: str, method: Method
) -> None:
    def gradients(checkpointing: bool, hold: bool = True) -> dict[str, Tensor]:
        model = adapt(make(host), method)
        with torch.no_grad():
            for n, p in model.named_parameters():
                if ".up." in n:
                    p.add_(0.1)
        for router in random_routers(model).values():
            router.context.hold = hold
        inner = model.get_base_model()
        if checkpointing and host.startswith("hf"):
            inner.activation_checkpointing_enable({"use_reentrant": False})
        elif checkpointing:
            inner.set_grad_checkpointing()
        model.train()
        logits(model, images(host)).square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)
    # the test can fail: without held draws the recomputation meets other experts
    loose = gradients(True, hold=False)
    assert any(not torch.allclose(loose[n], g, rtol=1e-3) for n, g in plain.items())


@pytest.mark.parametrize(
    ("method", "mode", "fullgraph"),
    [
        pytest.param(Bottleneck(4), "train", True, marks=pytest.mark.thorough),
        pytest.param(Lora(2), "train", True, marks=pytest.mark.thorough),
        (MOSA, "eval", True),
        # a draw from a generator breaks the graph: MoSA is compiled in pieces while it trains
        pytest.param(MOSA, "train", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiles(make: Make, images: Images, method: Method, mode: str, fullgraph: bool) -> None:
    x, model = images("vit"), adapt(make("vit"), method)
    getattr(model, mode)()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    torch.testing.assert_close(compiled(x), twin(x))


def test_frozen_batch_statistics_rest_in_training_mode(make: Make, images: Images) -> None:
    model = adapt(make("efficientnet").train(), Lora(2))
    trunk = model.get_base_model()
    before = {n: b.clone() for n, b in trunk.named_buffers() if "running" in n}
    assert before
    model(images("efficientnet"))
    model.train()
    model(images("efficientnet"))
    assert model.training
    assert trunk.blocks.training
    assert all(torch.equal(b, before[n]) for n, b in trunk.named_buffers() if n in before)
    trunk.bn1.requires_grad_(True)  # thawed by hand: it learns again
    model.train()
    model(images("efficientnet"))
    assert not torch.equal(trunk.bn1.running_mean, before["bn1.running_mean"])
    assert torch.equal(trunk.bn2.running_mean, before["bn2.running_mean"])


@pytest.mark.parametrize("host", ["vit", "swin", "convnext", "convnext_conv_mlp", "efficientnet",
                                  "hf_vit"])  # fmt: skip
@pytest.mark.parametrize("method", [Lora(2, roles=("qkv", "mlp_linear")), Mosl(2, experts=2)])
def test_linear_cells_merge(
    make: Make, images: Images, logits: Run, train: Callable[..., None], host: str, method: Method
) -> None:  # fmt: skip
    x, model = images(host), adapt(make(host), method)
    train(model, x)
    y = logits(model, x)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, x), y, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, x), y, rtol=1e-4, atol=1e-5)
    stock = model.merge_and_unload()
    assert type(stock) is type(make(host))
    assert [n for n, _ in stock.named_modules()] == [n for n, _ in make(host).named_modules()]
    assert not stock._forward_pre_hooks
    torch.testing.assert_close(logits(stock, x), y, rtol=1e-4, atol=1e-5)


def test_a_cell_that_is_not_linear_is_named_before_a_layer_is_touched(
    make: Make, images: Images
) -> None:
    model = adapt(make("vit"), Lora(2), name="lora", head=None)
    adapt(model, Bottleneck(4), name="beside", head=None)
    model.base_model.set_adapter(["lora", "beside"])
    before = {n: p.clone() for n, p in model.named_parameters()}
    with refused(FoldError, what="merging adapter 'beside' at 'blocks.0.mlp'"):
        model.merge_adapter()
    with refused(FoldError, what="merging adapter 'beside' at 'blocks.0.mlp'"):
        model.merge_and_unload()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(m.merged for m in model.modules() if isinstance(m, IntarsiaLayer))
    model.merge_adapter(["lora"])  # which can


def test_a_linear_cell_without_a_weight_to_change_is_named(make: Make) -> None:
    model = adapt(make("vit"), Lora(2), targets=["mlp"])
    with refused(FoldError, what="merging adapter 'default' at 'blocks.0.mlp'", got="Mlp"):
        model.merge_and_unload()


def test_unload_leaves_a_stock_model_with_the_trained_head(
    two: PeftModel, make: Make, images: Images
) -> None:
    trained = two.get_base_model().head.modules_to_save["mosa"].weight.clone()
    bare = two.unload()
    assert [n for n, _ in bare.named_modules()] == [n for n, _ in make("vit").named_modules()]
    assert torch.equal(bare.head.weight, trained)
    assert not bare._forward_pre_hooks
    adapt(bare, Lora(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_half_precision_trunks_carry_float32_cells(
    make: Make, images: Images, tmp_path: object, dtype: torch.dtype
) -> None:
    method = Mosa(Bottleneck(4, init="houlsby"))  # with floating buffers: a start, the host's norm
    adapt(make("vit"), method).save_pretrained(str(tmp_path))
    for model in (adapt(make("vit").to(dtype), method), load(make("vit").to(dtype), str(tmp_path))):
        cells = [m.intarsia_cells for m in model.modules() if isinstance(m, IntarsiaLayer)]
        floats = {t.dtype for c in cells for t in c.state_dict().values() if t.is_floating_point()}
        assert floats == {torch.float64 if dtype == torch.float64 else torch.float32}
        assert model(images("vit").to(dtype)).dtype == dtype


def test_peft_can_be_asked_directly(make: Make) -> None:
    model = get_peft_model(make("swin"), IntarsiaConfig(method="lora", layers_to_transform=[0, 2]))
    paths = [m.path for m in model.modules() if isinstance(m, IntarsiaLayer)]
    assert paths == ["layers.0.blocks.0.attn.qkv", "layers.1.blocks.1.attn.qkv"]
    assert isinstance(model.base_model, IntarsiaModel)
    # PEFT's own pattern finds no layer in timm's `blocks.1.`
    config = IntarsiaConfig(method="bottleneck", target_modules=["mlp"], layers_to_transform=[1])
    model = get_peft_model(make("vit"), config)
    assert [m.path for m in model.modules() if isinstance(m, IntarsiaLayer)] == ["blocks.1.mlp"]
    with refused(TargetError, what="head 'haed'", got="no module of that name"):
        get_peft_model(make("vit"), IntarsiaConfig(modules_to_save=["haed"]))


def test_status_and_conversion_answer(two: PeftModel) -> None:
    status = two.get_model_status()
    assert (status.peft_types, status.active_adapters) == (
        {"mosa": "INTARSIA", "lora": "INTARSIA"}, ["mosa"],
    )  # fmt: skip
    layer = two.get_base_model().blocks[0].attn.qkv
    assert layer.supports_lora_conversion("lora")
    assert not two.get_base_model().blocks[0].mlp.supports_lora_conversion("mosa")
    assert layer.get_delta_weight("lora").shape == layer.base_layer.weight.shape
