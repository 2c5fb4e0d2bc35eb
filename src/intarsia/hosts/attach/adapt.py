"""Put a method's cells into a pretrained model."""

from __future__ import annotations

import abc
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, cast

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel
from torch import nn

from ...core import Method
from ...core.change import Change, Plan
from ...core.errors import ConfigError, TargetError
from ...core.foreign import config_of
from ...core.heads import heads_of
from ...core.method_settings import MethodSettings
from ...core.registry import KEY, card, method_key, method_to_dict
from ..anatomy.blocks import base_of, unwrapped, walk
from ..anatomy.sites import planned
from ..folding.fold import fold
from .config import IntarsiaConfig
from .peft import is_adapted


def find_heads(model: nn.Module) -> list[str]:
    """Return the paths of a model's classifiers, as `heads_of` finds them, that have weights."""
    heads, modules = [unwrapped(m) for m in heads_of(model)], dict(walk(model))
    paths = [p for p, m in modules.items() if any(unwrapped(m) is h for h in heads)]
    # PEFT goes by the ends of names: of RepViT's `head`, with a `head` in it, it gets the parts
    inside = {p: [q for q in modules if q.rpartition(".")[0] == p] for p in paths}
    paths = [part for p in paths for part in (inside[p] if f"{p}.{p}" in inside[p] else [p])]
    return [p for p in paths if next(modules[p].parameters(), None) is not None]


class PublishedRecipe(MethodSettings, abc.ABC):
    """Published training: a method, and its changes to the model before cells go in."""

    @property
    @abc.abstractmethod
    def method(self) -> Method: ...

    @classmethod
    def for_training(cls, training: Any) -> Self:
        """Build the recipe, with the values of a `Training` for those settings that both have.

        A rate that was not given stays the recipe's own.
        """
        shared = {f.name for f in fields(cast(Any, cls))} & {f.name for f in fields(training)}
        values = {name: getattr(training, name) for name in shared}
        return cls(**{name: value for name, value in values.items() if value is not None})

    @abc.abstractmethod
    def prepare(self, host: nn.Module, seed: int) -> None:
        """Change the plain model in place, before the method's modules are added."""


@dataclass(frozen=True)
class Adapt(Change):
    """Change that puts a method's trainable modules into a frozen model; its head is trained whole.

    method: settings of the method; targets: module names, ends of names or globs, where the
    method's own choice of modules does not suit.
    layers: numbers of the blocks to adapt; negative ones count from the last.
    head: paths of modules trained and saved whole; "auto" finds the classifier, None trains none.
    classes: their names, stored with the adapter and compared at load.
    recipe: the published recipe that this method belongs to; it prepares the model before.

    Raises: TargetError if a target matches nothing or cannot be adapted; ConfigError for a name
    in use.
    """

    method: Method
    targets: Sequence[str] | str | None = None
    layers: Sequence[int] | None = None
    head: Sequence[str] | str | None = "auto"
    classes: Sequence[str] | None = None
    recipe: PublishedRecipe | None = None

    rewires: ClassVar[bool] = True
    recorded: ClassVar[bool] = False  # PEFT keeps the list of adapters

    @property
    def preserves(self) -> frozenset[str]:
        """Set with "outputs", if the method adds 0 at first and no recipe changes the host."""
        starts = "zero_start" in card(method_key(self.method)).tags and self.recipe is None
        return frozenset({"outputs"}) if starts else frozenset()

    def plan(self, host: nn.Module, batches: Iterable[Any] = (), *, seed: int = 0) -> Plan:
        """Decide the method's settings for the model, the modules it adapts, and the heads.

        Raises: TargetError for a target that cannot be adapted, or is inside a head.
        """
        check_addable(host)
        host = base_of(host)
        heads = named_heads(host, self.head)
        method, sites = planned(host, self.method, self.targets, self.layers, seed, batches)
        # a head is trained whole: an adapter in it would train the same weights twice
        inside = [s for s in sites if any(s.path == h or s.path.startswith(f"{h}.") for h in heads)]
        if self.targets is None and len(inside) < len(sites):  # roles never mean layers of a head
            sites = [site for site in sites if site not in inside]
        else:
            for site in inside:
                subject, got = f"target {site.path!r}", "a head, which is trained whole"
                fix = "Pass head=None to leave the head to the adapter."
                raise TargetError(subject, got=got, want="a module of the trunk", fix=fix)
        targets = tuple(site.path for site in sites)
        return Plan(replace(self, method=method, targets=targets, layers=None, head=heads), seed)

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> PeftModel:
        """Add the adapter: inactive in an adapted model; a plain one becomes a PEFT model."""
        check_model(host, name)
        if self.recipe is not None:
            self.recipe.prepare(host, plan.seed)
        # the method's key stands apart from its settings in PEFT's file
        options = method_to_dict(self.method)
        classes = None if self.classes is None else {"classes": list(self.classes)}
        config = IntarsiaConfig(
            method=options.pop(KEY),
            options=options,
            seed=plan.seed,
            target_modules=exact_targets(base_of(host), list(self.targets or ())),
            modules_to_save=list(self.head or ()) or None,
            origin=classes,
        )
        return attach(host, config, name)

    def fold(self, host: nn.Module) -> nn.Module:
        """Fold the adapter, see `intarsia.fold`."""
        return fold(cast(PeftModel, host))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence those warnings of PEFT, inside the `with`, that need no action of a user."""
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.24 has renamed
        renamed = "`is_gradient_checkpointing` is deprecated"
        warnings.filterwarnings("ignore", renamed, FutureWarning)
        # LNTuning does not know timm's LayerNorm, which it can train like any other
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        yield


def attach(model: nn.Module, config: IntarsiaConfig, name: str) -> PeftModel:
    """Add an adapter to a model; a plain model becomes a PEFT model.

    model: plain, or with adapters, to which this one is added inactive. Raises: ConfigError for a
    name that occurs in the path of a weight.
    """
    # a further adapter of an adapted model is inactive until it is set
    if is_adapted(model):
        model.add_adapter(name, config)
        _check_words(model)
        return model
    config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    # by the task PEFT chooses a wrapper with a `generate` that knows adapters
    config.task_type = task_type_of(model)
    kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
    with quiet_peft():
        adapted = kind(model, config, name)
    _check_words(adapted)
    return adapted


def task_type_of(model: nn.Module) -> str | None:
    """Return PEFT's name for the task of a transformers model, by which PEFT chooses its wrapper.

    None for models that do not generate from token ids: PEFT's wrappers for classification train
    heads of their own choice, and its wrappers for other models take other inputs.
    """
    generates: Any = getattr(model, "can_generate", None)
    reads = getattr(model, "main_input_name", None)
    if not callable(generates) or not generates() or reads != "input_ids":
        return None
    config: Any = config_of(model)
    return "SEQ_2_SEQ_LM" if getattr(config, "is_encoder_decoder", False) else "CAUSAL_LM"


def _check_words(model: PeftModel) -> None:
    """Check that no adapter has the name of a module or weight in the model."""
    # PEFT saves an adapter as the weights with no other adapter's name in their path: others
    # would be missing from the file. Every word in such a path, but adapters' own names:
    words: set[str] = set()
    for path in model.state_dict():
        parts = path.split(".")
        # the word after these is an adapter's name
        words |= {
            word
            for before, word in zip(("", *parts), parts, strict=False)
            if before not in ("intarsia_cells", "modules_to_save")
        }
    if clash := sorted(words & set(model.peft_config)):
        subject = "adapter name"
        fix = f"Choose another, such as '{clash[0]}-adapter': weights would be lost when saved."
        raise ConfigError(
            subject, got=repr(clash[0]), want="no word in the path of a weight", fix=fix
        )


def check_addable(model: nn.Module) -> None:
    """Check that a model has no adapters of another library.  Raises: ConfigError."""
    if isinstance(model, PeftModel) and not is_adapted(model):
        got = "a PeftModel with adapters of PEFT's own"
        fix = "Call model.unload() or model.merge_and_unload() first."
        raise ConfigError("model", got=got, want="a plain or adapted model", fix=fix)


def check_model(model: nn.Module, name: str) -> None:
    """Check that a model can take one more adapter under a name.  Raises: ConfigError."""
    check_addable(model)
    check_name(model, name)


def check_name(model: nn.Module, name: str) -> None:
    """Check that an adapter can have a name, which none of the model has.  Raises: ConfigError."""
    if not name or "." in name or hasattr(nn.ModuleDict(), name):
        want = "a name without dots that torch does not use itself"
        fix = "Letters, digits, - and _ are fine: 'solar-cells'."
        raise ConfigError("adapter name", got=repr(name), want=want, fix=fix)
    if isinstance(model, PeftModel) and name in model.peft_config:
        want = f"none of {sorted(model.peft_config)}"
        fix = "Choose another name, or call model.delete_adapter first."
        raise ConfigError("adapter name", got=repr(name), want=want, fix=fix)


def exact_targets(host: nn.Module, paths: list[str]) -> set[str] | str:
    """Return a value of PEFT's `target_modules` that matches exactly the given paths.

    PEFT matches the ends of paths: where an end would match other modules, too, the value is a
    regular expression for whole paths, otherwise the set of paths.
    """
    names = [p for p, _ in walk(host)]
    # a string is a pattern for the whole path, a set means ends of paths
    if any(n.endswith(f".{p}") and n not in paths for n in names for p in paths):
        return "|".join(re.escape(p) for p in paths)
    return set(paths)


def named_heads(host: nn.Module, head: Sequence[str] | str | None) -> list[str]:
    """Return the paths of the heads: those that are named, or the classifiers for "auto".

    head: path, list of paths, "auto", or None for none.
    Raises: TargetError for a path that does not belong to exactly one module.
    """
    if head is None:
        return []
    names = [head] if isinstance(head, str) else list(head)
    names = find_heads(host) if names == ["auto"] else names
    paths = [p for p, _ in walk(host) if p]
    for head_path in names:
        # PEFT goes by the ends of names
        also = [p for p in paths if p.endswith(head_path) and p not in names]
        if head_path not in paths or also:
            got = f"the end of {also} too" if head_path in paths else "no module of that path"
            want = "the path of one module, to be trained and saved whole"
            fix = f"The model's own: {find_heads(host) or 'none found'}; or pass head=None."
            raise TargetError(f"head {head_path!r}", got=got, want=want, fix=fix)
    return names
