"""Exports: what was written says the same when it is read without our code."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Method, files
from intarsia.core.errors import ConfigError, ExportError, MissingExtra, TrainingError
from intarsia.folders.out import export as export_module
from intarsia.folders.out.export import export_timm, ratio_for, whole_width
from intarsia.folders.out.graphs import export_onnx, export_program
from intarsia.folders.verbs import adapt
from intarsia.hosts.anatomy.compare import difference, image_shape, sample
from intarsia.hosts.folding.fold import fold
from intarsia.hosts.folding.widen import mlps
from intarsia.methods import Mosa, Mosl

from ..refusals import refused
from ..toys import quiet

# PEFT asks a transformers model for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

NAMES = ["ant", "bee", "crow", "dog", "elk"]
GELU = Bottleneck(6, activation="gelu")


def vit(**settings: Any) -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", **sizes | settings, num_classes=5)


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=16, depths=(1, 1),
        num_heads=(1, 2), num_classes=5,
    )  # fmt: skip


def convnext() -> nn.Module:
    settings: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 24)}
    model = timm.create_model("convnext_atto", num_classes=5, ls_init_value=1.0, **settings)
    vars(model)["pretrained_cfg"]["input_size"] = (3, 32, 32)
    return model


def transformers_vit() -> nn.Module:
    config = ViTConfig(
        image_size=32, patch_size=16, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=96, num_labels=5,
    )  # fmt: skip
    return ViTForImageClassification(config)


def adapted(host: nn.Module, method: Method = GELU, **settings: Any) -> nn.Module:
    model = adapt(host, method, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def folded(host: nn.Module, method: Method = GELU, **settings: Any) -> nn.Module:
    return fold(adapted(host, method, **settings), report=quiet)  # pyright: ignore


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def said(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(x)
    return out if isinstance(out, torch.Tensor) else out.logits


HOSTS = {"vit": vit, "swin": swin}


@pytest.mark.parametrize("method", [Mosa(GELU), Mosl(2)], ids=["mosa", "mosl"])
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS.keys())
def test_timm_builds_the_model_again(host: Any, method: Method, tmp_path: Path) -> None:
    stock, x = folded(host(), method, classes=NAMES), images()
    folder = export_timm(stock, tmp_path / "out", report=quiet)
    names = {"config.json", "digests.json", "model.safetensors", "predict.py"}
    assert {p.name for p in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    args, file = config["model_args"], folder / "model.safetensors"
    assert config["pretrained_cfg"]["label_names"] == NAMES
    assert {"mean", "std", "input_size"} <= config["pretrained_cfg"].keys()
    assert ("mlp_ratio" in args) == (method == Mosa(GELU))
    name = config["architecture"]
    by_hand = timm.create_model(name, **args)
    by_hand.load_state_dict(load_file(file), strict=True)
    overlay = {"file": str(file), "num_classes": 5}
    for again in (
        by_hand,
        timm.create_model(f"local-dir:{folder}", pretrained=True),
        timm.create_model(name, checkpoint_path=file, **args),
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **args),
    ):
        assert torch.equal(said(again, x), said(stock, x))


def test_unlike_widths_are_padded_in_a_copy(tmp_path: Path) -> None:
    stock, lines = folded(vit(), GELU, layers=[1]), []
    folder = export_timm(stock, tmp_path / "out", report=lines.append)
    assert [m.hidden for m in mlps(stock).values()] == [96, 102]
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert [m.hidden for m in mlps(again).values()] == [102, 102]
    assert (said(again, images()) - said(stock, images())).abs().max() < 1e-5
    assert "6 zero units" in lines[0]


def test_a_stock_model_exports_too(tmp_path: Path) -> None:
    folder = export_timm(vit(global_pool="avg"), tmp_path / "out", classes=NAMES, report=quiet)
    assert json.loads((folder / "config.json").read_text())["label_names"] == NAMES


def test_half_precision_comes_back_bit_by_bit(tmp_path: Path) -> None:
    folder = export_timm(folded(vit()).to(torch.bfloat16), tmp_path / "out", report=quiet)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_what_timm_cannot_build_is_refused(tmp_path: Path) -> None:
    with refused(ExportError, what="export_timm of convnext_atto"):
        export_timm(folded(convnext()), tmp_path / "out", report=quiet)
    assert not list(tmp_path.iterdir())
    export_timm(folded(convnext(), Mosl(2)), tmp_path / "out", report=quiet)


def test_only_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    stock, out = folded(vit()), tmp_path / "out"
    out.mkdir()
    export_timm(stock, out, report=quiet)
    with torch.no_grad():
        stock.head.bias += 1
    export_timm(stock, out, report=quiet)
    assert torch.equal(load_file(out / "model.safetensors")["head.bias"], stock.head.bias)
    (out / "thesis.txt").write_text("keep me")
    with refused(
        ConfigError,
        what="path of the export",
        want="a new folder, an empty one, or an earlier export",
    ):
        export_timm(stock, out, report=quiet)
    assert (out / "thesis.txt").read_text() == "keep me"
    with refused(
        ConfigError,
        what="path of the export",
        want="a new folder, an empty one, or an earlier export",
    ):
        export_timm(stock, out / "thesis.txt", report=quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_that_comes_back_different_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = folded(vit())

    def damaged(model: nn.Module, folder: str, *args: Any, **kwargs: Any) -> None:
        timm.models.save_for_hf(model, folder, *args, **kwargs)
        file = Path(folder) / "model.safetensors"
        state = load_file(file)
        state["head.bias"][0] += 1e-3
        save_file(state, file)

    monkeypatch.setattr(export_module, "save_for_hf", damaged)
    with refused(ExportError, what="export_timm"):
        export_timm(stock, tmp_path / "out", report=quiet)
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_put_in_place_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, out = folded(vit()), tmp_path / "out"
    export_timm(stock, out, report=quiet)
    before = (out / "model.safetensors").read_bytes()

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "exchange", full)
    with refused(TrainingError, got="OSError: [Errno 28] No space left on device"):
        export_timm(stock, out, report=quiet)
    assert (out / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_bad_models_and_names_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refused(ConfigError, what="export_timm", got="a model with adapters in it"):
        export_timm(adapted(vit()), out, report=quiet)
    with refused(ConfigError, what="export_timm", got="a model with adapters in it"):
        export_timm(adapted(vit()).get_base_model(), out, report=quiet)  # pyright: ignore
    with refused(
        ConfigError, what="export_timm", got="ViTForImageClassification without a timm architecture"
    ):
        export_timm(transformers_vit(), out, report=quiet)
    for wrong in (NAMES[:4], ["ant"] * 5):
        with refused(ConfigError, what="classes", want="5, one for each output"):
            export_timm(folded(vit()), out, classes=wrong, report=quiet)
    assert not list(tmp_path.iterdir())


@given(inputs=st.integers(1, 4096), hidden=st.integers(1, 20_000))
def test_a_ratio_gives_its_width_back(inputs: int, hidden: int) -> None:
    ratio = json.loads(json.dumps(ratio_for(hidden, inputs)))
    assert whole_width(ratio, inputs) == hidden


def test_the_plain_quotient_would_not_do() -> None:
    inputs = [i for i in range(1, 2000) if int(i * ((4 * i + 7) / i)) != 4 * i + 7]
    assert inputs, "then ratio_for is needless"


def small() -> nn.Module:
    """Build a small model with dropout, which an export in training mode would keep."""
    return vit(depth=1, drop_rate=0.5)


def flat() -> nn.Module:
    """Build a model that is traced in no time."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))


GRAPHS: dict[str, Any] = {
    "folded vit": lambda: folded(small(), Mosa(GELU)),
    "adapted vit": lambda: adapted(small(), Mosa(GELU)),
    "adapted pfeiffer": lambda: adapted(small(), Bottleneck(6, "pfeiffer")),
    "folded swin": lambda: folded(swin()),
    "folded convnext": lambda: folded(convnext()),
    "adapted transformers vit": lambda: adapted(transformers_vit(), Lora(2)),
}
ONNX = ("folded vit", "folded swin", "adapted pfeiffer", "adapted transformers vit")
QUICK = ("folded vit", "adapted vit")


def kinds(names: tuple[str, ...]) -> list[Any]:
    """Return the models of these names; all but the quick ones are for the thorough tests."""
    return [
        pytest.param(GRAPHS[name], id=name, marks=() if name in QUICK else pytest.mark.thorough)
        for name in names
    ]


@pytest.mark.parametrize("make", kinds(tuple(GRAPHS)))
def test_a_program_says_the_same(make: Any, tmp_path: Path) -> None:
    model, path, lines = make().train(), tmp_path / "model.pt2", []
    flags = [p.requires_grad for p in model.parameters()]
    assert export_program(model, path, images=images(), report=lines.append) == path
    # it is as it was, and yet the file is of evaluation
    assert model.training and [p.requires_grad for p in model.parameters()] == flags
    program = torch.export.load(path).module()
    for batch in (1, 2, 5):
        assert (program(images(batch)) - said(model, images(batch))).abs().max() < 1e-5
    assert ("Without intarsia" in lines[0]) == (tmp_path / "model.pt2.predict.py").is_file()


@pytest.mark.parametrize("make", kinds(ONNX))
def test_onnxruntime_says_the_same(make: Any, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path, lines = make().train(), tmp_path / "model.onnx", []
    export_onnx(model, path, images=images(), classes=NAMES, report=lines.append)
    assert model.training
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        got = torch.from_numpy(session.run(["logits"], {"images": images(batch).numpy()})[0])
        want = said(model, images(batch))
        assert (got - want).abs().max() <= 1e-4 * want.abs().max()
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == NAMES
    assert "opset" in lines[0] and "difference" in lines[0]
    assert ("Without intarsia" in lines[0]) == (tmp_path / "model.onnx.predict.py").is_file()


def test_the_pictures_of_the_check_are_not_kept(tmp_path: Path) -> None:
    path = export_program(flat(), tmp_path / "m.pt2", images=images(), report=quiet)
    example = torch.export.load(path).example_inputs
    assert example is not None and not example[0][0].any()


@pytest.mark.thorough
def test_a_program_needs_nothing_of_ours(tmp_path: Path) -> None:
    path = export_program(adapted(small(), Mosa(GELU)), tmp_path / "m.pt2", report=quiet)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('intarsia', 'peft', 'timm'))); import torch;"
        "print(torch.export.load(sys.argv[1]).module()(torch.zeros(3, 3, 32, 32)).shape)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "[3, 5]" in run.stdout, run.stderr


@pytest.mark.parametrize("export", [export_onnx, export_program], ids=["onnx", "program"])
class TestBothGraphs:
    def suffix(self, export: Any) -> str:
        return "m.onnx" if export is export_onnx else "m.pt2"

    def test_a_difference_is_refused_and_nothing_is_written(
        self, export: Any, tmp_path: Path
    ) -> None:
        (old := tmp_path / self.suffix(export)).write_text("earlier")
        with pytest.raises(ExportError, match="differ"):
            export(flat(), old, images=images(), tolerance=-1.0, report=quiet)
        assert old.read_text() == "earlier" and [p.name for p in tmp_path.iterdir()] == [old.name]

    def test_bad_arguments_are_refused(self, export: Any, tmp_path: Path) -> None:
        with refused(ConfigError, what="path of the export"):
            export(vit(), tmp_path / "model.bin", report=quiet)
        with refused(ConfigError, what="images", got=(0, 3, 32, 32)):
            export(vit(), tmp_path / self.suffix(export), images=images(0), report=quiet)

    def test_what_cannot_be_traced_is_said(self, export: Any, tmp_path: Path) -> None:
        class Stubborn(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x if float(x.sum()) > 0 else -x

        with pytest.raises(ExportError, match="can trace"):
            export(Stubborn(), tmp_path / self.suffix(export), images=images(), report=quiet)


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_extra_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ImportError(f"No module named {name!r}")
        return plain(name, *args, **kwargs)

    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with refused(MissingExtra, got="not installed"):
        export_onnx(vit(), tmp_path / "m.onnx", report=quiet)


def test_sampled_images_fit_the_model() -> None:
    for host in (vit, swin, convnext, transformers_vit):
        model = host()
        assert image_shape(model) == (3, 32, 32)
        assert said(model, sample(model)).shape == (2, 5)
    assert torch.equal(sample(vit()), sample(vit()))
    assert sample(vit().double()).dtype == torch.float64


def test_a_difference_is_never_small_by_accident() -> None:
    ones = torch.ones(2)
    assert difference([ones], [ones]).relative == 0
    assert difference([ones], [ones[:1]]).relative == float("inf")
    assert difference([], []).relative == float("inf")
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ExportError):
            difference([ones * bad], [ones * bad]).check("x", 1.0, ExportError, "Look.")
