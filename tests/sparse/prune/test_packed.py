"""Walks that pack layers or experts go on after a kill, and refuse what is another walk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prune_models import llama, rows

import intarsia
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.formats import Bitmask
from intarsia.methods.gqsa.stages import Tuning

from ...refusals import refused

UNTRAINED = Tuning(blocks=0, model=0)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="forks children to kill")
def test_killed_anywhere_it_ends_in_the_same_bits(
    tmp_path: Path, forked: Callable[..., Any]
) -> None:
    code, out, err = forked(Path(__file__).with_name("packed_killed.py"), tmp_path).wait()
    assert code == 0, err
    # blocks that were left to do: 2, 1, 0 of GQSA, 2, 1 of QMoE
    want = ["killed,same,2", "killed,same,1", "killed,same,0", "killed,same,2", "killed,same,1"]
    assert out.split() == want, out


def test_another_walk_is_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "walk"
    first = intarsia.sparse.Gqsa(density=0.75, start="rtn", tuning=UNTRAINED)
    intarsia.compress(llama(2), first, rows(), force=True, out=out)
    with refused(ConfigError, got="a folder with a run in it"):
        intarsia.compress(llama(2), first, rows(), force=True, out=out)
    with refused(
        ConfigError, CheckpointError, what="checkpoint of another run, settings.density", got=0.5
    ):
        method = intarsia.sparse.Gqsa(density=0.5, start="rtn", tuning=UNTRAINED)
        intarsia.compress(llama(2), method, rows(), force=True, out=out, resume=True)
    block = out / "block-001.safetensors"
    block.write_bytes(block.read_bytes()[:-1] + b"x")
    with refused(CheckpointError, got="other bytes than were written"):
        intarsia.compress(llama(2), first, rows(), force=True, out=out, resume=True)
    with refused(ConfigError, what="out", got="Compress"):
        intarsia.compress(llama(2), Bitmask(), force=True, out=tmp_path / "other")
    with refused(ConfigError, what="resume", got="no folder"):
        intarsia.compress(llama(2), first, rows(), force=True, resume=True)
