"""The plug-in by which every cell lives in a PEFT model; nothing else touches PEFT's internals.

One family type, INTARSIA, with a `method` key: cells of different methods sit, save and load side
by side in one model, which PEFT refuses to distinct types. `core.with_peft` imports this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import torch
from peft import PeftModel
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.other import ModulesToSaveWrapper as ModulesToSaveWrapper
from torch import Tensor, nn

from ...core import Cell, Site
from ...core.errors import FoldError, TargetError
from ...core.foreign import tensor_of
from ...core.registry import settings_to_dict
from ...gating import of_samples, unwatch, watch
from ..anatomy import origin
from ..anatomy.blocks import BATCH_NORM, LAYERS, Conv1D, blocks, unwrapped, walk
from ..anatomy.quantised import keep_trainable, refuse_quantised
from ..anatomy.sites import call_layer, check_nesting, planned, site_at
from .config import Family, IntarsiaConfig
from .lora_form import is_plain_lora, ours, theirs
from .mixed import BASE, check_names
from .shared import Shared

PREFIX = "intarsia_"
IA3_PLACES = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING


class IntarsiaLayer(nn.Module, BaseTunerLayer):
    """Module of the model with trained modules next to it ("parallel") or behind ("sequential").

    A *cell* is such a trainable module, one for each adapter. y = f(x) + sum over active adapters
    of cell(x), or of cell(f(x)), where f is the wrapped module. Cells read the width as the last
    axis. Random routers keep their draw until the model's next forward, so that the recomputation
    of gradient checkpointing meets the same experts.
    """

    adapter_layer_names = ("intarsia_cells",)

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        """Wrap a module, without adapters so far."""
        super().__init__()
        self.base_layer = base_layer
        # set directly: train() would also change the wrapped module
        self.training = base_layer.training
        self.intarsia_cells = nn.ModuleDict().train(self.training)
        self.intarsia_sites: dict[str, tuple[str, str]] = {}  # name -> (position, channels)
        self.in_features, self.out_features = site.inputs, site.outputs
        self.path = site.path
        self.merged_adapters: list[str] = []
        self._active_adapter: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Return a number, text or switch of the wrapped module, which its parent reads."""
        # by `vars`: attributes of modules are looked up by this very method
        wrapped = vars(self).get("_modules", {}).get("base_layer", self)
        value = vars(wrapped).get(name)
        plain = isinstance(value, (bool, int, float, str, tuple))
        return value if plain else super().__getattr__(name)

    def add(self, name: str, cell: Cell, site: Site, *, frozen: bool) -> None:
        """Register an adapter's trainable module; frozen: it is not trained."""
        self.intarsia_cells[name] = cell.train(self.training)
        self.intarsia_sites[name] = (site.position, site.channels)
        self._move_adapter_to_device_of_base_layer(name)
        # PEFT sets by this call which parameters are trained
        self.set_adapter(self.active_adapters, inference_mode=frozen)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.intarsia_sites.pop(adapter_name, None)

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        """Return the device and type of the wrapped module's first floating-point parameter."""
        first = next((p for p in base_layer.parameters() if p.is_floating_point()), None)
        if first is None:
            return super()._get_base_layer_device_and_dtype(base_layer)
        return first.device, first.dtype

    def _addition(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        """Compute what one adapter adds to the output of the wrapped module."""
        position, channels = self.intarsia_sites[name]
        cell = self.intarsia_cells[name]
        if isinstance(cell, Cell) and cell.whole:
            return cell.around(self.base_layer, x).to(y.dtype) - y
        read = x if position == "parallel" else y
        if channels == "first":
            return cell(read.movedim(1, -1)).movedim(-1, 1).to(y.dtype)
        # reshaped: Llama 4's experts return tokens in one row
        return cell(read).to(y.dtype).view_as(y)

    def _sole_cell(self) -> Cell | None:
        """Return the only active adapter's module if it replaces the layer or is fused with it."""
        if self.disable_adapters or self.merged_adapters:
            return None
        active = [n for n in self.active_adapters if n in self.intarsia_cells]
        cell = self.intarsia_cells[active[0]] if len(active) == 1 else None
        if isinstance(cell, Cell) and cell.fused:
            # a fused kernel computes layer and cell at once, for a plain Linear alone
            is_parallel = self.intarsia_sites[active[0]] == ("parallel", "last")
            return cell if is_parallel and type(self.base_layer) is nn.Linear else None
        return cell if isinstance(cell, Cell) and cell.whole else None

    def _per_sample(self, x: Tensor, y: Tensor, names: Sequence[str]) -> Tensor:
        """Add to each sample's output what the adapter of that sample computes."""
        total = torch.zeros_like(y)
        for name in dict.fromkeys(names):
            if name in self.intarsia_cells:
                selected = torch.tensor([n == name for n in names])
                # a sample may have several rows (windows), which follow each other
                read, rows = (
                    selected.repeat_interleave(len(t) // len(names)).to(y.device) for t in (x, y)
                )
                with of_samples(self.intarsia_cells[name], selected):
                    total[rows] = self._addition(name, x[read], y[rows])
        return y + total

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Compute the wrapped module's output, and add what the active adapters compute.

        adapter_names: an adapter for each sample of the batch, None = the active ones for all
        samples.
        """
        # merged weights have one adapter for all samples
        if self.merged and (self.disable_adapters or adapter_names is not None):
            self.unmerge()
        x = args[0] if args else next(iter(kwargs.values()))
        # such an adapter computes the layer itself, so that the layer need not be run
        if adapter_names is None and (cell := self._sole_cell()) is not None:
            return cell.around(self.base_layer, x)
        out = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return out
        y = out[0] if isinstance(out, tuple) else out
        if adapter_names is not None:
            total = self._per_sample(x, y, adapter_names)
        else:
            total, active = y, [n for n in self.active_adapters if n in self.intarsia_cells]
            for name in active:
                if name not in self.merged_adapters:
                    total = total + self._addition(name, x, y)
        return (total, *out[1:]) if isinstance(out, tuple) else total

    def delta(self, name: str) -> Tensor:
        """Return the change of the wrapped module's weight that equals an adapter, in its shape.

        Raises: FoldError if what the adapter adds is not linear in the input, or if the wrapped
        module has no such weight.
        """
        cell, base = self.intarsia_cells[name], self.get_base_layer()
        refuse_quantised(f"merging adapter {name!r}", base, self.path)
        delta = cell.merged().delta() if isinstance(cell, Cell) else None
        subject = f"merging adapter {name!r} at {self.path!r}"
        if delta is None:
            got = f"{type(cell).__name__}, which is not linear in its input"
            want = "an adapter that is a change of weights, such as LoRA"
            fix = "Try intarsia.fold(model), or keep the adapter attached."
            raise FoldError(subject, got=got, want=want, fix=fix)
        if self.intarsia_sites[name][0] != "parallel" or not isinstance(base, LAYERS):
            want = "a Linear or pointwise convolution with the adapter beside it"
            got, fix = type(base).__name__, "Target linear layers."
            raise FoldError(subject, got=got, want=want, fix=fix)
        return (delta.T if isinstance(base, Conv1D) else delta).reshape(base.weight.shape)

    def _shift_weight(self, name: str, sign: int, safe: bool) -> None:
        """Add an adapter's change to the wrapped module's weight, or subtract it (sign -1)."""
        weight = self.get_base_weight()
        merged = weight + (sign * self.delta(name)).to(weight.dtype)
        if safe and not torch.isfinite(merged).all():
            text = f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
            raise ValueError(text)
        self.set_base_weight(merged)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the changes of adapters to the wrapped module's weight, in place."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.intarsia_cells:
                self._shift_weight(name, +1, safe_merge)
                self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        while self.merged_adapters:
            self._shift_weight(self.merged_adapters.pop(), -1, False)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        with contextlib.suppress(FoldError):
            return adapter_name in self.intarsia_cells and self.delta(adapter_name) is not None
        return False

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return the change that merging adds to the host's weight."""
        return self.delta(adapter_name)


class IntarsiaModel(BaseTuner):
    """Tuner of PEFT for every method."""

    prefix = PREFIX
    tuner_layer_cls = IntarsiaLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: IntarsiaConfig, model_config: Any) -> Any:
        """Fill in a config: the modules to adapt, and method settings that depend on the model."""
        layers = peft_config.layers_to_transform
        if peft_config.target_modules is None:
            numbers = [layers] if isinstance(layers, int) else layers
            settings = peft_config.settings()
            method, sites = planned(self.model, settings, None, numbers, peft_config.seed)
            peft_config.options = settings_to_dict(method)
            peft_config.target_modules = {site.path for site in sites}
        if layers is not None and not peft_config.layers_pattern:
            # PEFT's own pattern expects a name before the list of blocks; timm has `blocks.0`
            lists = {p.rpartition(".")[0].rpartition(".")[2] for p, _ in blocks(self.model)}
            peft_config.layers_pattern = sorted(lists)
        return peft_config

    def _prepare_model(self, peft_config: IntarsiaConfig, model: nn.Module) -> None:
        names = [p for p, _ in walk(model) if p]
        paths = [n for n in names if self._check_target_module_exists(peft_config, n)]
        check_nesting(model, paths)
        position = peft_config.settings().position
        # state that all of the adapter's modules share is created once, in the order of the layers
        self._shared = peft_config.share(site_at(model, p, position) for p in paths)
        saved = peft_config.modules_to_save or ()
        for head in saved:
            if not any(n.endswith(head) for n in names):
                subject, fix = f"head {head!r}", "Name it as in model.named_modules()."
                want = "a module that is trained and saved whole"
                raise TargetError(subject, got="no module of that name", want=want, fix=fix)
        heads = [n for n in names if any(n.endswith(h) for h in saved)]
        peft_config.origin = origin.matched(peft_config.origin, model, heads)

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        """Add an adapter as PEFT does, then register this library's hooks on the model."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._shared = Shared()  # the adapter's modules hold the shared state now
        watch(model)
        keep_trainable(model)
        self._rest_statistics()

    def _create_and_replace(
        self,
        peft_config: IntarsiaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Build an adapter's trainable module for one layer, and wrap the layer if needed."""
        site = site_at(self.model, current_key, peft_config.settings().position)
        cell = peft_config.build(site, adapter_name, self._shared)
        if isinstance(cell, Cell):
            cell.check(unwrapped(target))
        # the first adapter wraps the module, further ones share the wrapper
        if not isinstance(target, IntarsiaLayer):
            target = IntarsiaLayer(target, site)
            target.set_adapter(self.active_adapters)
            setattr(parent, target_name, target)
            call_layer(parent, target_name)
        target.add(adapter_name, cell, site, frozen=peft_config.inference_mode)

    def train(self, mode: bool = True) -> IntarsiaModel:
        super().train(mode)
        self._rest_statistics()
        return self

    def _rest_statistics(self) -> None:
        """Put frozen batch norms into evaluation, so that training leaves their statistics."""
        for _, module in walk(self.model):
            norm = unwrapped(module)
            if isinstance(norm, BATCH_NORM) and not any(p.requires_grad for p in norm.parameters()):
                norm.eval()

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Return the name under which a weight is saved: its path without the adapter's name."""
        # PEFT's own rule finds the name only at the end of the path
        if (inside := f".intarsia_cells.{adapter_name}.") in key:
            return key.replace(inside, ".intarsia_cells.", 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _get_adapter_state_dict(cls, model: Any, **rest: Any) -> dict[str, Tensor]:
        """Select an adapter's weights; if all adapters are plain LoRA, under PEFT's names."""
        selected = super()._get_adapter_state_dict(model=model, **rest)
        # next to other methods our type is kept, so that the adapters load into one model again
        if not all(is_plain_lora(model, name) for name in model.peft_config):
            return selected
        return theirs(selected, f".{rest['adapter_name']}")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, *, state_dict: dict[str, Tensor], **rest: Any
    ) -> dict[str, Tensor]:
        """Return weights under the model's names; state_dict: under PEFT's names or ours."""
        return super()._remap_adapter_state_dict_for_load(state_dict=ours(state_dict), **rest)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: Any
    ) -> None:
        """Replace child `child_name` of `parent` with `new_module`, as PEFT does to unload."""
        # PEFT's own method expects `.weight` on both modules, which a block does not have
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it alone was active, activate the first of those that remain."""
        was_active = adapter_name in self.active_adapters
        remaining = [n for n in self.peft_config if n != adapter_name]
        active = [n for n in self.active_adapters if n != adapter_name] or remaining[:1]
        super().delete_adapter(adapter_name)
        # PEFT's own method asks the first layer, which may not have another adapter
        if was_active and active:
            self.set_adapter(active[0] if len(active) == 1 else active)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        """Pass the name of each sample's adapter to all wrapped modules during one forward."""
        if adapter_names is None:
            yield
            return
        inputs = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        check_names(adapter_names, self.peft_config, inputs, training=self.training)

        def pass_names(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
            names: list[str] = adapter_names
            if isinstance(module, ModulesToSaveWrapper):  # not every adapter has a head of its own
                names = [n if n in module.modules_to_save else BASE for n in adapter_names]
            return args, {**kwargs, "adapter_names": names}

        wrappers = (IntarsiaLayer, AuxiliaryTrainingWrapper)
        handles = [
            module.register_forward_pre_hook(pass_names, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, wrappers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def merge_adapter(
        self, adapter_names: list[str] | None = None, safe_merge: bool = False
    ) -> None:
        """Merge adapters into the model's weights, after a check that all of them can be merged."""
        self._check_deltas(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        """Remove the adapters' wrappers, and the hooks on the model; return the plain model."""
        if merge:
            self._check_deltas(adapter_names)
        super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        unwatch(self.model)
        return self.model

    def _check_deltas(self, adapter_names: list[str] | None) -> None:
        """Check that adapters can be merged in every layer, before a layer is changed."""
        names = self.active_adapters if adapter_names is None else adapter_names
        for module in self.model.modules():
            if isinstance(module, IntarsiaLayer):
                for name in names:
                    if name in module.intarsia_cells and name not in module.merged_adapters:
                        module.delta(name)  # raises where there is no change to merge
                        self._check_own(module)

    def _check_own(self, layer: IntarsiaLayer) -> None:
        """Check that no other module shares a layer's weight, which merging would change, too."""
        weight = tensor_of(layer.get_base_layer())
        shared = [p for p, m in self.model.named_modules() if weight is m._parameters.get("weight")]
        if weight is not None and len(shared) > 1:
            subject, got = f"merging at {layer.path!r}", f"a weight that {shared[0]!r} has, too"
            fix = "Use intarsia.fold(model), which unties a copy."
            raise FoldError(subject, got=got, want="a weight of its own", fix=fix)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Convert an adapter's weights and buffers to float32, where they are in half precision."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            return
        for layer in self.model.modules():
            if isinstance(layer, IntarsiaLayer) and adapter_name in layer.intarsia_cells:
                for part in layer.intarsia_cells[adapter_name].modules():
                    for name, buffer in list(part.named_buffers(recurse=False)):
                        # PEFT's own method leaves buffers in half precision
                        if buffer.dtype in (torch.float16, torch.bfloat16):
                            setattr(part, name, buffer.float())


def is_peft(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return True for a PEFT model: its adapters may be of this library or PEFT's own."""
    return isinstance(model, PeftModel)


def is_adapted(model: nn.Module) -> TypeGuard[PeftModel]:
    """Return True for a PEFT model with adapters of this library."""
    return isinstance(model, PeftModel) and isinstance(model.base_model, IntarsiaModel)


# what register_peft_method does, less its check that the name is in PEFT's own closed enum
PEFT_TYPE_TO_CONFIG_MAPPING[Family.INTARSIA] = IntarsiaConfig  # pyright: ignore[reportArgumentType]
PEFT_TYPE_TO_TUNER_MAPPING[Family.INTARSIA] = IntarsiaModel  # pyright: ignore[reportArgumentType]
PEFT_TYPE_TO_PREFIX_MAPPING[Family.INTARSIA] = PREFIX  # pyright: ignore[reportArgumentType]
