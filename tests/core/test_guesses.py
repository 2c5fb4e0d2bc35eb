"""A keyword that a public function or class does not have names the one that was meant."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
from torch import nn

import intarsia
from intarsia.core.errors import CallError, UnknownKeyword
from intarsia.core.exports import ROOT, VALUES, homes, public_path
from intarsia.core.guessed_words import ELSEWHERE
from intarsia.core.guesses import CHECKED, checked

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
            lambda: intarsia.upcycle(None, experts=4, top_k=2),  # pyright: ignore
            "intarsia.TopK(active=2) as router",
        ),
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
        (intarsia, "LoraConfig", "Did you mean intarsia.Lora?"),
        (intarsia, "zzz", "all names: dir(intarsia)"),
        (intarsia.mixtures, "MoELayer", "Did you mean intarsia.mixtures.Mixture?"),
        (intarsia.mixtures, "zzz", "more: dir(intarsia.mixtures)"),
        (intarsia.hosts, "Lora", "It is intarsia.Lora."),
        (intarsia.codec, "encode", "intarsia.codec has Recombiner, RecombinerSettings."),
    ],
)
def test_a_name_in_another_spelling_is_found(space: Any, name: str, says: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(space, name)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "kind", "says"),
    [
        ("from intarsia.codec import Codec", ImportError, "intarsia.codec has Recombiner"),
        ("from intarsia import LoraConfig", ImportError, "Did you mean intarsia.Lora?"),
        ("from intarsia.serve import Server", ImportError, "cannot import name 'Server'"),
        ("import intarsia.pruning", ModuleNotFoundError, "Did you mean intarsia.sparsify?"),
        ("from intarsia.lora import Lora", ModuleNotFoundError, "Did you mean Lora?"),
        ("import intarsia.serve; intarsia.serve(1)", CallError, "intarsia serve FOLDER"),
        ("import intarsia; intarsia.train(1)", CallError, "Did you mean intarsia.fit?"),
    ],
)
def test_an_import_and_a_called_namespace_name_what_was_meant(
    statement: str, kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind) as caught:
        exec(statement, {})  # noqa: S102
    assert says in str(caught.value)


def test_modules_that_are_no_public_names_are_imported_as_before() -> None:
    names: dict[str, Any] = {}
    exec("from intarsia.core import files; from intarsia.hosts import attach", names)  # noqa: S102
    assert names["files"].__name__ == "intarsia.core.files"
    assert not hasattr(intarsia, "zzz") and not hasattr(intarsia.hosts, "__wrapped__")


@pytest.mark.parametrize(
    ("call", "what", "got"),
    [
        (lambda: intarsia.compress(None), "call of intarsia.compress", "'fmt'"),  # pyright: ignore
        (lambda: intarsia.evaluate(1, 2, 3), "call of intarsia.evaluate", "too many"),  # pyright: ignore
        (lambda: intarsia.search.SparseIndex(), "call of SparseIndex", "'queries'"),  # pyright: ignore
        (lambda: intarsia.generate(nn.Linear(1, 1), "a", 2), "ids of intarsia.generate", "str"),  # pyright: ignore
        (lambda: intarsia.placement.place([0], 4), "trace of intarsia.placement.place", "list"),  # pyright: ignore
    ],
)
def test_a_call_that_cannot_be_is_refused_in_words(call: Any, what: str, got: str) -> None:
    with pytest.raises(CallError) as caught:
        call()
    assert caught.value.what == what and got in str(caught.value.got)
    assert isinstance(caught.value, TypeError)


def test_a_call_without_what_a_constructor_needs_names_the_others() -> None:
    with pytest.raises(CallError, match=r"SparseIndex\.build\(\.\.\.\)"):
        intarsia.search.SparseIndex()  # pyright: ignore


def test_settings_where_what_they_build_belongs_say_so() -> None:
    experts = [nn.Linear(4, 4) for _ in range(2)]
    with refused(CallError, what="router of Mixture", got="TopK") as caught:
        intarsia.mixtures.Mixture(experts, intarsia.TopK(experts=2, active=2))  # pyright: ignore
    assert "TopK(...).build(...)" in str(caught.value)


def test_methods_and_attributes_of_what_is_opened_are_answered_too() -> None:
    index = intarsia.search.SparseIndex.build(["a red lamp", "an owl"])
    with pytest.raises(UnknownKeyword, match="Did you mean k=1"):
        index.search("lamp", top_k=1)  # pyright: ignore
    with pytest.raises(AttributeError, match="Did you mean append"):
        index.add("a text")  # pyright: ignore
    with pytest.raises(UnknownKeyword, match="Did you mean topology=2"):
        intarsia.placement.place(None, devices=2)  # pyright: ignore


def test_errors_of_the_work_itself_stay_as_they_are() -> None:
    class Works:
        @property
        def late(self) -> int:
            raise AttributeError("not yet")

        def add(self, x: int) -> int:
            return x + "1"  # pyright: ignore

    Works.__module__ = "intarsia.trial"
    checked(Works, "Works", functions=True, methods=True)
    with pytest.raises(AttributeError, match="^not yet$"):
        _ = Works().late
    with pytest.raises(TypeError, match="unsupported operand"):
        Works().add(1)
    with pytest.raises(UnknownKeyword):
        Works().add(1, y=2)  # pyright: ignore


def test_every_public_function_answers_a_wrong_call() -> None:
    top = homes(ROOT / "__init__.pyi")
    spaces = [name for name, home in top.items() if not home]
    assert set(spaces) > VALUES
    listed = [s for s in spaces if s not in VALUES and "__getattr__" in vars(getattr(intarsia, s))]
    for space in (intarsia, *(getattr(intarsia, s) for s in listed)):
        for name in dir(space):
            thing = getattr(space, name)
            if inspect.isfunction(thing) and thing.__module__.startswith("intarsia"):
                takes_any = "VAR_KEYWORD" in {
                    p.kind.name for p in inspect.signature(thing).parameters.values()
                }
                assert takes_any or CHECKED in vars(thing), f"{space.__name__}.{name}"
