"""A blend of models in forms that need nothing of this library: timm, ONNX, torch.export."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ...core.errors import ConfigError
from ...core.files import writing
from ...data.transforms import InputConfig
from ...train.blend import blended
from .export import export_timm
from .graphs import Graph, Logits, needs, prepared, target_of, write_onnx, write_program
from .preprocessing import KEY, SCRIPT, described_blend, script

Report = Callable[[str], None]
MEMBERS = "members"


@dataclass(frozen=True, eq=False)
class BlendMember:
    """A model of a blend.

    inputs: how it wants pictures.  weight: of its probabilities; all members' add up to 1.
    temperature: by which its logits are divided.  images: a batch of prepared pictures, the same
    ones for each member, on which outputs are compared; None = noise.
    """

    model: nn.Module
    inputs: InputConfig
    weight: float
    temperature: float = 1.0
    images: Tensor | None = None


class Blended(nn.Module):
    """Several models as one, with a batch of pictures for each -> log-probabilities.

    models: batch -> logits (B, K).  weights, temperatures, several_labels: see `blended`.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        weights: Sequence[float],
        temperatures: Sequence[float],
        several_labels: bool,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.weights, self.temperatures = tuple(weights), tuple(temperatures)
        self.several_labels = several_labels

    def forward(self, *pixels: Tensor) -> Tensor:
        """Compute log p, or log-odds of several labels, (B, K).  pixels: (B, C, H, W) of each."""
        logits = [model(batch) for model, batch in zip(self.models, pixels, strict=True)]
        return blended(logits, self.weights, self.temperatures, self.several_labels)


def export_blend_timm(
    members: Sequence[BlendMember],
    path: str | Path,
    *,
    classes: Sequence[str],
    several_labels: bool = False,
    report: Report = print,
) -> Path:
    """Write folded timm models as a folder of folders that timm opens, with one script on top.

    The folder has `members/0` and on, each as `export_timm` writes and checks it, `config.json`
    with weights, temperatures and what turns a picture into each member's input, and `predict.py`,
    which needs Pillow, numpy and timm. An earlier export at `path` is replaced, anything else is
    not.

    several_labels: outputs are logits of labels that may apply together.
    Raises: as `export_timm` for each member.
    """
    target = Path(path)
    _check_members(members)
    content = {
        "weights": [member.weight for member in members],
        "temperatures": [member.temperature for member in members],
        KEY: _preprocessing(members, classes, several_labels),
    }
    with writing(target, refuse_loss=True) as scratch:
        (scratch / MEMBERS).mkdir(parents=True)
        for number, member in enumerate(members):
            export_timm(
                member.model,
                scratch / MEMBERS / str(number),
                classes=classes,
                inputs=member.images,
                preprocessing=member.inputs,
                several_labels=several_labels,
                # in words of the place where the folder will be
                report=lambda line: report(line.replace(str(scratch), str(target))),
            )
        (scratch / "config.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        (scratch / SCRIPT).write_text(script("timm", target, blend=True), "utf-8")
    report(f"All members together, without intarsia: python {target / SCRIPT} PICTURES")
    return target


def export_blend_onnx(
    members: Sequence[BlendMember],
    path: str | Path,
    *,
    classes: Sequence[str],
    several_labels: bool = False,
    tolerance: float | None = None,
    report: Report = print,
) -> Path:
    """Write a blend as one ONNX file: `pixels_0`, `pixels_1` ... -> `logits` (B, K), any B.

    `logits` are the logarithms of the blend's probabilities (log-odds of several labels); their
    softmax (sigmoid) is the blend. Metadata, script and checks are as in `export_onnx`, with an
    input for each member.
    Raises: as `export_onnx`.
    """
    target = target_of(path, ".onnx")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package)
    return write_onnx(_graph(members, classes, several_labels), target, tolerance, report)


def export_blend_program(
    members: Sequence[BlendMember],
    path: str | Path,
    *,
    classes: Sequence[str],
    several_labels: bool = False,
    tolerance: float | None = None,
    report: Report = print,
) -> Path:
    """Write a blend as one torch.export program, *.pt2, of a batch of pictures for each member.

    Outputs are as in `export_blend_onnx`; extra files, script and checks as in `export_program`.
    Raises: as `export_program`.
    """
    target = target_of(path, ".pt2")
    return write_program(_graph(members, classes, several_labels), target, tolerance, report)


def _graph(members: Sequence[BlendMember], classes: Sequence[str], several_labels: bool) -> Graph:
    _check_members(members)
    parts = [prepared(member.model, member.images, member.inputs) for member in members]
    models: list[Logits] = [model for model, _ in parts]
    weights = [member.weight for member in members]
    temperatures = [member.temperature for member in members]
    module = Blended(models, weights, temperatures, several_labels).eval()
    batches = tuple(batch for _, batch in parts)
    return Graph(module, batches, _preprocessing(members, classes, several_labels), classes)


def _preprocessing(
    members: Sequence[BlendMember], classes: Sequence[str], several: bool
) -> dict[str, object]:
    """Return what turns a picture into each member's input, as JSON."""
    return described_blend([member.inputs for member in members], classes, several)


def _check_members(members: Sequence[BlendMember]) -> None:
    """Check that there are two members or more.  Raises: ConfigError."""
    if len(members) < 2:
        fix = "Export a single model by export_timm, export_onnx or export_program."
        raise ConfigError("members", got=len(members), want="two or more", fix=fix)
