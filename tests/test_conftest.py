"""The suite's own settings do what they say."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import core, given, settings
from hypothesis import strategies as st

from . import seeds

ROOT = Path(__file__).parent.parent


def test_a_connection_to_another_machine_is_refused() -> None:
    with socket.socket() as s, pytest.raises(ConnectionRefusedError, match="offline test"):
        s.connect(("192.0.2.1", 80))  # TEST-NET-1: no such machine


def test_a_connection_to_this_machine_is_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_threads_fit_the_cores() -> None:
    assert 1 <= torch.get_num_threads() <= 2 or "OMP_NUM_THREADS" in os.environ


@given(st.integers())
def test_properties_are_drawn_the_same_way_every_time(_: int) -> None:
    assert settings().derandomize or core.global_force_seed == seeds.SHIFT != 0
    assert settings().deadline is None


def drawn() -> list[float]:
    return [
        torch.rand(1, generator=torch.Generator().manual_seed(3)).item(),
        torch.manual_seed(3).initial_seed(),
        np.random.default_rng(3).random(),
        random.Random(3).random(),
    ]


@pytest.mark.thorough
def test_another_seed_shifts_what_tests_draw_and_nothing_else() -> None:
    name = "INTARSIA_TEST_SEED"
    program = """
        from tests import seeds
        from tests.test_conftest import drawn
        seeds.shift()
        import torch
        print(drawn(), torch.Generator().manual_seed(3).initial_seed())
    """
    outputs = [
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=os.environ | {name: shift, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
            capture_output=True, text=True, check=True,
        ).stdout
        for shift in ("0", "1")
    ]  # fmt: skip
    first, second = (json.loads(f"[{line.replace('] ', '], ')}]") for line in outputs)
    assert all(a != b for a, b in zip(first[0], second[0], strict=True))
    assert first[1] == second[1] == 3
