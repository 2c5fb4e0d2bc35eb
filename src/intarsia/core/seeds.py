"""Seeds out of several numbers."""

from __future__ import annotations

import hashlib


def mix(*numbers: int) -> int:
    """Derive a 63-bit seed from several numbers; near inputs give unrelated seeds."""
    # a hash, not a sum: seeds 1, 2 and 2, 1 must differ
    text = ":".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
