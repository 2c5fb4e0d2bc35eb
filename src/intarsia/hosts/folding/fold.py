"""Turn an adapted model into a stock one: nothing of ours inside, the same outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...adapters.coded import CodedLinear
from ...core import Cell
from ...core.cell import Units
from ...core.change import steps_of
from ...core.errors import ConfigError, FoldError, UnknownName
from ...core.foreign import config_of
from ..anatomy.blocks import walk
from ..anatomy.compare import Inputs, difference, inputs_for, outputs, shared_copy, tolerance_of
from ..anatomy.quantised import refuse_quantised
from ..attach.peft import IntarsiaLayer, is_adapted
from .rescale import rescale
from .widen import EXACT, KEEP, add_weight, exact, mlps, pad, widen

Report = Callable[[str], None]
OURS = ("intarsia", "peft")
SPARSE = 0.05  # a weight with such a share of zeros has been pruned


def fold(
    model: PeftModel,
    *,
    name: str | None = None,
    inputs: Inputs | None = None,
    uniform: bool = False,
    tolerance: float | None = None,
    keep_zeros: bool | None = None,
    report: Report = print,
) -> nn.Module:
    """Turn an adapted model into a stock one with the same outputs in evaluation.

    Mixtures and other changes from before the adapter stay in it; in a model without an adapter,
    the last change is folded, if it can be.

    An added module that is linear goes into its layer's weight, W' = W + delta; a scale behind a
    layer scales its weights, W' = (1 + s) W. An AdaptFormer-style bottleneck becomes hidden units
    of its MLP, fc2' act(fc1' x), see `widen`; a mixture is merged first. The trained head takes the
    place of the pretrained one. The given model is left as it is.

    name: the adapter; None = the active ones. inputs: what both models are compared on; None =
    seeded noise of the model's input size. uniform: pad all MLPs of one input width to one hidden
    width, so that the stock constructor can build the model. tolerance: largest output difference,
    relative to the largest output; None = by dtype (float32: 1e-4). keep_zeros: for a sparse weight
    (5 % of zeros and more): True, zeros stay, and the outputs change, which is reported; False, the
    adapter fills them; None = nothing is folded if it would. report: is given a line of text.

    Raises: FoldError, naming the module, where no stock weights give the same function (a module
    behind its layer, a norm of its own, another activation, a gated MLP), and if the outputs
    differ. UnknownName for an adapter that is not there.
    """
    # without an adapter, the last change folds itself
    if not isinstance(model, PeftModel) and (steps := steps_of(model)):
        return steps[-1].plan.change.fold(model)
    if isinstance(model, PeftModel) and not is_adapted(model):
        return _merge_by_peft(model, inputs, tolerance, report)
    names = _names(model, name)
    host = model.get_base_model()
    # 1. plain weights instead of wrapped modules, in a copy
    stock, counts = _stock_copy(host, names, keep_zeros)
    # 2. one width for all MLPs, and what the configuration says of it
    if uniform:
        pad(stock, _whole_ratio if _wants_whole_ratio(stock) else None)
    note = _describe(stock)
    config: Any = model.peft_config[names[0]]  # an adapter of this library
    _name_classes(stock, config.origin or {})
    batch = inputs_for(host, inputs)
    # 3. both models on the same inputs, with the adapters of `names` active
    reference = cast(PeftModel, shared_copy(model).eval())
    reference.base_model.enable_adapter_layers()  # pyright: ignore[reportCallIssue]
    reference.base_model.set_adapter(names, inference_mode=True)  # pyright: ignore[reportCallIssue]
    deviation = difference(outputs(stock, batch), outputs(reference, batch))
    limit = tolerance_of(stock) if tolerance is None else tolerance
    # kept zeros change the outputs on purpose: they are reported, not refused
    report(f"fold: {counts}; largest output difference {deviation}.{note}")
    if not keep_zeros:
        deviation.check(
            "fold", limit, FoldError, "Fold in float32 or float64, or keep the adapter."
        )
    return stock


def fold_whole(
    model: nn.Module, *, inputs: Inputs | None = None, report: Report = print
) -> nn.Module:
    """Fold the adapter, then all earlier changes that left modules other than stock ones.

    inputs, report: see `fold`.
    Raises: FoldError for a change that cannot be folded.
    """
    if isinstance(model, PeftModel):
        model = fold(model, inputs=inputs, report=report)
    while (steps := steps_of(model)) and not steps[-1].plain:
        folded = steps[-1].plan.change.fold(model)
        # a change that returns itself has no stock form
        if len(steps_of(folded)) == len(steps):
            got = f"{type(steps[-1].plan.change).__name__}, which no stock model is"
            fix = "Use the model with intarsia."
            raise FoldError("fold", got=got, want="changes of weights alone", fix=fix)
        model = folded
    return model


def _merge_by_peft(
    model: PeftModel, inputs: Inputs | None, tolerance: float | None, report: Report
) -> nn.Module:
    """Merge adapters of PEFT's own types by PEFT, in a copy, and compare the outputs."""
    merged_copy = cast(Any, copy.deepcopy(model).eval())
    try:
        stock: nn.Module = merged_copy.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        got, fix = f"adapters that PEFT does not merge ({error})", "Keep the adapter attached."
        raise FoldError("fold", got=got, want="a change of weights", fix=fix) from error
    stock.__dict__.pop("peft_config", None)
    host = model.get_base_model()
    batch = inputs_for(host, inputs)
    deviation = difference(outputs(stock, batch), outputs(shared_copy(host).eval(), batch))
    report(f"fold: merged by PEFT; largest output difference {deviation}.")
    limit = tolerance_of(stock) if tolerance is None else tolerance
    deviation.check("fold", limit, FoldError, "Fold in float32 or float64, or keep the adapter.")
    return stock.eval().requires_grad_(True)


def _names(model: PeftModel, name: str | None) -> list[str]:
    """Return the names of the adapters to fold."""
    if not is_adapted(model):
        got = f"{type(model).__name__}, which carries no adapter"
        want = "a model from intarsia.adapt or intarsia.load"
        raise FoldError("fold", got=got, want=want, fix="Fold the adapted model.")
    available = list(model.peft_config)
    if name is not None and name not in available:
        raise UnknownName("adapter", name, available)
    names = list(model.active_adapters) if name is None else [name]
    layers = [m for m in model.modules() if isinstance(m, IntarsiaLayer)]
    if not names or (name is None and any(layer.disable_adapters for layer in layers)):
        subject, got = "active adapter", "none, or all of them disabled"
        raise ConfigError(
            subject, got=got, want=f"one of {available}", fix="Pass name=, or activate one."
        )
    if merged := sorted({n for layer in layers for n in layer.merged_adapters}):
        got, fix = f"a model with {merged} merged into its weights", "Call model.unmerge_adapter()."
        raise FoldError("fold", got=got, want="the adapter beside the pretrained weights", fix=fix)
    return names


def _stock_copy(
    host: nn.Module, names: list[str], keep_zeros: bool | None
) -> tuple[nn.Module, str]:
    """Copy the host with plain modules instead of adapted ones; return it, and counts in words."""
    # deepcopy takes objects of the memo for copies: one shared config, plain modules for wrappers
    memo: dict[int, Any] = {}
    if (config := config_of(host)) is not None:
        memo[id(config)] = copy.deepcopy(config)
    done = {"widened": 0, "changed": 0}

    # modules of this library stay where an earlier change has added them
    foreign = ("peft",) if steps_of(host) else OURS

    def visit(parent: nn.Module, path: str) -> None:
        """Enter replacements of wrapped modules and heads into `memo`, depth first."""
        for name, child in parent.named_children():
            child_path = f"{path}.{name}" if path else name
            if isinstance(child, IntarsiaLayer):
                memo[id(child)] = _fold_layer(child, names, memo, done)
                _keep_zeros(child, memo[id(child)], keep_zeros)
            elif isinstance(saved := child._modules.get("modules_to_save"), nn.ModuleDict):
                # a trained head, if one of the adapters has one
                trained = next((saved[n] for n in names if n in saved), child.original_module)
                if isinstance(trained, CodedLinear):  # a head of few bits
                    trained = trained.merged()
                memo[id(child)] = copy.deepcopy(trained, memo)
            elif type(child).__module__.split(".")[0] in foreign:
                want = "adapters and trained heads only"
                fix = "Merge or delete what else PEFT has put into the model."
                raise FoldError(
                    f"fold {child_path!r}", got=type(child).__name__, want=want, fix=fix
                )
            else:
                visit(child, child_path)

    visit(host, "")
    stock = copy.deepcopy(host, memo)
    _remove_traces(stock)
    counts = f"{done['widened']} MLPs widened, {done['changed']} weights changed"
    return stock.eval().requires_grad_(True), counts


def _fold_layer(
    layer: IntarsiaLayer, names: list[str], memo: dict[int, Any], done: dict[str, int]
) -> nn.Module:
    """Build the plain module of an adapted layer, with the adapters' changes in its weights."""
    for inner, module in walk(layer.base_layer, layer.path):
        # rounded weights have no room for a change that is smaller than their steps
        refuse_quantised("fold", module, inner)
    plain = exact(layer.base_layer, memo)
    for name in names:
        if name in layer.intarsia_cells:
            position, channels = layer.intarsia_sites[name]
            cell = layer.intarsia_cells[name]
            done[fold_cell(plain, cell, layer.path, position, channels)] += 1
    # rounded once, to the dtype and device that each parameter had
    like = dict(layer.base_layer.named_parameters()) | dict(layer.base_layer.named_buffers())
    for key, tensor in (*plain.named_parameters(), *plain.named_buffers()):
        tensor.data = tensor.data.to(like[key])
    return plain


@torch.no_grad()
def _keep_zeros(layer: IntarsiaLayer, plain: nn.Module, keep: bool | None) -> None:
    """Set the zeros of a sparse weight to 0 again after a fold, or refuse the fold."""
    new = dict(plain.named_parameters())
    for name, old in layer.base_layer.named_parameters():
        weight = new.get(name)
        if old.dim() < 2 or weight is None or weight.shape != old.shape:
            continue
        zero = (old == 0).to(weight.device)
        # how sparse the weight was, and how many of its zeros the adapter would fill
        share, filled = float(zero.float().mean()), int((weight[zero] != 0).sum())
        if keep is False or not SPARSE <= share < 1 or not filled:
            continue
        if keep:
            weight.masked_fill_(zero, 0)
            continue
        density = int((weight != 0).sum()) / weight.numel()
        raise FoldError(
            f"fold {layer.path!r}",
            got=f"an adapter that fills zeros: density {1 - share:.3f} becomes {density:.3f}",
            want="a sparse weight that stays sparse",
            fix="Fold with keep_zeros=True, which drops that part of the adapter, or False; or "
            "keep the adapter beside the weight.",
        )


def fold_cell(
    plain: nn.Module, cell: nn.Module, path: str, position: str, channels: str = "last"
) -> str:
    """Fold one added module into a float64 copy of its layer, in place; return the kind of change.

    position: "parallel" or "sequential"; channels: axis of the features, "last" or "first". The
    result is compared with layer and module on random features.
    Returns "widened" for new hidden units, "changed" for new weights. Raises: FoldError.
    """
    if position == "sequential" and isinstance(cell, Cell):
        sequential_cell = exact(cell.merged())
        assert isinstance(sequential_cell, Cell)
        # y + s * y + t, computed behind a layer, changes that layer's own weights
        if (affine := sequential_cell.affine()) is not None:
            rescale(plain, *affine, path, channels)
            return "changed"
    if position != "parallel" or not isinstance(cell, Cell):
        raise FoldError(
            f"fold {path!r}",
            got=f"{type(cell).__name__} behind {type(plain).__name__}",
            want="an adapter beside its module (adaptformer, LoRA) or a scale behind it (SSF): "
            "nothing else that follows a module can go into its weights",
            fix=KEEP,
        )
    original, parallel_cell = exact(plain), exact(cell.merged())
    assert isinstance(parallel_cell, Cell)
    if (delta := parallel_cell.delta()) is not None:
        add_weight(plain, delta.detach(), path)
        result = "changed"
    elif (units := _hidden_units(parallel_cell, path)) is not None:
        widen(plain, units, path)
        result = "widened"
    else:
        got = f"{type(parallel_cell).__name__}, which is no linear map"
        want = "an adapter that is a weight change or a bottleneck"
        raise FoldError(f"fold {path!r}", got=got, want=want, fix=KEEP)
    inputs = 0 if isinstance(original, Conv1D) else 1
    width = next(p for p in original.parameters() if p.dim() > 1).shape[inputs]
    # compared on noise: a wrong formula shows here, with the path of its module
    x = torch.randn(64, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        added = parallel_cell(x)
        if channels == "first":
            x, added = x[..., None, None], added[..., None, None]
        deviation = difference([plain(x)], [original(x) + added])
    deviation.check(f"fold {path!r}", 1e3 * EXACT, FoldError, KEEP)
    return result


def _hidden_units(cell: Cell, path: str) -> Units | None:
    """Return the hidden units by which a bottleneck adapter widens an MLP; None for others."""
    try:
        return cell.units()
    except FoldError as error:
        raise FoldError(f"fold {path!r}", got=error.got, want=error.want, fix=KEEP) from error


def _remove_traces(stock: nn.Module) -> None:
    """Remove PEFT's config and this library's hooks from a folded model."""
    stock.__dict__.pop("peft_config", None)
    for module in stock.modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            hooks = getattr(module, kind)
            for key, hook in list(hooks.items()):
                is_ours = getattr(hook, "__module__", "").split(".")[0] in OURS
                if is_ours and not getattr(hook, "stays", False):
                    del hooks[key]


def _wants_whole_ratio(stock: nn.Module) -> bool:
    """Return True if a config has the MLP's width only as a multiple of the input's."""
    config = config_of(stock)
    return isinstance(getattr(config, "mlp_ratio", None), int) and not hasattr(
        config, "intermediate_size"
    )


def _whole_ratio(inputs: int, widest: int) -> int:
    return -(-widest // inputs) * inputs


def _describe(stock: nn.Module) -> str:
    """Write the MLPs' width into a transformers config; return a note if it has no room for it."""
    config = config_of(stock)
    widths = {(m.inputs, m.hidden) for m in mlps(stock).values()}
    if config is None or not hasattr(config, "hidden_size") or not widths:
        return ""
    inputs, hidden = next(iter(widths))
    # most configurations have the width itself, ViT-MAE's kind a ratio
    if len(widths) == 1 and hasattr(config, "intermediate_size"):
        config.intermediate_size = hidden
        return ""
    if len(widths) == 1 and _wants_whole_ratio(stock) and hidden % inputs == 0:
        config.mlp_ratio = hidden // inputs
        return ""
    return (
        f" {type(config).__name__} cannot say these widths: before save_pretrained, fold with "
        "uniform=True."
    )


def _name_classes(stock: nn.Module, origin: Mapping[str, Any]) -> None:
    """Write an adapter's class names into the configuration of the folded model."""
    classes: list[str] = list(origin.get("classes") or ())
    timm_config, config = getattr(stock, "pretrained_cfg", None), config_of(stock)
    # timm writes these into its own exports, transformers into config.json
    if classes and isinstance(timm_config, dict):
        timm_config |= {"label_names": classes, "num_classes": len(classes)}
    elif classes and config is not None and hasattr(config, "id2label"):
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: i for i, name in enumerate(classes)}
