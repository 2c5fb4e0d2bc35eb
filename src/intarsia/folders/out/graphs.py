"""A model as a graph that runs without its Python code: ONNX, and torch.export.

Folded models, and adapted ones in evaluation, cells and all.
"""

from __future__ import annotations

import importlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import ConfigError, ExportError, MissingExtra
from ...core.files import writing
from ...core.foreign import logits_in
from ...data.transforms import InputConfig
from ...hosts.anatomy.blocks import base_of
from ...hosts.anatomy.compare import Difference, difference, sample, shared_copy, tolerance_of
from .preprocessing import KEY, described, inputs_of, write_script

Report = Callable[[str], None]
# bytes: larger weights do not fit into a protobuf, and go into a second file
ONE_FILE = 2_000_000_000
INPUT, OUTPUT = "images", "logits"


class Logits(nn.Module):
    """Model as images -> one tensor: timm's output, or a transformers classifier's logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, K) of images (B, C, H, W)."""
        out = self.model(images)
        # timm gives a tensor, transformers an object or a tuple
        if isinstance(out, Tensor):
            return out
        logits = logits_in(out)
        return logits if isinstance(logits, Tensor) else out[0]


@dataclass(frozen=True)
class Graph:
    """Model that is traced, or several that share their pictures.

    module: batches of pictures -> logits (B, K).  batches: one for each model, (B, C, H, W).  how:
    pictures become inputs, for the script, None = not known.  classes: names of the outputs.
    """

    module: nn.Module
    batches: tuple[Tensor, ...]
    how: Mapping[str, Any] | None
    classes: Sequence[str] | None

    @property
    def blend(self) -> bool:
        """True if the module has a batch for each of several models."""
        return len(self.batches) > 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(f"pixels_{i}" for i in range(len(self.batches))) if self.blend else (INPUT,)

    def examples(self) -> tuple[Tensor, ...]:
        """Return two blank images of each kind to trace with; one would be fixed in the graph."""
        return tuple(torch.zeros_like(batch[:1]).repeat(2, 1, 1, 1) for batch in self.batches)

    def any_batch(self) -> dict[str, Any]:
        """Return torch.export's `dynamic_shapes`: parameter of `forward` -> a batch of any size."""
        shape = {0: torch.export.Dim("batch")}
        return {"pixels": (shape,) * len(self.batches)} if self.blend else {"images": shape}


def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: Tensor | None = None,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: InputConfig | None = None,
    several_labels: bool = False,
    tolerance: float | None = None,
    report: Report = print,
) -> Path:
    """Write `images` (B, C, H, W) -> `logits` (B, K) as ONNX, any B, and check it in onnxruntime.

    The file's outputs are compared with the model's on `images`, on twice as many, and on one.
    torch chooses the operator set. Class names go into the metadata as JSON under "classes", and
    under "preprocessing" all that turns a picture file into an input; PATH.predict.py next to it
    does that, with Pillow, numpy and onnxruntime. Weights of more than 2 GB go into a second file,
    PATH.data.

    path: *.onnx; classes: names of the outputs; preprocessing: of the pictures in training; None =
    the model's own, if it has one; report: is given a line of text.
    several_labels: outputs are logits of labels that may apply together, for predict.py.
    images: a batch of prepared pictures, the best check; None = seeded noise of the model's input
    size.
    tolerance: largest output difference, relative to the largest output; None = by dtype.
    Raises: MissingExtra without intarsia[export]; ExportError if torch cannot trace the model or
    onnxruntime computes other outputs; ConfigError for a path that is not *.onnx.
    """
    target = target_of(path, ".onnx")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package)
    return write_onnx(
        _graph(model, images, preprocessing, classes, several_labels), target, tolerance, report
    )


def write_onnx(graph: Graph, target: Path, tolerance: float | None, report: Report) -> Path:
    """Write a graph as ONNX with its script, see `export_onnx`."""
    with writing(target) as scratch:
        program = _trace(
            lambda: torch.onnx.export(
                graph.module,
                graph.examples(),
                dynamo=True,
                verbose=False,
                input_names=[*graph.names],
                output_names=[OUTPUT],
                dynamic_shapes=graph.any_batch(),
            ),
            "export_onnx",
        )
        program.model.producer_name = "intarsia"
        if graph.classes is not None:
            program.model.metadata_props["classes"] = json.dumps(list(graph.classes))
        if graph.how is not None:
            program.model.metadata_props[KEY] = json.dumps(graph.how)
        # compared before the file gets its name: a wrong export never appears
        program.save(str(scratch), external_data=size_of(graph.module) > ONE_FILE)
        deviation = _largest_difference(graph, _runtime(scratch, graph.names))
        _check_difference("export_onnx", deviation, graph.module, tolerance)
    script = write_script("onnxruntime", target, graph.how, blend=graph.blend)
    opset = program.model.opset_imports.get("", "?")
    report(f"export_onnx: {target}, opset {opset}; largest output difference {deviation}.{script}")
    return target


def export_program(
    model: nn.Module,
    path: str | Path,
    *,
    images: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: InputConfig | None = None,
    several_labels: bool = False,
    tolerance: float | None = None,
    report: Report = print,
) -> Path:
    """Write a torch.export program of images (B, C, H, W), any B, and check the loaded file.

    torch.export.load(path).module()(images) needs torch and nothing of this library. Among the
    extra files of the program, "preprocessing.json" has the names of the classes and what turns a
    picture into an input; PATH.predict.py next to it reads them.
    path: *.pt2; images, classes, preprocessing, several_labels, tolerance, report: see export_onnx.
    Raises: ExportError if torch cannot trace the model or the loaded program computes other
    outputs; ConfigError for a path that is not *.pt2.
    """
    target = target_of(path, ".pt2")
    return write_program(
        _graph(model, images, preprocessing, classes, several_labels), target, tolerance, report
    )


def write_program(graph: Graph, target: Path, tolerance: float | None, report: Report) -> Path:
    """Write a graph as a torch.export program with its script, see `export_program`."""
    extra = {} if graph.how is None else {f"{KEY}.json": json.dumps(graph.how)}
    program = _trace(
        lambda: torch.export.export(
            graph.module, graph.examples(), dynamic_shapes=graph.any_batch()
        ),
        "export_program",
    )
    with writing(target) as scratch:
        # torch's own writer raises an error of its own on a full disk, or ends the process
        torch.export.save(program, (buffer := io.BytesIO()), extra_files=extra)
        scratch.write_bytes(buffer.getbuffer())
        loaded = torch.export.load(scratch).module()
        deviation = _largest_difference(graph, loaded)
        _check_difference("export_program", deviation, graph.module, tolerance)
    script = write_script("torch", target, graph.how, blend=graph.blend)
    report(f"export_program: {target}; largest output difference {deviation}.{script}")
    return target


def target_of(path: str | Path, suffix: str) -> Path:
    """Return the path of the file to write.  Raises: ConfigError for a folder or another suffix."""
    target = Path(path)
    if target.suffix != suffix or target.is_dir():
        subject, fix = "path of the export", f"Use {target.with_suffix(suffix).name}."
        raise ConfigError(subject, got=str(target), want=f"a file *{suffix}", fix=fix)
    return target


def needs(package: str) -> Any:
    """Import an optional package and return it.  Raises: MissingExtra if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(package, "export") from error


def prepared(
    model: nn.Module, images: Tensor | None, inputs: InputConfig | None
) -> tuple[Logits, Tensor]:
    """Return the model ready to be traced, and the images that it is checked on.

    images: (B, C, H, W), None = noise; inputs: gives the size of the noise. The model is in
    evaluation, shares its weights, and returns logits alone. Raises: ConfigError for images of
    another shape.
    """
    host = base_of(model)
    size = None if inputs is None else inputs.size
    batch = sample(host, size=size) if images is None else images
    if batch.dim() != 4 or not len(batch):
        subject, fix = "images", "Pass a batch as the transforms and loader give it."
        raise ConfigError(
            subject, got=tuple(batch.shape), want="(B, C, H, W), B at least 1", fix=fix
        )
    # PEFT's wrapper takes arbitrary arguments; the model inside it has the adapters, too
    wrapped = Logits(shared_copy(host)).eval().requires_grad_(False)
    return wrapped, batch


def _graph(
    model: nn.Module,
    images: Tensor | None,
    inputs: InputConfig | None,
    classes: Sequence[str] | None,
    several_labels: bool,
) -> Graph:
    """Return the graph of one model, see `export_onnx`."""
    wrapped, batch = prepared(model, images, inputs)
    stated = inputs_of(base_of(model), inputs, batch)
    how = None if stated is None else described(stated, classes, several_labels)
    return Graph(wrapped, (batch,), how, classes)


def _trace(trace: Callable[[], Any], subject: str) -> Any:
    try:
        with warnings.catch_warnings():
            # torch's exporter calls a function that torch has deprecated
            warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
            # the inputs of a blend share one batch, as they should
            warnings.filterwarnings(
                "ignore", "# The axis name: batch will not be used", UserWarning
            )
            return trace()
    except Exception as error:  # whatever torch's tracers raise is one thing here: no graph
        lines = [line for line in str(error).splitlines() if line.strip()]
        got = f"{type(error).__name__}: {lines[0] if lines else ''}"
        want = "a model that torch.export can trace"
        fix = "Fold it first; torch's own message above this one names the line."
        raise ExportError(subject, got=got, want=want, fix=fix) from error


def size_of(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _runtime(path: Path, names: Sequence[str]) -> Callable[..., Tensor]:
    """Return a function that runs an ONNX file in onnxruntime.  names: of its inputs."""
    onnxruntime = needs("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*batches: Tensor) -> Tensor:
        pixels = {name: batch.cpu().numpy() for name, batch in zip(names, batches, strict=True)}
        return torch.from_numpy(session.run([OUTPUT], pixels)[0])

    return run


def _largest_difference(graph: Graph, exported: Callable[..., Tensor]) -> Difference:
    """Return the largest difference of outputs on the batch, twice the batch, and one image."""
    differences: list[Difference] = []
    # a graph may have the traced batch size in it: three sizes show that
    sizes: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda batch: batch,
        lambda batch: torch.cat([batch, batch.flip(0)]),
        lambda batch: batch[:1],
    )
    for size in sizes:
        batches = [size(batch) for batch in graph.batches]
        with torch.no_grad():
            got, want = exported(*batches).detach(), graph.module(*batches)
        # each size against the model itself, not against another size
        differences.append(difference([got], [want]))
    # NaN counts as the largest difference
    return max(differences, key=lambda d: (d.relative != d.relative, d.relative))


def _check_difference(
    subject: str, deviation: Difference, wrapped: nn.Module, tolerance: float | None
) -> None:
    limit = tolerance_of(wrapped) if tolerance is None else tolerance
    deviation.check(
        subject, limit, ExportError, "Export in float32, or set tolerance= as you accept it."
    )
