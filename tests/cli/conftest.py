"""A small image folder, a tiny untrained model, and runs of the command line in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer import testing
from typer.testing import CliRunner

from intarsia.cli import app

from .. import language_models

# all verbs are made of their signatures anew at each call: a third of what a short one takes
testing._get_command = functools.cache(testing._get_command)

TINY = ("--model", "test_vit", "--untrained", "--size", "32")
QUICK = ("--epochs", "2", "--batch-size", "8", "--lr", "1e-2", "--tracker", "tensorboard")


@dataclass(frozen=True)
class Said:
    """The printed output of a command and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """stderr without the frame and line breaks of a panel."""
        return " ".join(self.err.replace("│", " ").split())


Intarsia = Callable[..., Said]


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its name, those of groups as "codec encode"."""

    def below(group: Any, name: str) -> Iterator[tuple[str, Any]]:
        for word in group.list_commands(None):
            command = group.get_command(None, word)
            if hasattr(command, "list_commands"):
                yield from below(command, f"{name}{word} ")
            else:
                yield f"{name}{word}", command

    return below(typer.main.get_group(app), "")


def call(*words: object) -> Said:
    result = CliRunner().invoke(app, [str(w) for w in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def intarsia() -> Intarsia:
    """Run the command line: intarsia("list", "--json")."""
    return call


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Mixtral whose tokens are bytes."""
    return language_models.mixtral(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random Llama whose tokens are bytes."""
    return language_models.llama(tmp_path_factory.mktemp("llama"))


def picture(path: Path, value: int, seed: int, side: int = 40) -> None:
    """Noise around a grey value."""
    noise = np.random.default_rng(seed).integers(-20, 20, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((value + noise).astype(np.uint8)).save(path)


def photos(folder: Path, classes: Sequence[str] = ("dark", "light"), n: int = 12) -> Path:
    """n pictures of each class, told apart by their brightness."""
    for label, name in enumerate(classes):
        for i in range(n):
            picture(folder / name / f"{i}.png", 50 + 140 * label, 100 * label + i)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of two classes."""
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of MoSA on them; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "mosa"
    result = call(
        "fit", folder, *TINY, *QUICK, "--method", "mosa", "--set", "over.bottleneck=4",
        "--set", "active=2", "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    return out
