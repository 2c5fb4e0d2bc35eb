"""Export of a run on labelled rows: a folder with a script that needs no intarsia."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import ExportError
from ..core.files import check_target, writing
from ..models.classify import standalone
from ..models.classify.classifier import write_files
from ..models.classify.features import AdaptedMean, HiddenMean
from ..models.classify.standalone import SETTINGS, TENSORS
from .labelled import open_labelled

SCRIPT = "predict.py"
ROWS = 8  # on which the outputs are compared
CLOSE = 1e-4  # of a probability
Report = Callable[[str], None]


def release_labelled(run: Path, target: Path, *, result: Report = lambda _: None) -> Path:
    """Write the classifier of a run as a folder with a script, and check the script's answers.

    The script needs numpy alone; for features of a language model torch and transformers, and the
    folder then has this model, without the blocks behind the layer.
    Raises: ExportError where the script answers differently.
    """
    opened = open_labelled(run)
    classifier = opened.classifier
    features = [member.feature for member in classifier.members_]
    hidden = [f for f in features if isinstance(f, HiddenMean | AdaptedMean)]
    folders = {feature.word: f"model-{i}" for i, feature in enumerate(hidden)}
    check_target(target, own=(SCRIPT, SETTINGS, TENSORS, *folders.values()))
    test = opened.settings.splits().test
    rows = test.select(np.arange(min(ROWS, len(test)))).rows
    with writing(target) as scratch:
        scratch.mkdir()
        for feature in hidden:
            model, tokenizer = feature.network()
            for part in (model, tokenizer):
                part.save_pretrained(scratch / folders[feature.word])
        write_files(classifier, scratch, folders)
        shutil.copyfile(standalone.__file__, scratch / SCRIPT)
        gap = np.abs(_script_shares(scratch, rows) - classifier.predict_proba(rows)).max()
        if not gap <= CLOSE:
            fix = "Report it, with the versions of numpy and transformers."
            want = f"differences below {CLOSE:g}"
            raise ExportError(f"probabilities of {SCRIPT}", got=f"{gap:.2g}", want=want, fix=fix)
    result(f"{target}: {len(rows)} rows by {SCRIPT}: probabilities differ by {gap:.1g} at most.")
    return target


def _script_shares(folder: Path, rows: Any) -> np.ndarray:
    """Return the probabilities by the script in a folder, imported as a module of its own."""
    spec = importlib.util.spec_from_file_location("exported_predict", folder / SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Classifier(folder).probabilities(rows)
