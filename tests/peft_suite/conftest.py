"""Put PEFT's tests on the path, and keep of them what is about our cases."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

if not os.environ.get("PEFT_TESTS"):
    pytest.exit("PEFT_TESTS: got none, want the folder of PEFT's sources. Run: make conformance", 4)
sys.path.insert(0, os.environ["PEFT_TESTS"])

# they merge without asking `_skip_if_merging_not_supported`, so a cell that cannot sits out
MERGE = frozenset(
    {
        "test_delete_merged_adapter_only_rejects_the_merged_one",
        "test_delete_merged_adapter_raises_without_mutation",
        "test_disable_adapters_with_merging",
        "test_merge_layers",
        "test_merge_layers_fp16",
        "test_merge_layers_is_deterministic_in_train_mode",
        "test_merge_layers_is_idempotent",
        "test_merge_layers_multi",
        "test_multiple_active_adapters_merge_and_unmerge",
        "test_safe_merge",
        "test_sequential_merge_matches_batch_merge",
        "test_unmerge_after_sequential_merge_restores_base",
    }
)


WHY_NOT = "a bottleneck is not linear in its input, so it does not merge"

# they compare weights by name, and plain LoRA is saved under PEFT's names, which PEFT opens as its
# own: that the logits are equal is tested in tests/hosts/test_interop.py
SAME_NAMES = frozenset({"test_save_pretrained", "test_parameters_after_loading_model"})
PLAIN = "intarsia lora "

# three steps at a rate of 0.5 send all tokens of a block to one expert: the other does not move
STARVES = ("test_only_params_are_updated", "intarsia llava_mole timm")


def _is_ours(item: pytest.Function) -> bool:
    """Is it a test of this folder, or one of PEFT's over our cases on the model of its class?"""
    if item.cls is None:
        return True
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    if not str(params.get("test_name")).startswith("intarsia"):
        return False  # PEFT's own regressions, on its own methods
    models = getattr(item.cls, "models", None)  # those that the class builds
    return models is None or params["model_id"] in models


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    left_out = [item for item in items if not _is_ours(item)]
    items[:] = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=left_out)
    for item in items:
        if item.originalname in MERGE and "(cannot merge)" in item.name:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))
        if item.originalname in SAME_NAMES and PLAIN in item.name:
            item.add_marker(pytest.mark.skip(reason="plain LoRA is saved as PEFT's own"))
        if item.originalname == STARVES[0] and STARVES[1] in item.name:
            item.add_marker(pytest.mark.skip(reason="an expert without tokens does not move"))
