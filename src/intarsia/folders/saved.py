"""One folder for whatever was done to a model: `intarsia.json`, safetensors, PEFT's own files.

intarsia.json        {"format", "weights", "extra", "steps": [{"key", "settings", "decided", "seed",
                     "name", "on"}], "adapters", "sha256"}: what to do to the pretrained model, in
                     order; names of adapters; digests of the files next to it and of itself
host.safetensors     weights of the model itself: "all", the "trained" ones, or no such file
adapter_config.json, adapter_model.safetensors     an adapter, as PEFT reads it; named ones in
                     folders of their own
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from ..core.change import Step, steps_of
from ..core.errors import CheckpointError, ConfigError, IntarsiaError, TargetError, UnknownName
from ..core.files import check_target, read_json, repaired, unbroken
from ..core.reading import copy_tensors, read_tensors
from ..core.registry import card, method_key
from ..core.sealing import check_files, check_if_sealed, check_settings, is_format, seal_folder
from ..hosts.anatomy.blocks import base_of, unwrapped, walk
from ..hosts.anatomy.origin import check_sizes, check_trunk, damaged, resampled
from ..hosts.attach.adapter_files import CONFIG, WEIGHTS, check_shapes, read_adapter, read_weights
from ..hosts.attach.config import IntarsiaConfig
from ..hosts.attach.peft import is_adapted
from ..hosts.attach.plain_lora import write_plain
from ..hosts.changing import repeat, step_of, undone_on_error
from ..hosts.delta.cells import attach_delta
from ..hosts.delta.sparse_delta import SparseDelta
from ..mixtures.packed_experts import PackedStack
from ..processes.parallelism import WholeModel
from ..processes.whole_file import write_folder
from .model_card import model_card
from .out.pack import PACKED, unpack

SETTINGS, HOST, FORMAT = "intarsia.json", "host.safetensors", 1
RUN, ADAPTER = "run.json", "adapter"  # a run's record, and the folder of its adapter
OURS = frozenset({SETTINGS, HOST, CONFIG, WEIGHTS, PACKED, "README.md"})


@dataclass(frozen=True)
class Adapter:
    """Saved adapter: its name, and the folder with PEFT's files, or the file of a delta.

    left_out: for plain LoRA in PEFT's form, the settings for which that form has no room; else
    None.
    """

    name: str
    place: Path
    left_out: Mapping[str, Any] | None = None

    def read(
        self, model: nn.Module, name: str, trainable: bool, classes: Sequence[str] | None
    ) -> nn.Module:
        """Add the adapter to a model under a name, and return the model.

        trainable: False freezes it; classes: names that its head must have been trained for, None =
        any.
        """
        if self.place.is_file():
            return attach_delta(model, SparseDelta.load(self.place), name)
        if (self.place / PACKED).is_file():
            return unpack(model, self.place, name=name)
        return read_adapter(
            model, self.place, name, trainable=trainable, classes=classes, left_out=self.left_out
        )


@dataclass(frozen=True)
class FolderContent:
    """Content of a saved folder: changes of the model, adapters, and weights.

    steps: changes to repeat, in order, before adapters are added; weights: file with weights of the
    model itself, None = it has none; stores: which of them: "nothing", "all", "trained" or "added";
    extra: entries of the state dict that are no tensors.
    """

    folder: Path
    # changes of the model before its adapters are added, in order
    steps: tuple[Step, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    weights: Path | None = None
    stores: str = "nothing"  # or "all", "trained", "added": which of the host's weights
    extra: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())


KEYS = frozenset({"key", "settings", "decided", "seed", "name", "on"})


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    record: Mapping[str, Any] | None = None,
    parts: WholeModel | None = None,
) -> Path:
    """Write the changes of a model to a folder, with the weights that loading them needs.

    Changes are adapters, mixtures, pruning and the like; each decides if all weights are needed,
    those that were trained, those that it added, or none. Plain LoRA and PEFT's own adapters are
    written as PEFT's types, which transformers, vLLM and converters read without this library.
    README.md is a model card of the adapters.
    The folder is written whole or not at all; an earlier folder of this kind is replaced.
    record: of the training, `run.record`, for the card.
    parts: for a model with experts on several processes, the object that `attached` yields:
      each process calls `save` and writes its own experts into the same file, which has the bytes
      that a single process would write. None = this process has the whole model.
    Raises: ConfigError for a model that was not changed, a change of a class that is not in the
    catalogue of methods, and a folder with other files in it; TrainingError if it cannot be
    written. The folder is then as it was. Returns the folder.
    """
    folder, host = Path(folder), base_of(model)
    steps: tuple[Step, ...] = steps_of(host)
    adapters: dict[str, Any] = dict.fromkeys(_adapter_names(model))
    if not steps and not isinstance(model, PeftModel):
        want = "one with adapters, mixtures or trained parts"
        fix = "Call intarsia.apply, adapt or upcycle first, or save it as its library does."
        raise ConfigError("model", got="one that was not changed", want=want, fix=fix)
    _check_target(folder)
    stores, state = _weights_needed(steps, bool(adapters)), _host_state(host)
    tensors = {n: t for n, t in state.items() if isinstance(t, Tensor)}
    tensors = _select_tensors(host, tensors, stores, steps)
    extra = {n: v for n, v in state.items() if n not in tensors} if stores == "all" else {}

    def adapter_files(scratch: Path) -> None:
        """Write PEFT's files of all adapters, and the model card."""
        if isinstance(model, PeftModel):
            model.save_pretrained(str(scratch))
            for name in adapters:
                adapters[name] = write_plain(model, scratch, name)
            (scratch / "README.md").write_text(model_card(model, record), "utf-8")

    def settings(scratch: Path) -> None:
        """Write intarsia.json: the recorded changes, and digests of the files next to it."""
        content = {
            "format": FORMAT,
            "weights": stores,
            "extra": extra,
            "steps": [step.entry() for step in steps],
            "adapters": [{"name": n, "left_out": left_out} for n, left_out in adapters.items()],
        }
        # without changes and adapters of this library, PEFT's files are enough
        if steps or adapters:
            seal_folder(scratch, SETTINGS, content)

    files = {HOST: tensors} if stores != "nothing" else {}
    return write_folder(folder, files, parts, before=adapter_files, after=settings)


def load(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    trainable: bool = False,
    classes: Sequence[str] | None = None,
) -> nn.Module:
    """Apply the changes in a saved folder to a pretrained model, in place, and load its weights.

    folder: as `save`, PEFT's `save_pretrained` or `pack` wrote it, a run of `intarsia fit`, or the
      file of a `SparseDelta`.
    name: the adapter's in the model, None = its own; if the folder has several, the one to load.
    trainable: continue to train an adapter; otherwise it is frozen, the model in evaluation mode.
    classes: if given, the names that an adapter's head must have been trained for, in their order,
      where the file has them.

    A model with adapters gets a further one, which `model.set_adapter(name)` makes active.
    Raises: CheckpointError for a folder that is damaged, foreign, or belongs to another method,
    trunk, head or class list; ConfigError for a name in use. The model is then as it was.
    """
    content = _read(Path(folder))
    adapters = _adapters_named(content.adapters, name)
    with undone_on_error(model), _numbers_kept(model, bool(content.steps and adapters)):
        new = _repeat_steps(model, content)
        for adapter in adapters:
            new = adapter.read(new, name or adapter.name, trainable, classes)
    return new


def replays(folder: str | Path) -> bool:
    """Return True if a saved folder changes the model itself, and is not an adapter alone.

    Raises: CheckpointError for a folder that is damaged or foreign.
    """
    return bool(_read(Path(folder)).steps)


def _repeat_steps(model: nn.Module, content: FolderContent) -> nn.Module:
    file = content.weights
    mapped = None if file is None else _readable(file, lambda: read_tensors(file))
    if content.steps and (earlier := steps_of(base_of(model))):
        got = f"one that was changed before, by {method_key(cast(Any, earlier[0].plan.change))!r}"
        want = "the pretrained one"
        raise TargetError("model", got=got, want=want, fix="Start from a fresh copy of it.")
    for number, step in enumerate(content.steps):
        host = base_of(model)
        if number == 0 and step.on:
            # weights that the folder replaces need not match the training run's
            values = {} if content.stores == "all" else {"values": step.on["values"]}
            check_trunk(host, {"layout": step.on["layout"], **values})
        try:
            model = repeat(model, step)
        except (ConfigError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"step {method_key(step.plan.change)!r} of {str(content.folder)!r}",
                got=f"settings that do not suit this model ({error})",
                want="the architecture of the training run",
                fix="Create the pretrained model as it was.",
            ) from error
    if file is not None and mapped is not None:
        host = base_of(model)
        expected = {n: t for n, t in _host_state(host).items() if isinstance(t, Tensor)}
        expected = _select_tensors(host, expected, content.stores, content.steps)
        # position embeddings of another image size are interpolated, as timm does it
        weights = resampled(mapped, host)
        check_shapes(content.folder, expected, weights)
        weights |= _read_into(host, mapped, file)
        # strict=False, since tied tensors are stored once
        host.load_state_dict({**weights, **content.extra}, strict=False)
    elif content.steps and isinstance(model, PeftModel) and not is_adapted(model):
        # if the last change is an adapter of PEFT's own, its weights are in PEFT's file
        saved = read_weights(content.folder)
        check_shapes(content.folder, get_peft_model_state_dict(model), saved)
        set_peft_model_state_dict(model, saved)
    return model


def _read(folder: Path) -> FolderContent:
    """Read the content of a folder: of `save`, of a run, of PEFT alone, or of a packed adapter."""
    # a run of `fit` has its model in a folder inside
    inside = repaired(repaired(folder) / ADAPTER)
    if (inside / SETTINGS).is_file():
        folder = inside
    elif (folder / RUN).is_file():
        check_if_sealed(folder, RUN)
        folder = inside
    path = folder / SETTINGS
    # no settings of ours: PEFT's own files, or a packed adapter, stand in the folder itself
    if not path.is_file():
        return FolderContent(folder, adapters=(Adapter("default", folder),))
    try:
        content = read_json(path)
        if not isinstance(content, dict) or not is_format(content.get("format"), FORMAT):
            got = content.get("format") if isinstance(content, dict) else "no object"
            raise damaged(path, f"format {got!r}, not {FORMAT}")
        return _checked_content(folder, content)
    except (OSError, ValueError) as error:
        # a setting that its class refuses is damage, too, since it was valid when it was saved
        if isinstance(error, IntarsiaError):
            raise damaged(path, f"settings that no method takes ({error})") from error
        raise damaged(path, f"text that is not JSON ({error})") from error
    except (UnknownName, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, f"settings that no method takes ({error})") from error


def _checked_content(folder: Path, content: Mapping[str, Any]) -> FolderContent:
    """Check the settings and files of a folder that `save` wrote, and return its content."""
    # the digest of the settings is checked before a word of them is used
    content, files = check_settings(folder / SETTINGS, content)
    steps: list[Step] = []
    for entry in content["steps"]:
        if set(entry) != KEYS:
            raise ConfigError("step", got=sorted(entry), want=sorted(KEYS), fix="Restore the file.")
        if (method := card(str(entry["key"]))).kind not in ("baseline", "change"):
            got = f"{method.key!r}, no change"
            raise ConfigError("key", got=got, want="one", fix="Restore it.")
        steps.append(step_of(entry))
    adapters = tuple(
        Adapter(name, folder if name == "default" else folder / name, entry["left_out"])
        for entry in content["adapters"]
        if (name := str(entry["name"]))
    )
    stores = str(content["weights"])
    weights = None if stores == "nothing" else folder / HOST
    places = [adapter.place for adapter in adapters]
    # a file that the settings name must be there and have its digest
    needs = [] if weights is None else [weights]
    needs += [place / name for place in places for name in (CONFIG, WEIGHTS)]
    check_files(folder, files, [path.relative_to(folder).as_posix() for path in needs])
    for entry in content["steps"]:
        check_sizes(folder / SETTINGS, entry["settings"], weights or folder / WEIGHTS)
    return FolderContent(folder, tuple(steps), adapters, weights, stores, dict(content["extra"]))


def _adapters_named(adapters: Sequence[Adapter], name: str | None) -> Sequence[Adapter]:
    """Return the adapters to load: all of a folder, or the one of that name if it has several."""
    if name is None or len(adapters) < 2:
        return adapters
    matching = [adapter for adapter in adapters if adapter.name == name]
    if not matching:
        raise UnknownName("adapter", name, [adapter.name for adapter in adapters])
    return matching


def _readable(path: Path, read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read tensors of a safetensors file.  Raises: CheckpointError for a damaged one."""
    try:
        with unbroken():
            return read()
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"no readable safetensors file ({error})") from error


@contextmanager
def _numbers_kept(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Restore the model's weights and buffers if the body of the `with` raises."""
    tensors = (*model.parameters(), *model.buffers()) if enabled else ()
    saved = [(t, t.detach().clone()) for t in tensors]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
        raise


def _weights_needed(steps: Iterable[Step], adapted: bool) -> str:
    """Return which of the model's weights a folder needs: "all", "trained", "added", "nothing"."""
    # one file has the weights of all changes: the one that needs most decides
    needs = {step.plan.change.stores for step in steps}
    if "all" in needs or (adapted and "trained" in needs):
        # an adapter freezes weights that were trained before, so that flags no longer show them
        return "all"
    return next((word for word in ("trained", "added") if word in needs), "nothing")


def _select_tensors(
    host: nn.Module, tensors: Mapping[str, Tensor], stores: str, steps: Iterable[Step]
) -> dict[str, Tensor]:
    added = tuple(f"{p}." for s in steps for p in s.plan.change.added)
    if stores == "trained":
        frozen = {n for n, p in host.named_parameters() if not p.requires_grad}
        return {n: t for n, t in tensors.items() if n not in frozen or n.startswith(added)}
    if stores == "added":
        return {n: t for n, t in tensors.items() if n.startswith(added)}
    return dict(tensors)


def _read_into(host: nn.Module, mapped: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Read weights into new memory, which tensors of their type and size have from now on."""
    fields, targets = ("shape", "dtype", "device"), dict[str, Tensor]()
    for path, module in walk(host):
        # packed experts stay mapped
        if isinstance(unwrapped(module), PackedStack):
            continue
        for name, tensor in _state_of(path, module, keep_vars=True).items():
            if not isinstance(tensor, Tensor) or name not in mapped or tensor.is_inference():
                continue
            if all(getattr(tensor, field) == getattr(mapped[name], field) for field in fields):
                targets[name] = tensor
    weights = _readable(file, lambda: copy_tensors(file, targets))
    # nothing is written before the whole file was read
    for name, tensor in targets.items():
        tensor.data = weights[name]
    return weights


def _state_of(path: str, module: nn.Module, keep_vars: bool = False) -> dict[str, Any]:
    """Return the state of a module itself, behind the layer of an adapter, by the host's names."""
    state: dict[str, Any] = {}
    unwrapped(module)._save_to_state_dict(state, f"{path}." if path else "", keep_vars)
    return state


def _host_state(host: nn.Module) -> dict[str, Any]:
    """Return the state dict of the model without adapters; a tied tensor is listed once."""
    state: dict[str, Any] = {}
    for path, module in walk(host):
        state |= _state_of(path, module)
    unique: dict[str, Any] = {}
    views: set[tuple[Any, ...]] = set()
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel() and not value.is_meta:
            view = (value.data_ptr(), value.shape, value.stride())
            if view in views:
                continue
            views.add(view)
        unique[name] = value
    return unique


def entries_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return the recorded changes of a model, ready for JSON, with its adapters last."""
    return [*(step.entry() for step in steps_of(base_of(model))), *_adapters(model)]


def _adapter_names(model: nn.Module) -> list[str]:
    """Return the names of a model's adapters, the active ones first."""
    if not is_adapted(model):
        return []
    active = list(model.active_adapters)
    return sorted(model.peft_config, key=lambda name: name not in active)


def _adapters(model: nn.Module) -> Iterable[dict[str, Any]]:
    """Yield the adapters of a model in the form of recorded changes, ready for JSON."""
    for name in _adapter_names(model):
        config = cast(IntarsiaConfig, cast(PeftModel, model).peft_config[name])
        yield {
            "key": config.method,
            "settings": config.options,
            "decided": {},
            "seed": config.seed,
            "name": name,
            "on": (config.origin or {}).get("trunk", {}),
        }


def _check_target(folder: Path) -> None:
    """Check that a folder holds nothing but an earlier saved model, which may be replaced."""
    inside = folder.iterdir() if folder.is_dir() else ()
    named = {path.name for path in inside if (path / WEIGHTS).is_file()}
    check_target(folder, own=OURS | named)
