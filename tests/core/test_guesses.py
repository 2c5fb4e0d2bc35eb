"""A keyword that a public function or class does not have names the one that was meant."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

import intarsia
from intarsia import TopK
from intarsia.core.errors import CallError, ConfigError, UnknownKeyword
from intarsia.core.exports import ROOT, VALUES, homes, public_path
from intarsia.core.guessed_words import ELSEWHERE
from intarsia.core.guesses import CHECKED, checked

from ..refusals import refused


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: intarsia.Lora(r=8), "r=8 is read as rank=8"),  # pyright: ignore
        (lambda: intarsia.Wanda(sparsity=0.75), "sparsity=0.75 is read as density=0.25"),  # pyright: ignore
        (lambda: intarsia.TopK(k=3), "k=3 is read as active=3"),  # pyright: ignore
        (lambda: intarsia.coding.GSC(atoms=64), "atoms=64 is read as n_components=64"),  # pyright: ignore
        (lambda: intarsia.recommend.ItemKnn(k=20), "k=20 is read as neighbours=20"),  # pyright: ignore
        # the setting of one of a setting's kinds
        (lambda: intarsia.Mosa(r=4), "r=4 is read as over=Lora(rank=4)"),  # pyright: ignore
    ],
)
def test_what_others_call_a_setting_is_read_as_it(make: Any, said: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(said)):
        thing = make()
    # nothing but the warning is left of the other word
    name, _, value = said.rpartition(" ")[2].partition("=")
    assert repr(getattr(thing, name)).startswith(value.rstrip(")"))


def test_settings_of_a_setting_may_stand_in_the_call() -> None:
    default = TopK()

    def build(width: int, router: TopK | str = default, *, out: str = "") -> tuple[int, Any, str]:
        return width, router, out

    build.__module__, build.__annotations__ = "intarsia.trial", {"width": int, "router": TopK | str}
    call = checked(build, "intarsia.trial.build", functions=True, methods=False)
    with pytest.warns(UserWarning) as caught:
        assert call(dim=4, num_experts=6, top_k=3) == (4, TopK(6, 3), "")
    assert str(caught[1].message).endswith("num_experts=6 is read as router=TopK(experts=6)")
    with pytest.warns(UserWarning):
        assert call(4, "topk", active=1 + 1)[1] == TopK(8, 2)
    # settings that are given are not changed, and nothing is given twice
    for wrong in ({"router": TopK(), "active": 2}, {"active": 2, "k": 2}, {"width": 1}):
        with pytest.raises(UnknownKeyword):
            call(4, **wrong, **({"dim": 4} if "width" in wrong else {}))


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (
            lambda: intarsia.compress(None, "bitmask", bits=4),
            "intarsia.formats.BlockInt(bits=4) as fmt",
        ),  # pyright: ignore
        (
            lambda: intarsia.upcycle(None, intarsia.TopK(), top_k=2),  # pyright: ignore
            "intarsia.TopK(active=2) as router",
        ),
        # near, and yet another thing: it counts the prompt, too
        (lambda: intarsia.generate(None, None, max_length=4), "tokens=4"),  # pyright: ignore
    ],
)
def test_what_may_mean_another_thing_is_translated(make: Any, meant: str) -> None:
    with pytest.raises(UnknownKeyword) as caught:
        make()
    assert caught.value.fix == f"Did you mean {meant}?"
    # code that catches Python's own error goes on working
    assert isinstance(caught.value, TypeError)
    assert pickle.loads(pickle.dumps(caught.value)).fix == caught.value.fix


def test_verbs_take_the_rows_and_numbers_that_they_are_given() -> None:
    # a trace's loads alone, an index of texts, a router without a generator
    load = torch.tensor([[9, 1, 1, 9], [1, 1, 1, 1]])
    with pytest.warns(UserWarning, match="devices=2 is read as topology=2"):
        placement = intarsia.place(load, devices=2)  # pyright: ignore
    shares = (load[0] * placement.holds[0]).sum(1).tolist()
    assert shares == [10, 10]
    index = intarsia.search.SparseIndex(["a cat purrs", "a dog barks"]).append(["a bird can fly"])
    assert [hit.id for hit in index.search("birds")] == ["2"]
    built = intarsia.search.SparseIndex.build(["a cat purrs", "a dog barks"])
    assert built.search("cat") == index.delete(["2"]).merge().search("cat")
    routing = intarsia.TopK(experts=4, active=2).build(8)(torch.randn(3, 8))
    assert routing.load().sum() == 6
    x = torch.randn(20, 6)
    w = torch.randn(5, 6)
    statistics = intarsia.scores.Statistics.of(x, hessian=True)
    for score in (intarsia.scores.wanda, intarsia.scores.obs):
        assert torch.equal(score(w, x), score(w, statistics))
    demand = [[(0, 0), (0, 1)], [(0, 2)], [(0, 0)]]
    lru = intarsia.placement.Lru()
    assert intarsia.placement.replay(demand, lru, 2) == intarsia.placement.replay(
        demand, lru.build(1, 3), 2
    )


def test_a_mixture_builds_its_router_from_settings_or_a_name() -> None:
    experts = [nn.Linear(4, 4) for _ in range(3)]
    for router in ("top-k", intarsia.TopK(active=2), "topk"):
        moe = intarsia.mixtures.Mixture(experts, router)
        assert moe.router.experts == 3 and moe(torch.randn(5, 4)).shape == (5, 4)
    with refused(ConfigError, what="width", got="experts without a linear layer"):
        intarsia.mixtures.Mixture([nn.Identity(), nn.Identity()])
    with refused(ConfigError, what="router", got="3"):
        intarsia.mixtures.Mixture(experts, 3)  # pyright: ignore


def test_an_objective_is_what_a_teacher_makes() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    distill = intarsia.train.distill
    batch = (student, x, functools.partial(nn.functional.cross_entropy, target=y))
    want = distill(*batch, teacher=teacher, temperature=2.0).loss
    for objective in (distill(teacher, temperature=2.0), distill(teacher=teacher, temperature=2.0)):
        assert torch.equal(objective(*batch).loss, want)
    with refused(ConfigError, what="teacher", got="two models and no batch"):
        distill(student, teacher=teacher)  # pyright: ignore


def test_the_settings_of_a_recommender_recommend_once_they_have_trained() -> None:
    ease = intarsia.recommend.Ease(reg=1.0)
    with refused(ConfigError, what="Ease", got="settings, which know no events"):
        ease.recommend("u1")
    events = [("u1", "a"), ("u1", "b"), ("u2", "a"), ("u2", "b"), ("u2", "c"), ("u3", "a")]
    fitted = ease.fit(events)
    assert ease.recommend("u3", 2) == fitted.recommend("u3", 2)
    assert ease == intarsia.recommend.Ease(reg=1.0)
    timed = [(f"u{u}", f"i{(u * j) % 11}", float(j)) for u in range(6) for j in range(13)]
    named = intarsia.recommend.fit_recommender("ease", timed)
    assert named.recommend("u1", 1, exclude_seen=False) == named.model.recommend(
        "u1", 1, exclude_seen=False
    )


def test_swapped_arguments_are_answered_with_their_order() -> None:
    with pytest.raises(CallError, match=r"In this order: intarsia\.load\(model, folder, "):
        intarsia.load("folder", nn.Linear(1, 1))  # pyright: ignore


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
        (lambda: intarsia.evaluate(1, 2, 3), "call of intarsia.evaluate", "too many"),  # pyright: ignore
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
    with pytest.raises(CallError, match=r"Placement\.of\(\.\.\.\)"):
        intarsia.placement.Placement()  # pyright: ignore


def test_settings_where_what_they_build_belongs_say_so() -> None:
    class Gate(nn.Module):
        def __init__(self, router: nn.Module) -> None:
            super().__init__()
            self.n = router.nothing

    Gate.__module__ = "intarsia.trial"
    checked(Gate, "Gate", functions=True, methods=False)
    with refused(CallError, what="router of Gate", got="TopK") as caught:
        Gate(intarsia.TopK(experts=2, active=2))  # pyright: ignore
    assert "TopK(...).build(...)" in str(caught.value)


def test_methods_and_attributes_of_what_is_opened_are_answered_too() -> None:
    index = intarsia.search.SparseIndex.build(["a red lamp", "an owl"])
    with pytest.warns(UserWarning, match=r"SparseIndex.search: top_k=1 is read as k=1"):
        assert index.search("lamp", top_k=1) == index.search("lamp", k=1)  # pyright: ignore
    with pytest.raises(AttributeError, match="Did you mean append"):
        index.add("a text")  # pyright: ignore
    with pytest.raises(AttributeError, match="Did you mean encode"):
        intarsia.formats.Bitmask().pack(1)  # pyright: ignore


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
