"""Files of coded signals, .irc: a header and the indices, each with a checksum.

| bytes | what |
|---|---|
| 3 | "IRC" |
| 1 | version, 1 |
| 8 | digest of the prior that coder and decoder share |
| 1 | kind of signal (low 3 bits), bits of an index less 1 (high 5 bits) |
| 1-5 each | sizes along the axes, number of signals, bytes of payload: 7 bits a byte, low first |
| 1-5 or 12 | of audio the rate in Hz, in the same form; of a structure its centre, 3 float32 |
| 2 | CRC-16 (CCITT) of all before |
| payload | indices, lowest bit first, without gaps |
| 4 | CRC-32 of the payload |

Numbers are little-endian. How many indices a signal has follows from the prior and the sizes.
"""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import CheckpointError
from .recombiner import DIMENSIONS

MAGIC, VERSION = b"IRC", 1
KINDS = tuple(DIMENSIONS)
LARGEST = 1 << 32  # of a number in a header


@dataclass(frozen=True)
class Header:
    """Header of a file, before its indices.

    prior: its digest, 8 bytes; kind: signal's; bits: an index's; sizes: along the axes of `kind`;
    count: signals of that size; rate: audio's, in Hz, 0 = not known; centre: a structure's centre.
    """

    prior: bytes
    kind: str
    bits: int
    sizes: tuple[int, ...]
    count: int = 1
    rate: int = 0
    centre: tuple[float, ...] = ()


def write(header: Header, payload: bytes) -> bytes:
    """Return the bytes of a file: the header, the packed indices, and their checksums."""
    data = MAGIC + bytes([VERSION]) + header.prior
    # Three bits for the kind, five for the bits of an index less 1.
    data += bytes([KINDS.index(header.kind) | (header.bits - 1) << 3])
    for number in (*header.sizes, header.count, len(payload)):
        data += _encode_varint(number)
    if header.kind == "audio":
        data += _encode_varint(header.rate)
    if header.kind == "structure":
        data += struct.pack("<3f", *header.centre)
    # the header's checksum covers all before it
    data += struct.pack("<H", binascii.crc_hqx(data, 0xFFFF))
    return data + payload + struct.pack("<I", zlib.crc32(payload))


def read(data: bytes) -> tuple[Header, bytes]:
    """Read the header and the payload of a file.

    Raises: CheckpointError for another kind of file, another version, one truncated or changed.
    """
    if data[:3] != MAGIC:
        raise _error(f"{data[:3]!r} at its start", f"{MAGIC!r}, of intarsia's codec")
    if len(data) > 3 and data[3] != VERSION:
        fix = "Decode it with the release that wrote it, or copy it again if a byte was damaged."
        raise _error(f"version {data[3]}", f"version {VERSION}", fix)
    try:
        header, start, length = _read_header(data)
    except (IndexError, struct.error) as error:
        raise _error(f"{len(data)} bytes, which end in the header", "a whole file") from error
    # after the payload there are four bytes more, its checksum
    payload = data[start : start + length]
    if len(data) != start + length + 4:
        raise _error(f"{len(data)} bytes", f"{start + length + 4}, as the header says")
    if struct.unpack_from("<I", data, start + length)[0] != zlib.crc32(payload):
        raise _error("a payload with another CRC-32", "the bytes as they were written")
    return header, payload


def _read_header(data: bytes) -> tuple[Header, int, int]:
    """Read the header; return it, the position at which the payload starts, and its length."""
    packed = data[12]
    kind, bits = packed & 7, (packed >> 3) + 1
    if kind >= len(KINDS):
        raise _error(f"kind {kind}", f"one of {KINDS}")
    # sizes, count and length are of variable length, so later fields have no fixed place
    numbers, position = _decode_varints(data, 13)
    sizes = tuple(next(numbers) for _ in range(DIMENSIONS[KINDS[kind]]))
    count, length = next(numbers), next(numbers)
    rate = next(numbers) if KINDS[kind] == "audio" else 0
    # every number that was taken has moved `position` on: this is where the varints end
    end, centre = position[0], ()
    if KINDS[kind] == "structure":
        centre, end = struct.unpack_from("<3f", data, end), end + 12
    if struct.unpack_from("<H", data, end)[0] != binascii.crc_hqx(data[:end], 0xFFFF):
        raise _error("a header with another CRC-16", "the bytes as they were written")
    if not all(sizes) or not count or not all(math.isfinite(x) for x in centre):
        raise _error(f"sizes {sizes} of {count} signals", "numbers from 1 on")
    return Header(data[4:12], KINDS[kind], bits, sizes, count, rate, centre), end + 2, length


def _encode_varint(number: int) -> bytes:
    """Encode a number in as many bytes as it needs: 7 bits each, low first."""
    low_bytes = []
    while number >= 128:
        low_bytes.append(number & 127 | 128)
        number >>= 7
    return bytes([*low_bytes, number])


def _decode_varints(data: bytes, start: int) -> tuple[Iterator[int], list[int]]:
    """Read numbers of variable length, as `_encode_varint` writes them, from a position on."""
    position = [start]

    def numbers() -> Iterator[int]:
        """Yield the numbers; each byte has seven bits, and the eighth says that more follow."""
        while True:
            number = shift = 0
            while True:
                byte = data[position[0]]
                position[0] += 1
                number |= (byte & 127) << shift
                shift += 7
                # a damaged file must not make a number of any size
                if number >= LARGEST or shift > 35:
                    raise _error("a number of more than 32 bits", "a whole header")
                if byte < 128:
                    break
            yield number

    return numbers(), position


def _error(
    got: str, want: str, fix: str = "Copy the file again from its source, or encode it anew."
) -> CheckpointError:
    return CheckpointError(".irc file", got=got, want=want, fix=fix)
