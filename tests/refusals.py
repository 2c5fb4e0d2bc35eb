"""Refusals tested by what they are about, so that a better sentence breaks no test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from intarsia.core.errors import IntarsiaError


@contextmanager
def refused(
    *kinds: type[IntarsiaError], **parts: object
) -> Iterator[pytest.ExceptionInfo[IntarsiaError]]:
    """Expect an error of one of these kinds whose attributes, as text, are these.

    parts: what, got, want or fix; an attribute that is not named may be anything. A type stands for
    an exception of another library, whose own words may change.
    """
    with pytest.raises(kinds) as caught:
        yield caught
    for name, value in parts.items():
        text = str(getattr(caught.value, name))
        if isinstance(value, type):
            assert text.startswith(value.__name__), (name, text)
        else:
            assert text == str(value), (name, text)
