"""A keyword that a public function or class does not have names the one that was meant."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

import intarsia
from intarsia.core.errors import UnknownKeyword
from intarsia.core.exports import public_path
from intarsia.core.guesses import ELSEWHERE

from ..refusals import refused


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: intarsia.Lora(r=8), "rank=8"),  # pyright: ignore
        (lambda: intarsia.Wanda(sparsity=0.75), "density=0.25"),  # pyright: ignore
        (lambda: intarsia.TopK(experts=8, k=2), "active=2"),  # pyright: ignore
        (lambda: intarsia.coding.GSC(atoms=64), "n_components=64"),  # of a class above
        (lambda: intarsia.compress(None, format="bitmask"), "fmt='bitmask'"),  # pyright: ignore
        (lambda: intarsia.compress(None, bits=4), "intarsia.formats.BlockInt(bits=4) as fmt"),  # pyright: ignore
        (lambda: intarsia.recommend.ItemKnn(k=20), "neighbours=20"),  # pyright: ignore
        (
            lambda: intarsia.sparsify(None, sparsity=0.5),  # pyright: ignore
            "intarsia.Wanda(density=0.5) as method",
        ),
    ],
)
def test_what_others_call_a_setting_is_translated(make: Any, meant: str) -> None:
    with pytest.raises(UnknownKeyword) as caught:
        make()
    assert caught.value.fix == f"Did you mean {meant}?"
    # code that catches Python's own error goes on working
    assert isinstance(caught.value, TypeError)
    assert pickle.loads(pickle.dumps(caught.value)).fix == caught.value.fix


def test_a_keyword_like_none_gets_the_list() -> None:
    with refused(UnknownKeyword, what="unknown keyword of Lora", got="'zzz'"):
        intarsia.Lora(zzz=1)  # pyright: ignore


def test_a_further_constructor_refuses_a_keyword_too() -> None:
    what = "unknown keyword of intarsia.search.SparseIndex.build"
    with refused(UnknownKeyword, what=what, got="'ids'"):
        intarsia.search.SparseIndex.build(["a text"], ids=["a"])  # pyright: ignore


def test_what_others_are_called_is_public_here() -> None:
    assert all(public_path(name) for name in ELSEWHERE.values())


def test_a_checked_function_is_one_object_with_its_signature() -> None:
    soup = intarsia.soup
    assert soup is intarsia.soup is pickle.loads(pickle.dumps(soup))
    assert list(inspect.signature(soup).parameters) == ["candidates", "weights"]
    assert list(inspect.signature(intarsia.Lora).parameters)[0] == "rank"


@pytest.mark.parametrize(
    ("space", "name", "says"),
    [
        (intarsia, "LoRA", "Did you mean Lora?"),
        (intarsia, "gsc", "Did you mean intarsia.coding.GSC?"),
        (intarsia, "prune", "Did you mean intarsia.sparsify?"),
        (intarsia, "quantize", "Did you mean intarsia.compress?"),
        (intarsia, "DoRA", "Did you mean intarsia.methods.PeftMethod('dora')?"),
        (intarsia, "export", "Did you mean intarsia.hosts.export_timm?"),
        (intarsia.search, "BM25", "Did you mean intarsia.search.SparseIndex?"),
        (intarsia.codec, "encode", "It has Recombiner, RecombinerSettings."),
    ],
)
def test_a_name_in_another_spelling_is_found(space: Any, name: str, says: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(space, name)
    assert says in str(caught.value)
