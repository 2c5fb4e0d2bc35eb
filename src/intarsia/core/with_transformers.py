"""transformers knows the models of this library, whichever of the two is imported first.

`AutoConfig` finds a type of model in its mapping, or does not know it; `from_pretrained` finds in
another what rebuilds a model that was changed. The entries put there import this library's side
only when such a folder is read.
"""

from __future__ import annotations

from types import ModuleType

from .when_imported import Later, when_imported

SEEING, CONFIGS = "intarsia_seeing", "transformers.models.auto.configuration_auto"
CHANGED, QUANTIZERS = "intarsia", "transformers.quantizers.auto"


def _add_config(mappings: ModuleType) -> None:
    """Register the configuration of models that see and hear in transformers' mapping."""
    # register raises for a type that is there already
    if SEEING not in mappings.CONFIG_MAPPING:
        later = Later("intarsia.senses.auto", "SeeingConfig")
        mappings.CONFIG_MAPPING.register(SEEING, later)


def _add_quantizer(mappings: ModuleType) -> None:
    """Register in transformers the classes that rebuild a changed model, as if quantised."""
    home = "intarsia.folders.stock_folder"
    mappings.AUTO_QUANTIZATION_CONFIG_MAPPING[CHANGED] = Later(home, "ChangedConfig")
    mappings.AUTO_QUANTIZER_MAPPING[CHANGED] = Later(home, "ChangedQuantizer")


def register() -> None:
    """Add our types to transformers' mappings, now or when those are imported."""
    when_imported(CONFIGS, _add_config)
    when_imported(QUANTIZERS, _add_quantizer)
