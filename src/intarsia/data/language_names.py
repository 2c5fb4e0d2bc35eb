"""Names and folders of language models, refused before torch is imported."""

from __future__ import annotations

from intarsia.core.errors import AssetError

from ..core.files import repaired
from ..core.folders import describe_folder
from ..core.reading import check_regular
from .hub import check_reachable

PACKAGED = ("smollm2",)
WANTED = f"{', '.join(PACKAGED)}, a folder of save_pretrained, or a name on the Hub"


def check_language_model(name: str, folder: str | None = None) -> None:
    """Check that a language model is packaged, a folder of one, or a name that may be had.

    folder: where it is, None = by its name.
    Raises: AssetError for a file, a folder without a model or with a pipe or device in it, which
    would block, and as `check_reachable`, since the Hub's client would try for a minute without a
    network.
    """
    if folder is None and name in PACKAGED:
        return
    subject, place = f"language model {name!r}", repaired(folder or name)
    try:
        check_regular(place)
    except OSError as error:
        want, fix = "a folder of files", "Copy its files there."
        raise AssetError(subject, got=error, want=want, fix=fix) from error
    if place.exists() and not (place / "config.json").is_file():
        fix = "Give the folder that holds config.json, model.safetensors and a tokenizer."
        raise AssetError(subject, got=describe_folder(place), want=WANTED, fix=fix)
    check_reachable(folder or name, what=subject, want=WANTED, local_names=PACKAGED)
