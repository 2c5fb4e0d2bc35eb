"""A hook of our own is a declared member with a default, and is never looked up by its name."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from intarsia import Lora, apply
from intarsia.core import Cell, Method, Site
from intarsia.core.change import Change, Plan, steps_of
from intarsia.core.errors import ConfigError
from intarsia.core.foreign import activation_of, config_of, groups_of, logits_in, tensor_of
from intarsia.core.registry import settings_to_dict
from intarsia.folders.verbs import as_change

SRC = Path(__file__).parents[1] / "src" / "intarsia"

# attributes of other libraries' objects that happen to have the name of a member of ours
FOREIGN = {
    "__getattr__": "classes, of which torch's modules have one",
    "alpha": "experts of GPT-OSS",
    "build": "what a wrong call was given, of any type",
    "classes": "torchvision's data sets, and ours",
    "columns": "tables of pandas, and of other libraries",
    "commands": "groups of typer",
    "config": "models of transformers",
    "dtype": "configurations of transformers",
    "eos_token_id": "configurations of transformers",
    "eps": "norms of torch and of transformers",
    "exact": "formats, of which not all round",
    "feature": "a list of features of the datasets library",
    "find_spec": "finders of other packages in sys.meta_path",
    "get_classifier": "models of timm",
    "logits": "outputs of transformers",
    "model_type": "configurations of transformers",
    "router": "mixtures of GPT-OSS",
    "shape": "arrays of NumPy and of torch",
    "target_module_mapping": "tuners of PEFT, of which not all have it",
}


# and how often each is read where it is more than once
READ = dict.fromkeys(FOREIGN, 1) | {"config": 3, "columns": 2}


def hooks_by_name(sources: list[str]) -> dict[str, int]:
    """Members of the classes in these sources that getattr or hasattr reads: name -> places."""
    members: set[str] = set()
    read: dict[str, int] = {}
    for tree in map(ast.parse, sources):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for item in node.body:
                    targets = getattr(item, "targets", [getattr(item, "target", None)])
                    members |= {t.id for t in targets if isinstance(t, ast.Name)}
                    members |= {item.name} if isinstance(item, ast.FunctionDef) else set()
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "")
            if called in ("getattr", "hasattr") and isinstance(node.args[1], ast.Constant):
                name = str(node.args[1].value)
                read[name] = read.get(name, 0) + 1
    return {name: places for name, places in read.items() if name in members}


@pytest.mark.thorough
def test_no_hook_of_our_own_is_read_by_its_name() -> None:
    assert hooks_by_name([p.read_text() for p in SRC.rglob("*.py")]) == READ


def test_a_hook_that_is_read_by_its_name_is_found() -> None:
    text = "class A:\n    x = 1\n    def y(self): ...\ngetattr(a, 'x'), hasattr(a, 'y'), a.z"
    assert hooks_by_name([text]) == {"x": 1, "y": 1}


@dataclass(frozen=True)
class Doubled(Change):
    """The head's weights twice as large: `apply` is all that it has."""

    by: float = 2.0

    def apply(self, host: nn.Module, plan: Plan, *, name: str = "default") -> nn.Module:
        with torch.no_grad():
            host.get_parameter("weight").mul_(self.by)
        return host


@dataclass(frozen=True)
class Nothing(Method):
    """Zeros are added: places and a cell are all that it has."""

    roles = ("qkv",)
    position = "parallel"

    def build(self, site: Site, *, generator: torch.Generator) -> Cell:
        raise NotImplementedError


def test_a_change_needs_to_say_only_what_it_does() -> None:
    host, change = nn.Linear(2, 3), Doubled(3.0)
    assert change.preserves == {"outputs", "shape", "routing"} and not change.needs
    assert change.scheduled(change.plan(host), None) is None and change.fold(host) is host
    assert change.forced() is change and change.recorded and not change.walks
    assert as_change(change) is change and settings_to_dict(change) == {"by": 3.0}
    assert change.with_settings(by=4.0) == Doubled(4.0)
    assert not steps_of(host) and Plan(change).undoes_itself is False


def test_a_method_needs_to_say_only_where_and_what_it_adds() -> None:
    method = Nothing()
    assert method.for_host(nn.Identity()) is method and method.suited_to(100, 10) is method
    assert method.paths == () and method.elsewhere is None and not method.shares_state
    assert method.trained_by is None and method.fit_options is None
    assert not method.on_top and not method.needs_head
    method.check_sites(["head"])


def test_what_is_foreign_is_read_in_one_place() -> None:
    conv, norm = nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)
    assert groups_of(conv) == 2 and groups_of(nn.Linear(2, 2)) == 1
    assert tensor_of(conv) is conv.weight and tensor_of(conv, "bias") is None
    assert config_of(conv) is None and activation_of(norm) is None
    norm.add_module("act", act := nn.ReLU())
    assert activation_of(norm) is act
    x = torch.zeros(2)
    assert logits_in(x) is x


def test_a_class_is_no_change() -> None:
    for settings in (Lora, Doubled, object()):
        with pytest.raises(ConfigError) as refusal:
            apply(nn.Linear(2, 2), settings)  # pyright: ignore[reportArgumentType]
        assert refusal.value.what == "change"


def test_the_training_loop_imports_no_strategy() -> None:
    code = "import sys, intarsia.train; print('intarsia.parallel' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
