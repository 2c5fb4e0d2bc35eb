"""adapt on every architecture: the trunk stays, cells and head learn, files bring it back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method
from intarsia.core.errors import ConfigError, TargetError
from intarsia.folders.saved import load
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.adapt import find_heads
from intarsia.hosts.attach.config import IntarsiaConfig
from intarsia.hosts.attach.peft import IntarsiaLayer
from intarsia.methods import Adamix, Mosa, Mosl
from intarsia.train.record import parameter_counts

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings(  # PEFT asks a transformers 5 model by the old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

Make = Callable[[str], nn.Module]
Run = Callable[..., Tensor]

LINEAR = ("qkv", "projection", "mlp_linear")
METHODS: dict[str, Method] = {
    "adaptformer": Bottleneck(4, norm="layer"),
    "pfeiffer": Bottleneck(4, "pfeiffer"),
    "houlsby": Bottleneck(4, "houlsby"),
    "adapter+": Bottleneck(4, "adapter+"),
    "lora": Lora(2, roles=LINEAR),
    "mosa": Mosa(Bottleneck(4, "adapter+", init="zero"), experts=2),
    "mosl": Mosl(2, experts=2),
    "adamix": Adamix(Bottleneck(4, norm="layer"), experts=2, draw="sample"),
}
HOSTS = ("vit", "deit", "dinov2", "swin", "convnext", "convnext_conv_mlp", "convnextv2",
         "efficientnet", "hf_vit", "hf_dinov2")  # fmt: skip
NO_ATTENTION = ("convnext", "convnext_conv_mlp", "convnextv2", "efficientnet")
# every method on one host; on the others a mixture, a change of weights, and what sits at attention
CASES = [("vit", method) for method in METHODS] + [
    (host, method)
    for host in HOSTS[1:]
    for method in ("mosa", "lora", "houlsby")
    if not (method == "houlsby" and host in NO_ATTENTION)
]


@pytest.mark.thorough
@pytest.mark.parametrize(("host", "key"), CASES)
def test_trunk_stays_and_files_bring_the_rest_back(
    make: Make, images: Callable[[str], Tensor], logits: Run, train: Callable[..., None],
    tmp_path: Path, host: str, key: str,
) -> None:  # fmt: skip
    x = images(host)
    model = adapt(make(host), METHODS[key])
    trunk = {n: t.clone() for n, t in make(host).state_dict().items()}
    before = logits(model, x).detach()
    assert (before - logits(make(host), x)).abs().max() < 1e-2  # near-identity at the start
    train(model, x)
    y = logits(model, x)
    assert not torch.allclose(y, before)
    model.save_pretrained(tmp_path)
    loaded = load(make(host), tmp_path)
    assert not loaded.training
    torch.testing.assert_close(logits(loaded, x), y, rtol=1e-5, atol=1e-6)
    # weights, and the statistics of batch norms, after training in training mode
    bare = model.unload().state_dict()
    heads = tuple(f"{h}." for h in find_heads(make(host)))
    assert all(torch.equal(bare[n], t) for n, t in trunk.items() if not n.startswith(heads))


@pytest.mark.parametrize(
    "method",
    [
        METHODS["lora"],
        METHODS["adamix"],
        Mosa(Bottleneck(4), split="both"),
        # with the buffers that only some settings have: a start that is not 0, shrinking copies
        Mosa(Bottleneck(4, init="houlsby"), experts=2, split="both", decay="delta"),
        Mosa(
            Bottleneck(4), experts=2, split="down", scaling="paper", decay="official", draw="batch"
        ),
    ],
)
def test_peft_loads_the_same_files(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None], tmp_path: Path,
    method: Method,
) -> None:  # fmt: skip
    x, model = images("vit"), adapt(make("vit"), method)
    train(model, x)
    model.save_pretrained(tmp_path)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(
            make("vit"), tmp_path, adapter_name="other", low_cpu_mem_usage=low
        )
        assert torch.equal(loaded(x), model(x))
        pairs = zip(model.state_dict().items(), loaded.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for (_, a), b in pairs)
        assert not any(t.is_meta for t in loaded.state_dict().values())


@pytest.mark.parametrize(
    ("host", "heads"),
    [("vit", ["head"]), ("deit", ["head", "head_dist"]), ("swin", ["head.fc"]),
     ("convnext", ["head.fc"]), ("efficientnet", ["classifier"]), ("hf_vit", ["classifier"]),
     ("repvit", ["head.head", "head.head_dist"])],
)  # fmt: skip
def test_the_head_is_found_and_trained(make: Make, host: str, heads: list[str]) -> None:
    assert find_heads(make(host)) == heads
    model = adapt(make(host), Lora(2))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    for head in heads:
        place = f"base_model.model.{head}.modules_to_save.default."
        assert any(n.startswith(place) and n.endswith("weight") for n in trained)
    assert all("intarsia_cells" in n or "modules_to_save" in n for n in trained)
    counts, sizes = parameter_counts(model), {n: p.numel() for n, p in model.named_parameters()}
    cells = sum(size for name, size in sizes.items() if "intarsia_cells" in name)
    assert counts["trained_without_head"] == cells


def test_no_head_is_trained_where_none_is_wanted_or_there(make: Make) -> None:
    assert not any("modules_to_save" in n for n, _ in adapt(make("vit"), Lora(2), head=None)
                   .named_parameters())  # fmt: skip
    headless = make("vit")
    headless.reset_classifier(0)
    assert adapt(headless, Lora(2)).peft_config["default"].modules_to_save is None


def test_other_heads_can_be_named(make: Make) -> None:
    model = adapt(make("vit"), Lora(2), head=["blocks.1.norm2", "head"])
    assert model.peft_config["default"].modules_to_save == ["blocks.1.norm2", "head"]
    with refused(TargetError, what="head 'haed'", got="no module of that path"):
        adapt(make("vit"), Lora(2), head="haed")
    # PEFT would train every norm whose name ends so
    with refused(TargetError, what="head 'norm'"):
        adapt(make("vit"), Lora(2), head=["norm"])


def test_a_head_is_no_target(make: Make) -> None:
    with refused(TargetError, what="target 'head'"):
        adapt(make("vit"), Lora(2), targets=["head"])
    assert isinstance(
        adapt(make("vit"), Lora(2), targets=["head"], head=None).get_base_model().head,
        IntarsiaLayer,
    )


def test_only_the_sites_found_are_adapted_though_other_names_end_alike(tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(4, 4)
            self.other = nn.ModuleDict({"fc": nn.Linear(4, 4)})

    for target in ("fc", "other.fc"):
        model = adapt(Twins(), Lora(2), targets=[target], head=None)
        paths = [m.path for m in model.modules() if isinstance(m, IntarsiaLayer)]
        assert paths == [target]
        model.save_pretrained(tmp_path)
        paths = [m.path for m in load(Twins(), tmp_path).modules() if isinstance(m, IntarsiaLayer)]
        assert paths == [target]


def test_one_seed_gives_every_method_the_same_down_projection(make: Make) -> None:
    def downs(method: Method, seed: int) -> list[Tensor]:
        model = adapt(make("vit"), method, seed=seed)
        return [p for n, p in model.named_parameters() if n.endswith("down.weight")]

    plain = downs(Bottleneck(4, activation="gelu"), 0)
    mosa = downs(Mosa(Bottleneck(4, activation="gelu")), 0)
    assert all(torch.equal(a, b) for a, b in zip(plain, mosa, strict=True))
    assert not torch.equal(plain[0], plain[1])  # each site its own
    assert not torch.equal(plain[0], downs(Bottleneck(4, activation="gelu"), 1)[0])


def test_first_weights_do_not_hang_on_torchs_own_generator(make: Make) -> None:
    a = adapt(make("vit"), Mosa(Bottleneck(4)))
    host = make("vit")
    torch.manual_seed(9)
    b = adapt(host, Mosa(Bottleneck(4)))
    for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("name", ["", "a.b", "keys", "training"])
def test_a_name_that_torch_cannot_use_is_refused(make: Make, name: str) -> None:
    with refused(
        ConfigError, what="adapter name", want="a name without dots that torch does not use itself"
    ):
        adapt(make("vit"), Lora(2), name=name)


def test_a_name_in_use_is_refused(make: Make) -> None:
    model = adapt(make("vit"), Lora(2))
    with refused(ConfigError, what="adapter name", got="'default'"):
        adapt(model, Lora(2))


def test_a_model_of_pefts_own_adapters_is_refused(make: Make) -> None:
    model = get_peft_model(make("vit"), LoraConfig(target_modules=["qkv"]))
    with refused(ConfigError, what="model", got="a PeftModel with adapters of PEFT's own"):
        adapt(model, Lora(2))


def test_settings_of_no_listed_method_are_refused(make: Make) -> None:
    @dataclass(frozen=True)
    class Mine(Bottleneck):
        pass

    host = make("vit")
    with refused(
        ConfigError,
        what="method",
        got="tests.hosts.test_adapt.test_settings_of_no_listed_method_are_refused.<locals>.Mine",
    ):
        adapt(host, Mine())
    with pytest.raises(ConfigError):
        adapt(host, Lora)  # pyright: ignore[reportArgumentType]
    assert all(p.requires_grad for p in host.parameters())


def test_a_site_that_fails_late_leaves_no_trace(
    make: Make, images: Callable[[str], Tensor]
) -> None:
    host = make("vit")
    with torch.no_grad():
        host.blocks[1].norm2.weight[3] = 0  # the second of two sites
    names, y = [n for n, _ in host.named_modules()], host(images("vit"))
    host.blocks[0].train()
    modes = [m.training for m in host.modules()]
    with refused(TargetError, what="norm='residual' at 'blocks.1.mlp'"):
        adapt(host, Bottleneck(4))
    assert [n for n, _ in host.named_modules()] == names
    assert [m.training for m in host.modules()] == modes
    assert all(p.requires_grad for p in host.parameters())
    assert not hasattr(host, "peft_config")
    assert torch.equal(host.eval()(images("vit")), y)
    adapt(host, Bottleneck(4), layers=[0])


def test_a_second_adapter_that_fails_leaves_the_first(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None]
) -> None:
    x = images("vit")
    model = adapt(make("vit"), Lora(2), name="first")
    train(model, x)
    y, names = model(x), [n for n, _ in model.named_modules()]
    with torch.no_grad():
        model.get_base_model().blocks[1].norm2.weight[3] = 0
    y = model(x)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    with refused(TargetError, what="norm='residual' at 'blocks.1.mlp'"):
        adapt(model, Bottleneck(4), name="second")
    assert [n for n, _ in model.named_modules()] == names
    assert list(model.peft_config) == ["first"]
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trained
    assert torch.equal(model(x), y)


@pytest.mark.parametrize(
    ("targets", "method"), [(["fc1"], Lora(2)), (["blocks.0"], Bottleneck(4, "adapter+"))]
)
def test_a_site_inside_or_around_an_adapted_module_is_refused(
    make: Make, targets: list[str], method: Method
) -> None:
    model = adapt(make("vit"), Bottleneck(4), name="beside")
    with pytest.raises(TargetError, match="carries an adapter already"):
        adapt(model, method, name="other", targets=targets)
    # and where PEFT is asked directly, which would skip the module without a word
    config = IntarsiaConfig(method="lora", target_modules=targets)
    with pytest.raises(TargetError, match="carries an adapter already"):
        model.add_adapter("other", config)
    assert list(model.peft_config) == ["beside"]


def test_a_transformers_model_is_wrapped_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    config = LlamaConfig(
        vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        adapt(LlamaForCausalLM(config), Lora(2))
    assert not [str(w.message) for w in recwarn]
