"""Every kind of folder and file that the library writes and opens: how, at its smallest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia.areas.codec.codec import PHOTOGRAPHS
from intarsia.areas.codec.prior import Prior
from intarsia.areas.coding.bsc import BSC
from intarsia.areas.search.query_weights import QueryWeights
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.core.files import read_json
from intarsia.data.language_models import language_model
from intarsia.folders.opened import open_language_model, save_language_model
from intarsia.hosts.delta import file as delta_file
from intarsia.hosts.spans.spans import Spans, load_spans
from intarsia.offloading.store import ExpertStore, pack_experts
from intarsia.placement.placement import Placement
from intarsia.placement.trace import Trace
from intarsia.sparse.prune.files import read_folder, save_sparse
from intarsia.sparse.prune.tables import load_tables, save_tables
from intarsia.sparse.swap.relabel import write_relabelled as relabelled

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip


class Kind(NamedTuple):
    """write(path, version): the first or the second of two versions.  version(path): which it is.

    replaces: whether the second is written in the place of the first.
    """

    write: Callable[[Path, int], object]
    version: Callable[[Path], int]
    replaces: bool = True


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3).eval()


def numbered(model: nn.Module, version: int) -> nn.Module:
    """A model whose trained numbers say which version it is."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.fill_(version)
    return model


def of_model(model: nn.Module) -> int:
    """The version that `numbered` has put into a model."""
    versions = {float(p.detach().flatten()[0]) for p in model.parameters() if p.std() == 0}
    return int(max(versions & {1.0, 2.0}))


def mixture(version: int) -> nn.Module:
    return numbered(intarsia.upcycle(vit(), intarsia.TopK(experts=2)), version)


def adapter(method: Any) -> Kind:
    def write(path: Path, version: int) -> object:
        return intarsia.save(numbered(intarsia.adapt(vit(), method), version), path)

    return Kind(write, lambda path: of_model(intarsia.load(vit(), path)))


def llama(version: int = 0) -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return numbered(model, version) if version else model


def words() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def write_changed(path: Path, version: int) -> object:
    model = numbered(intarsia.upcycle(llama(), intarsia.TopK(experts=2)), version)
    return save_language_model(model, path, tokenizer=words())


def sparse(layout: str) -> Kind:
    def version(path: Path) -> int:
        return int(read_folder(path)["model.norm.weight"][0])

    return Kind(lambda p, v: save_sparse(llama(v), p, layout=layout, tokenizer=words()), version)


def stock(path: Path, version: int) -> str:
    """The folder of a stock sparse model."""
    torch.manual_seed(0)
    model: Any = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    numbered(model, version).save_pretrained(path)
    words().save_pretrained(path)
    return str(path)


def write_store(path: Path, version: int) -> object:
    return pack_experts(stock(path.with_name("source"), version), path)


def write_relabelled(path: Path, version: int) -> object:
    owner = torch.tensor([[0, 1], [0, 1]] if version == 1 else [[0, 1], [1, 0]])
    return relabelled(stock(path.with_name("source"), 1), path, Placement.of(owner, 2))


def of_relabelled(path: Path) -> int:
    language_model(str(path))
    return 1 + read_json(path / "placement.json")["order"][1][0]


def of_store(path: Path) -> int:
    """Reads every record, too."""
    store = ExpertStore(path)
    memory = bytearray(store.bytes)
    try:
        for layer in range(len(store.layers)):
            for expert in range(len(store.layers[layer]["sha256"])):
                store.read(layer, expert, memoryview(memory))
        return int(store.rest()["model.norm.weight"][0])
    finally:
        store.close()


def estimator(version: int) -> BSC:
    rows = np.random.default_rng(version).normal(size=(20, 4))
    return BSC(n_components=version + 1, n_iter=1, random_state=0).fit(rows)


class Toy:
    """An encoder of one word."""

    name, digest = "toy", "0" * 64

    def __init__(self) -> None:
        tokenizer = words().backend_tokenizer.to_str()
        self.queries = QueryWeights(tokenizer, np.ones(2, np.float32))

    def encode(self, texts: Any) -> Any:
        from scipy.sparse import csr_matrix

        return csr_matrix(np.ones((len(texts), 2), np.float32))


def write_index(path: Path, version: int) -> object:
    toy: Any = Toy()
    return SparseIndex.build(toy, [(str(i), "a") for i in range(version)]).save(path)


def write_prior(path: Path, version: int) -> object:
    return Prior.load(PHOTOGRAPHS).save(path, {"version": version})


def of_prior(path: Path) -> int:
    Prior.load(path)
    return int(read_json(path / "prior.json")["version"])


def write_delta(path: Path, version: int) -> object:
    model = numbered(intarsia.adapt(vit(), intarsia.Lora(2)), version)
    return intarsia.sparse.delta_of(model).save(path)


def of_delta(path: Path) -> int:
    """LoRA's two factors are full of the version, and so its product of the square of it."""
    intarsia.load(vit(), path)
    tensors, _ = delta_file.read(path)
    largest = max(float(t.max()) for t in tensors.values() if t.is_floating_point())
    return 1 if largest < 4 else 2


def trace(version: int) -> Trace:
    rows = torch.zeros(version, 1, 1, dtype=torch.long)
    place = torch.arange(version)
    return Trace(rows, experts=2, sequence=place * 0, position=place)


def of_tables(path: Path) -> int:
    table = nn.Embedding(4, 3)
    load_tables(table, path)
    return int(table.weight[0, 0])


def write_tables(path: Path, version: int) -> object:
    table = nn.Embedding(4, 3)
    nn.init.constant_(table.weight, version)
    return save_tables(table, path)


KINDS: dict[str, Kind] = {
    "mixture": Kind(
        lambda p, v: intarsia.save(mixture(v), p), lambda p: of_model(intarsia.load(vit(), p))
    ),
    "adapter": adapter(intarsia.Mosa(experts=2)),
    "plain LoRA": adapter(intarsia.Lora(2)),
    "changed language model": Kind(
        write_changed, lambda p: of_model(open_language_model(str(p))[0])
    ),
    "pruned": sparse("dense"),
    "pruned, bitmask": sparse("bitmask"),
    "packed store": Kind(write_store, of_store, replaces=False),
    "estimator": Kind(
        lambda p, v: estimator(v).save(p), lambda p: BSC.load(p).components_.shape[0] - 1
    ),
    "index": Kind(write_index, lambda p: len(SparseIndex.load(p))),
    "prior": Kind(write_prior, of_prior),
    "relabelled": Kind(write_relabelled, of_relabelled),
    "delta": Kind(write_delta, of_delta),
    "trace": Kind(lambda p, v: trace(v).save(p), lambda p: len(Trace.load_file(p))),
    "placement": Kind(
        lambda p, v: Placement.contiguous(v, 2, 2).save(p), lambda p: Placement.load_file(p).layers
    ),
    "spans": Kind(
        lambda p, v: Spans([[1.0] * v], [[0.5] * v]).save(p), lambda p: load_spans(p).heads
    ),
    "tables": Kind(write_tables, of_tables),
}
