"""A trained adapter of few bits as a file that really has that size (arXiv:2307.16867)."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, cast, runtime_checkable

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ...adapters import CodedCell, CodedLinear
from ...adapters.coded import stored
from ...core import Card, Method, Paper
from ...core.change import Change, Plan
from ...core.errors import CheckpointError, ConfigError, TargetError, UnknownName
from ...core.files import unbroken, writing
from ...core.reading import open_tensors
from ...core.registry import KEY, method_to_dict
from ...core.schema import check, setting
from ...formats import Gaussian
from ...formats.gaussian import CODEBOOKS
from ...hosts.anatomy.blocks import walk
from ...hosts.anatomy.origin import damaged
from ...hosts.attach.adapt import attach, check_model, find_heads
from ...hosts.attach.adapter_files import read_config
from ...hosts.attach.config import IntarsiaConfig
from ...hosts.attach.peft import IntarsiaLayer, ModulesToSaveWrapper, is_adapted
from ...hosts.changing import apply_change, undone_on_error

PACKED = "adapter_packed.safetensors"
BYTES = "bytes"  # the one tensor of the file, so that its header stays small


@runtime_checkable
class Coded(Protocol):
    """Method over another one, with weights that are stored in a format."""

    over: Method
    biases: bool

    @property
    def format(self) -> Gaussian | None: ...


class PackedTensor(NamedTuple):
    """Tensor of an adapter and the format in which the file has it; None = float32, as it is."""

    tensor: Tensor
    format: Gaussian | None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        if self.format is not None:
            return self.format.size(self.tensor.shape)
        return self.tensor.numel() * (4 if self._is_float else self.tensor.element_size())

    @property
    def _is_float(self) -> bool:
        return self.tensor.is_floating_point()

    def encode(self) -> list[Tensor]:
        """Return the parts of the tensor that are written, as uint8."""
        if self.format is None:
            numbers = self.tensor.detach().float() if self._is_float else self.tensor.detach()
            return [_raw_bytes(numbers)]
        encoded = self.format.encode(self.tensor)
        return [_raw_bytes(encoded["moments"]), encoded["codes"].cpu()]

    def decode(self, raw: Tensor) -> None:
        """Write the stored bytes (uint8) into the tensor, in place."""
        if self.format is None:
            dtype = torch.float32 if self._is_float else self.tensor.dtype
            decoded = raw.clone().view(dtype).view(self.tensor.shape)
        else:
            # mean and deviation, two float32, stand before the codes
            moments = raw[:8].clone().view(torch.float32)
            decoded = self.format.decode({"moments": moments, "codes": raw[8:]}, self.tensor.shape)
        with torch.no_grad():
            self.tensor.copy_(decoded)


def _raw_bytes(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8)


@dataclass(frozen=True)
class CodeHead(Change):
    """Change to a classifier so that it trains with weights of few bits; goes before `BiAdapter`.

    Not for models with other classifiers than linear ones, nor for one that is adapted already.
    Raises: ConfigError for a setting out of range; TargetError in `apply` if the model has no
    linear head.
    """

    bits: int = setting(1, "The bits of a weight's code.", least=1, most=8, fix="Try 1, 2 or 4.")
    codebook: str = setting(
        "median", "The levels of the codes, see `intarsia.formats.Gaussian`.", choices=CODEBOOKS
    )

    stores: ClassVar[str] = "nothing"  # an adapter keeps the head
    laws: ClassVar[frozenset[str]] = frozenset({"shape"})

    def __post_init__(self) -> None:
        check(self)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        """Replace the linear heads, in place, by ones that code their weights in each forward.

        The stored weights stay, and can be trained on. Raises: TargetError without a linear head.
        """
        heads = [p for p in find_heads(host) if isinstance(host.get_submodule(p), nn.Linear)]
        if not heads:
            got, want = "no linear classifier", "one, such as a timm model's head"
            fix = "Create the model with num_classes, before it is adapted."
            raise TargetError("head", got=got, want=want, fix=fix)
        format = Gaussian(self.bits, self.codebook)
        # the head's weights stay as they are; only the forward rounds them
        for path in heads:
            coded = CodedLinear.of(cast(nn.Linear, host.get_submodule(path)), format)
            parent, _, leaf = path.rpartition(".")
            setattr(host.get_submodule(parent), leaf, coded)
        return host


def code_head(model: nn.Module, bits: int = 1, codebook: str = "median") -> None:
    """Apply `CodeHead` to a model, in place.  Raises: as that."""
    apply_change(model, CodeHead(bits, codebook))


def pack(model: PeftModel, folder: str | Path, *, name: str | None = None) -> Path:
    """Write a trained `BiAdapter` in its few bits: `adapter_packed.safetensors` and its settings.

    Weight matrices are stored as codes of b bits each, and two float32; everything else (a float
    head, biases, gains) is float32. The file has ceil(n b / 8) + 8 bytes for each matrix of n
    weights, 4 for each other number, and a header of about a hundred. Outputs after `unpack`
    equal the training's, bit by bit.

    folder: where the two files are written; name: the adapter, None = the active one.
    Raises: ConfigError if the adapter is not of a method that codes its weights, and for a folder
    with other files in it; TrainingError if it cannot be written.
    """
    config, settings, name = _copy_config(model, name)
    cells = [(c.body, c.format) for c in _cells(model, name) if isinstance(c, CodedCell)]
    entries = [*_cell_entries(cells, settings.biases), *_head_entries(model, name, None)]
    # one run of bytes: safetensors' header would cost more than most tensors
    raw = torch.cat([part for entry in entries for part in entry.encode()])
    coded = _head_format(model, name)
    metadata = {} if coded is None else {"head": f"{coded.bits} {coded.codebook}"}
    metadata["crc"] = _crc(config._identity(), metadata.get("head"), raw)
    # as PEFT saves its adapters
    config.inference_mode = True
    with writing(folder, refuse_loss=True) as scratch:
        scratch.mkdir()
        save_file({BYTES: raw}, scratch / PACKED, metadata)
        config.save_pretrained(str(scratch))
    return Path(folder) / PACKED


def packed_size(model: PeftModel, *, name: str | None = None) -> int:
    """Count the bytes that `pack` writes, without the header; name: as in `pack`."""
    _, settings, name = _copy_config(model, name)
    cells = [(c.body, c.format) for c in _cells(model, name) if isinstance(c, CodedCell)]
    entries = [*_cell_entries(cells, settings.biases), *_head_entries(model, name, None)]
    return sum(entry.nbytes for entry in entries)


def unpack(model: nn.Module, folder: str | Path, *, name: str = "default") -> PeftModel:
    """Add a packed adapter to the pretrained model it was trained on, in place, frozen.

    It becomes the float adapter (`over` of its settings) with the decoded weights, since coding
    them again would change them. It switches, mixes, folds and saves as any other.

    folder: that `pack` wrote; name: of the adapter in the model.
    Raises: CheckpointError for a folder that is damaged, foreign, or belongs to another trunk, head
    or method; ConfigError for a name in use. The model is then as it was.
    """
    check_model(model, name)
    folder = Path(folder)
    config = read_config(folder)
    settings = config.settings()
    if not _codes_weights(settings):
        subject = f"packed adapter in {str(folder)!r}"
        got, want = f"method {config.method!r}", "one that codes its weights, such as 'bi'"
        raise CheckpointError(subject, got=got, want=want, fix="Load it with intarsia.load.")
    raw, head = _read_packed(folder, config)
    options = method_to_dict(settings.over)
    # the adapter becomes the float method that was coded
    plain = copy.deepcopy(config)
    plain.method, plain.options = options.pop(KEY), options
    with undone_on_error(model):
        adapted = attach(model, plain, name)
        # decoded weights would be rounded again
        if _head_format(adapted, name) is not None:
            got, fix = "one that codes its weights", "Call code_head before training only."
            raise ConfigError("head", got=got, want="a plain one, for decoded weights", fix=fix)
        cells = [(cell, settings.format) for cell in _cells(adapted, name)]
        entries = [*_cell_entries(cells, settings.biases), *_head_entries(adapted, name, head)]
        # tensors are sorted by path, so that their lengths determine their places
        if (want := sum(entry.nbytes for entry in entries)) != len(raw):
            subject = f"{PACKED} in {str(folder)!r}"
            fix = "Use the pretrained model and the settings of the training run."
            raise CheckpointError(subject, got=f"{len(raw)} bytes", want=f"{want}", fix=fix)
        # biases that are not stored were 0 in training, too
        for cell, _ in cells if not settings.biases else ():
            _drop_biases(cell)
        for entry in entries:
            entry.decode(raw[: entry.nbytes])
            raw = raw[entry.nbytes :]
    return adapted.eval()


def _codes_weights(settings: Any) -> TypeGuard[Coded]:
    """Return True if a method stores its weights as codes of few bits."""
    return isinstance(settings, Coded)


def _copy_config(model: PeftModel, name: str | None) -> tuple[IntarsiaConfig, Coded, str]:
    names = list(model.peft_config) if is_adapted(model) else []
    if not names or (name is None and len(model.active_adapters) != 1):
        subject, fix = "adapter to pack", "Pass name=, and a model from intarsia.adapt."
        raise ConfigError(
            subject, got="none, or several active ones", want=f"one of {names}", fix=fix
        )
    name = model.active_adapters[0] if name is None else name
    if name not in names:
        raise UnknownName("adapter", name, names)
    config = copy.deepcopy(cast(IntarsiaConfig, model.peft_config[name]))
    settings = config.settings()
    if not _codes_weights(settings):
        subject, want = f"adapter {name!r}", "one that codes them while it trains"
        got = f"method {config.method!r}, whose weights are floats"
        raise ConfigError(
            subject, got=got, want=want, fix="Train intarsia.methods.BiAdapter(over=...)."
        )
    return config, settings, name


def _cells(model: PeftModel, name: str) -> Iterator[nn.Module]:
    """Yield the trainable modules of an adapter, sorted by path: the order in the file."""
    for _, module in sorted(walk(model.get_base_model())):
        if isinstance(module, IntarsiaLayer) and name in module.intarsia_cells:
            yield module.intarsia_cells[name]


def _cell_entries(cells: list[tuple[Any, Gaussian | None]], biases: bool) -> Iterator[PackedTensor]:
    """Yield the tensors of an adapter's modules, in the order of the file."""
    for body, format in cells:
        for tensor, coded in stored(body, biases=biases).values():
            yield PackedTensor(tensor, format if coded else None)


def _drop_biases(cell: nn.Module) -> None:
    """Set the biases of a float adapter's module to 0, as they were in training."""
    stored_names = stored(cell, biases=False)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            if name not in stored_names:
                parameter.zero_()


def _heads(model: PeftModel, name: str) -> list[nn.Module]:
    """Return the trained heads that belong to an adapter, sorted by path."""
    return [
        module.modules_to_save[name]
        for _, module in sorted(walk(model.get_base_model()))
        if isinstance(module, ModulesToSaveWrapper) and name in module.modules_to_save
    ]


def _head_format(model: PeftModel, name: str) -> Gaussian | None:
    """Return the format of an adapter's coded head; None if it has none."""
    modules = (m for head in _heads(model, name) for m in head.modules())
    return next((m.format for m in modules if isinstance(m, CodedLinear)), None)


def _head_entries(model: PeftModel, name: str, coded: Gaussian | None) -> Iterator[PackedTensor]:
    for head in _heads(model, name):
        formats_of_heads = {
            id(m.weight): m.format for m in head.modules() if isinstance(m, CodedLinear)
        }
        linear = {id(m.weight): coded for m in head.modules() if isinstance(m, nn.Linear)}
        # at `unpack` the heads are plain layers, and the file says their format
        formats = formats_of_heads if coded is None else linear
        for _, tensor in sorted(head.state_dict(keep_vars=True).items()):
            yield PackedTensor(tensor, formats.get(id(tensor)))


def _crc(identity: object, head: str | None, raw: Tensor) -> str:
    """Return a CRC-32 of settings and bytes; SHA-256 is too long for a file of some 100 bytes."""
    settings = json.dumps([identity, head], sort_keys=True)
    return f"{zlib.crc32(raw.numpy().tobytes(), zlib.crc32(settings.encode())):08x}"


def _read_packed(folder: Path, config: IntarsiaConfig) -> tuple[Tensor, Gaussian | None]:
    """Return the bytes of a packed file, and the format of the linear layers in its heads."""
    path = folder / PACKED
    try:
        with unbroken(), open_tensors(path) as file:
            raw, metadata = file.get_tensor(BYTES), file.metadata() or {}
        expected = _crc(config._identity(), metadata.get("head"), raw)
        if raw.dtype != torch.uint8 or metadata.get("crc") != expected:
            raise ValueError("bytes or settings that changed after they were written")
        head = metadata.get("head")
        bits, _, codebook = (head or "").partition(" ")
        return raw, Gaussian(int(bits), codebook) if head else None
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, str(error), "intarsia.pack") from error


CARDS = (
    Card(
        "code_head",
        kind="change",
        config=CodeHead,
        paper=Paper(
            "2307.16867",
            2023,
            "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision "
            "Redundancy",
        ),
        summary="A classifier with weights of few bits while it trains.",
        family="few bits",
        exceptions={"comes_back_from_its_folder": "the adapter after it stores the head"},
    ),
)
