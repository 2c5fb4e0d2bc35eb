"""A stock sparse model with only some experts in memory: the same outputs, bit by bit."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..core.checks import UNITS, bytes_of, one_of
from ..core.errors import CheckpointError, ConfigError
from ..core.reading import check_regular
from ..hosts.anatomy.origin import ELSEWHERE
from ..mixtures.experts_function import arguments, stock_experts
from ..placement.cache import Cache, PolicyConfig, Residency
from ..placement.expertflow import Predictive, Predictor
from ..placement.policies import Expected, Lfu, Lru
from .mapped import SLOTS, MappedSlots, MappedStore, attach_mapped
from .slots import Slots, stride
from .store import INDEX, ExpertStore, check_unpacked, pack_experts

SETTINGS = "generation_config.json"
NAME = "intarsia_offload"  # name of the experts function in transformers' table
CHECKS = ("first", "always", "never")
FEW = 1024  # number of (token, expert) pairs up to which a set is faster than torch
Report = Callable[[str], None]


def offload(
    source: str | Path | nn.Module,
    *,
    slots: int | str | float,
    policy: PolicyConfig | None = None,
    predictor: Predictor | None = None,
    store: str | Path | None = None,
    check: str = "first",
    progress: Report = lambda _: None,
) -> nn.Module:
    """Open a causal language model of transformers with only some of its experts in memory.

    source: a store that `pack_experts` wrote, or a folder of save_pretrained, which is packed into
    `store` first, an expert at a time; or a model that was opened from a folder of `compress`: its
    packed experts are read in their mapped file.
    slots: how many experts are in memory, of all layers together, as a number, a size such as
    "8GB", or a share below 1.
    policy: chooses the expert that gives up its slot for another; None = `Expected()`, or
    `Predictive()` with a predictor.
    predictor: foresees each forward's experts from its token ids, as a `TokenTable` does.
    check: when the SHA-256 of an expert's file is compared, at "first" use, "always" or "never".
    progress: gets a line of text for each step of packing.
    At no time are all experts in memory, not while the model is built either. Any slots, policy and
    predictor give the same bits as the whole model under
    `set_experts_implementation("eager")`: the same products in the same order. `generate` works as
    ever; `residency(model)` counts hits and reads.

    Raises: ConfigError for slots that cannot be, with the bytes of an expert, or a packed folder
    that has to be opened first; CheckpointError for files that are damaged, missing or of another
    model; TargetError for a model without experts, or in memory.
    Not for training: there are no experts to be trained.
    """
    one_of("check", check, CHECKS)
    if predictor is not None and isinstance(policy, Expected | Lfu | Lru):
        got, fix = f"one with {policy}", "Leave policy out, or the predictor."
        raise ConfigError("predictor", got=got, want="one with Predictive()", fix=fix)
    policy = policy or (Expected() if predictor is None else Predictive())
    expert_store: ExpertStore | MappedStore
    if isinstance(source, nn.Module):
        expert_store = MappedStore(source)
    else:
        expert_store = ExpertStore(_packed_store(Path(source), store, progress), check)
    try:
        count = slot_count(slots, expert_store)
        cache = Cache(count, policy.build(len(expert_store.layers), expert_store.experts))
        model, arena = _with_slots(source, expert_store, cache)
        if predictor is not None:
            # one token, so that a predictor of another model is refused here
            # checks the sizes of the prediction
            cache.policy.foresee(predictor.chances(torch.zeros(1, dtype=torch.int64)))
            model.register_forward_pre_hook(Foreseeing(cache, predictor), with_kwargs=True)
    except BaseException:
        expert_store.close()
        raise
    # the thread ends and files are closed when nobody has the model any more
    weakref.finalize(model, arena.close)
    return model


def _with_slots(source: Any, store: ExpertStore | MappedStore, cache: Cache) -> tuple[Any, Slots]:
    """Return a model with experts in slots, and the slots; source: the model, or a folder."""
    if isinstance(store, MappedStore):
        mapped = MappedSlots(store, cache)
        attach_mapped(store, mapped)
        return source, mapped
    experts = dict.fromkeys(store.paths, store.experts)
    model = model_without_experts(store.folder, store.rest(), experts)
    slots = Slots(store, cache)
    _attach(model, store, slots)
    return model, slots


def _packed_store(folder: Path, store: str | Path | None, progress: Report) -> Path:
    """Return the folder of packed experts for a source, and create it if there is none yet."""
    if (folder / INDEX).is_file():
        return folder
    check_unpacked(folder)
    packed = Path(store) if store is not None else folder.with_name(f"{folder.name}-experts")
    if not (packed / INDEX).is_file():
        progress(f"copying the experts of {folder} into {packed}, once: as many bytes again")
        pack_experts(folder, packed, progress=progress)
    elif _has_newer_weights(folder, packed / INDEX):
        got, want = f"experts of an earlier {folder.name}", "those of the folder as it is now"
        fix = f"Remove it, or open it as it is: intarsia.offload({str(packed)!r}, ...)."
        raise CheckpointError(f"store {packed}", got=got, want=want, fix=fix)
    else:
        progress(f"experts from {packed}, which is there")
    return packed


def _has_newer_weights(folder: Path, reference: Path) -> bool:
    """Return True if a safetensors file in a folder was written after the file `reference`."""
    files = folder.glob("*.safetensors")
    return any(weights.stat().st_mtime_ns > reference.stat().st_mtime_ns for weights in files)


def residency(model: nn.Module) -> Residency:
    """Return counts of hits and reads of experts, and bytes, since the model was opened.

    Raises: ConfigError for a model that is not offloaded.
    """
    return slots_of(model).residency()


def slots_of(model: nn.Module) -> Slots:
    """Return the memory of an offloaded model's experts.  Raises: ConfigError for another model."""
    for module in model.modules():
        if (entry := module.__dict__.get(SLOTS)) is not None:
            return entry[0]
    got, fix = f"a {type(model).__name__} in memory", "Open it with intarsia.offload."
    raise ConfigError("model", got=got, want="an offloaded one", fix=fix)


def slot_count(slots: int | str | float, store: ExpertStore | MappedStore) -> int:
    """Convert a number of slots, a share or a size to a number of experts.

    slots: a number, a share of all experts (a float up to 1) or a size, as "4GB". Raises:
    ConfigError for fewer than two, or for text that is no size.
    """
    experts = store.total
    want = f"2 ... {experts} experts of {store.bytes} bytes each"
    fix = f"For example: slots={max(2, experts // 4)}, or {_size_text(2 * stride(store.bytes))!r}."
    count: float = -1
    if isinstance(slots, str):
        if (size := bytes_of(slots)) is not None:
            count = size // stride(store.bytes)
    else:
        count = slots * experts if isinstance(slots, float) and slots <= 1 else slots
    is_fraction = isinstance(slots, float) and slots > 1 and not slots.is_integer()
    if not count >= 2 or count != count or is_fraction:
        raise ConfigError("slots", got=repr(slots), want=want, fix=fix)
    # too large a size in bytes is no mistake: it states the memory of the machine
    if count > experts:
        if not isinstance(slots, str):
            message = f"slots={slots} are more than the {experts} experts there are: all stay."
            warnings.warn(message, stacklevel=3)
        count = experts
    return int(count)


def _size_text(count: int) -> str:
    """Format bytes as text that `slot_count` reads, rounded up."""
    name = next((n for n in ("GB", "MB") if count >= 100 * UNITS[n]), "KB")
    return f"{-(-count // UNITS[name])}{name}"


class Foreseeing:
    """Hook before each forward that predicts its experts from its token ids."""

    def __init__(self, cache: Cache, predictor: Predictor) -> None:
        self.cache, self.predictor = cache, predictor

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell the cache which experts the tokens of this forward will probably need."""
        ids = args[0] if args else kwargs.get("input_ids")
        # embeddings predict nothing
        if isinstance(ids, Tensor) and not ids.is_floating_point():
            self.foresee(ids.flatten())
        else:
            self.cache.policy.foresee(None)

    def foresee(self, tokens: Tensor) -> None:
        """Tell the cache which experts some tokens (N,) will probably need."""
        self.cache.policy.foresee(self.predictor.chances(tokens))


class _View:
    """Stand-in for a stacked weight of all experts: view[e] is expert e's, read when it is used."""

    def __init__(self, slots: Slots, layer: int, name: str) -> None:
        self.slots, self.layer, self.name = slots, layer, name

    def __getitem__(self, expert: Any) -> Tensor:
        return self.slots.expert(self.layer, int(expert))[self.name]


def _offloaded(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Compute a layer's experts in ascending order, while a thread reads the next ones."""
    slots, layer = cast("tuple[Slots, int]", getattr(self, SLOTS))
    # hidden (T, d), index (T, k) of the experts, weights (T, k)
    hidden, index, _ = arguments(args, kwargs)
    if torch.is_grad_enabled() and hidden.requires_grad:
        got, fix = "a forward with gradients", "Run it under torch.no_grad()."
        raise ConfigError("offloaded model", got=got, want="inference", fix=fix)
    routed = set(index.flatten().tolist()) if index.numel() <= FEW else index.unique().tolist()
    experts = sorted(e for e in routed if e < slots.store.experts)
    with slots.turn:
        try:
            # the reads begin now, while the products of the first expert are computed
            slots.ask(layer, experts)
            output = type(self).forward.__wrapped__(self, *args, **kwargs)
        finally:
            slots.let_go()
        slots.guess()
    return output


class _ExpertsOnMeta(TorchFunctionMode):
    """Mode of torch in which stacked weights of `experts` experts get no memory."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Create stacked weights of all experts on the meta device, and anything else as usual."""
        kwargs = kwargs or {}
        shape = args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args
        if func in (torch.empty, torch.zeros) and len(shape) in (2, 3) and shape[0] == self.experts:
            # stacked weights have experts as their first side, and are the only ones that do
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def model_without_experts(
    folder: Path, rest: Mapping[str, Tensor], experts: Mapping[str, int]
) -> Any:
    """Build a model with every weight except the experts', which stay on the meta device.

    folder: with its configuration; rest: the other weights by name, which are not copied;
    experts: path -> how many there are. Raises: CheckpointError for what does not fit together.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        check_regular(folder)
    except (OSError, ValueError) as error:
        want, fix = "the configuration that was packed", "Pack the model again."
        raise CheckpointError(f"store {folder}", got=error, want=want, fix=fix) from error
    dtype = next((t.dtype for n, t in rest.items() if "embed" in n), torch.float32)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with _ExpertsOnMeta(max(experts.values())), torch.random.fork_rng(devices=[]):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, experts_implementation="eager", trust_remote_code=False
            )
        # assign: the tensors of the file become the weights, without a copy
        missing, extra = model.load_state_dict(rest, strict=False, assign=True)
    except Exception as error:  # a configuration may hold anything, and fail anywhere
        want, fix = "a configuration and weights of one model", "Pack the model again."
        raise CheckpointError(f"store {folder}", got=error, want=want, fix=fix) from error
    model.tie_weights()
    at_experts = tuple(f"{path}." for path in experts)
    unfilled = [
        name
        for name, t in model.state_dict().items()
        if t.is_meta and not name.startswith(at_experts)
    ]
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    unread = [n for n in missing if not n.startswith(at_experts) and n not in tied]
    if extra or unfilled or unread:
        names = [*extra, *unfilled, *unread]
        got = f"weights that do not belong together: {', '.join(names[:3])}"
        fix = "Its layout on disk is not known; save it with this version of transformers."
        want = f"the weights of {type(model).__name__}"
        raise CheckpointError(f"store {folder}", got=got, want=want, fix=fix)
    if (folder / SETTINGS).is_file():
        model.generation_config = _settings(folder)
    return model.eval()


def _settings(folder: Path) -> Any:
    """Read the settings of `generate` in a folder: end tokens and sampling."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # it may hold anything, and fail anywhere
        want, fix = "settings of generate", "Pack the model again."
        raise CheckpointError(f"{folder / SETTINGS}", got=error, want=want, fix=fix) from error


def _attach(model: Any, store: ExpertStore, slots: Slots) -> None:
    """Replace the stacked weights by views of the slots, and register the function reading them."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if NAME not in ALL_EXPERTS_FUNCTIONS:
        ALL_EXPERTS_FUNCTIONS.register(NAME, _offloaded)
    stock = stock_experts(model)
    # three checks before anything is taken out: paths, numbers and names of the experts
    if list(stock) != store.paths:
        got, want = f"experts at {list(stock)[:2]}", f"at {store.paths[:2]}, as packed"
        raise CheckpointError(f"store {store.folder}", got=got, want=want, fix="Pack it again.")
    for layer, (path, experts) in enumerate(stock.items()):
        count = len(store.layers[layer]["sha256"])
        if count != experts.experts:
            got, want = (
                f"{count} experts at {path}",
                f"{experts.experts}, as the configuration says",
            )
            fix = "Copy the model's folder again: a file is missing. Then pack it again."
            raise CheckpointError(f"store {store.folder}", got=got, want=want, fix=fix)
        names = {part["name"] for part in store.layers[layer]["parts"]}
        parameters = {name for name, _ in experts.module.named_parameters(recurse=False)}
        if parameters != names:
            got, want = f"{sorted(names)} of {path}", f"{sorted(parameters)}"
            raise CheckpointError(f"store {store.folder}", got=got, want=want, fix="Pack it again.")
        # names and shapes stay known, for the model's fingerprint
        experts.module.__dict__[ELSEWHERE] = {
            n: experts.module._parameters[n] for n in sorted(names)
        }
        for name in names:
            delattr(experts.module, name)
            experts.module.__dict__[name] = _View(slots, layer, name)
        experts.module.__dict__[SLOTS] = slots, layer
    model.set_experts_implementation(NAME)
