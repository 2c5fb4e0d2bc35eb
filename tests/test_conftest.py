"""The suite's own settings do what they say."""

from __future__ import annotations

import os
import socket

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


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
    assert settings().derandomize
    assert settings().deadline is None
