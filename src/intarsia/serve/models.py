"""The models of a server: opened once at the start, adapters on one trunk, nothing else."""

from __future__ import annotations

import copy
import difflib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ..core.checks import at_least
from ..core.errors import AssetError, CheckpointError, ConfigError
from ..core.reading import check_regular
from ..decode.native_decoder import TakingTurns, path_of, why_not
from ..folders.opened import is_changed, open_language_model
from ..folders.saved import load, replays
from ..hosts.anatomy.blocks import base_of
from ..hosts.attach.config import peft_kind
from ..hosts.in_memory import hold
from ..hosts.spans.head_spans import spans_of
from ..offloading.resident import SLOTS, offload
from ..offloading.slots import Slots
from ..offloading.store import INDEX
from ..placement.cache import PolicyConfig
from .refusals import Refused, shown

Report = Callable[[str], None]
CONTEXT = 4096  # tokens: a long context's keys and values need more memory than small models


@dataclass(frozen=True)
class ServedModel:
    """Model under a name: a language model, or one with an adapter on shared weights.

    trunk: name of the model that has these weights; slots: memory of offloaded experts; longest:
    tokens of prompt and answer that the user allows.
    """

    name: str
    model: Any
    tokenizer: Any
    trunk: str
    slots: Slots | None = None
    longest: int = CONTEXT  # tokens that the user allows

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together, by the model, its spans and the user."""
        config, spans = self.model.config.get_text_config(), spans_of(self.model)
        longest = self.longest if spans is None else min(self.longest, spans[1])
        return min(int(getattr(config, "max_position_embeddings", None) or CONTEXT), longest)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return int(self.model.config.get_text_config().vocab_size)


def open_models(
    sources: Mapping[str, str],
    adapters: Mapping[str, Path] | None = None,
    *,
    slots: int | float | str | None = None,
    policy: PolicyConfig | None = None,
    context: int = CONTEXT,
    dtype: str = "auto",
    progress: Report = lambda _: None,
) -> dict[str, ServedModel]:
    """Open language models by name, and adapters on one of them.

    sources: name -> what `open_language_model` takes, or a folder of `pack_experts`.  adapters:
    name -> folder, of `intarsia.save`, PEFT or a run.
    slots: number, share or size of experts in memory, see `offload`; a folder of `pack_experts` has
    all of them in memory if it is not given.
    context: tokens of prompt and answer at most, where the model has room for more.
    dtype: of a resident model's weights; "auto" for its file's dtype.
    An adapter is a model of its own: its modules are copies, its weights the model's own, so
    that no request has to wait for another adapter to be switched off. A folder that changes the
    model itself, such as a pruned one or one with spans, gets a copy of the weights, too. One
    forward runs at a time.

    Raises: ConfigError for names that are used twice, adapters of several models, and a dtype
    where weights have their own; CheckpointError for a folder of another model, or with a weight
    that is not finite. Weights are in memory, so that the files may change meanwhile.
    """
    at_least("context", context, 2)
    adapters = dict(adapters or {})
    if duplicates := sorted(sources.keys() & adapters.keys()):
        got, fix = f"{duplicates[0]!r} twice", "For example: --adapter other=FOLDER"
        raise ConfigError("names of models", got=got, want="each one once", fix=fix)
    if adapters and len(sources) != 1:
        got, fix = f"adapters beside {len(sources)} models", "Start a server for each model."
        raise ConfigError("adapters", got=got, want="one model", fix=fix)
    served: dict[str, ServedModel] = {}
    for name, source in sources.items():
        progress(f"opening {name}")
        trunk = replace(_trunk(name, source, slots, policy, dtype, progress), longest=context)
        lock = threading.Lock()
        # copies are made before the trunk's forward is locked, or each would be locked twice
        twins = {key: twin(trunk.model, replays(path)) for key, path in adapters.items()}
        one_at_a_time(trunk.model, lock)
        progress(f"{name}: {path_of(why_not(trunk.model))}")
        served[name] = trunk
        for key, folder in adapters.items():
            progress(f"opening {key}")
            model = _with_adapter(twins[key], folder)
            one_at_a_time(model, lock)
            progress(f"{key}: {path_of(why_not(model))}")
            served[key] = replace(trunk, name=key, model=model)
    return served


def _trunk(
    name: str,
    source: str,
    slots: int | float | str | None,
    policy: PolicyConfig | None,
    dtype: str,
    progress: Report,
) -> ServedModel:
    """Open one language model, with offloaded experts if `slots` or its folder asks for them."""
    folder, expert_slots = Path(source), None
    if slots is None and (folder / INDEX).is_file():
        progress("all experts stay in memory; --slots 0.25 would keep a quarter of them")
        slots = 1.0
    # packed experts and changed models keep the type in which they were written
    if dtype != "auto" and (slots is not None or is_changed(folder)):
        got, want = f"{dtype} for {source}", "auto: its weights keep the dtype of their file"
        raise ConfigError("--dtype", got=got, want=want, fix="Leave it out.")
    packed = slots is not None and is_changed(folder)
    if slots is None or packed:
        model, tokenizer = open_language_model(source, dtype=dtype, progress=progress)
    if slots is not None:
        opened: Any = model if packed else source
        model = offload(opened, slots=slots, policy=policy, progress=progress)
        # the slots are an attribute of the module that has the experts
        expert_slots = next(m.__dict__[SLOTS][0] for m in model.modules() if SLOTS in m.__dict__)
    if slots is not None and not packed:
        try:
            check_regular(source)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            fix = "Copy tokenizer.json and tokenizer_config.json into the folder."
            raise AssetError(f"tokenizer of {source!r}", got=error, want="one", fix=fix) from error
    # slow tokenizers cannot decode a stream token by token
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        got, want = type(tokenizer).__name__, "a fast tokenizer, which tells text token by token"
        raise AssetError(f"tokenizer of {source!r}", got=got, want=want, fix="Save tokenizer.json.")
    hold(model, source)
    served_model: Any = model.eval().requires_grad_(False)
    served_model.config.use_cache = True
    return ServedModel(name, served_model, tokenizer, name, expert_slots)


def twin(model: nn.Module, weights: bool = False) -> Any:
    """Copy a model's modules; weights, buffers and resident experts are the original's."""
    shared = () if weights else (*model.parameters(), *model.buffers())
    # deepcopy takes objects of its memo for copies: weights, and slots with their cache stay shared
    memo: dict[int, Any] = {id(t): t for t in shared}
    for module in model.modules():
        if (expert_slots := module.__dict__.get(SLOTS)) is not None:
            memo[id(expert_slots[0])] = expert_slots[0]
            memo[id(expert_slots[0].cache)] = expert_slots[0].cache
    # a saved folder may hold trained weights, which `load` finds by their flags
    return copy.deepcopy(model, memo).requires_grad_(weights)


def one_at_a_time(model: Any, lock: threading.Lock) -> None:
    """Replace a model's forward by one that waits for a lock, which its copies share."""
    model.forward = TakingTurns(model.forward, lock)


def _with_adapter(copied: Any, folder: Path) -> Any:
    """Load an adapter into a copy of a model, and return the model in evaluation."""
    model = load(copied, folder)
    config = model.active_peft_config if isinstance(model, PeftModel) else None
    # virtual tokens shift positions, which a batch of several prompts does not expect
    if config is not None and config.is_prompt_learning:
        kind = peft_kind(config)
        got, want = f"{kind}, tokens in front of the prompt", "weights"
        fix = "Serve LoRA, or another adapter that sits at layers."
        raise CheckpointError(f"adapter {str(folder)!r}", got=got, want=want, fix=fix)
    base = base_of(model)
    if not isinstance(base, PreTrainedModel):
        got, fix = type(base).__name__, "Serve a language model of transformers."
        raise ConfigError("model", got=got, want="one that generates", fix=fix)
    hold(base, str(folder))
    return base.eval().requires_grad_(False)


class ServedModels:
    """Models that the server has opened, by name."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.models = dict(models)

    def find(self, name: str) -> ServedModel:
        """Return a model by its name.  Raises: Refused, 404, with the most similar name."""
        if name in self.models:
            return self.models[name]
        # a client's text may be long, and is compared no further than any name is
        near = difflib.get_close_matches(name[:200], self.models, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(self.models)}."
        message = f"The model {shown(name)} does not exist. {hint}"
        raise Refused(404, message, param="model", code="model_not_found")

    def listed(self) -> list[dict[str, Any]]:
        """Return each model's fields as OpenAI lists them, and those that the web page reads."""
        return [
            {
                "id": served.name,
                "object": "model",
                "created": 0,
                "owned_by": "local",
                "root": served.trunk,
                "parent": None if served.name == served.trunk else served.trunk,
                "max_model_len": served.context,
                "chat": bool(served.tokenizer.chat_template),
            }
            for served in self.models.values()
        ]

    def slots(self) -> Iterator[tuple[str, Slots]]:
        """Yield name and resident experts of each model with offloaded experts."""
        for served in self.models.values():
            if served.slots is not None and served.name == served.trunk:
                yield served.name, served.slots
