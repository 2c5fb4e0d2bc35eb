"""Pages of pruned models, of masks that change and of soups: drawn, and in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import CheckpointError, DataError
from intarsia.reports import page
from intarsia.reports.sparse import gather, report_of, table_of
from intarsia.reports.sparse.figures import place_of
from intarsia.reports.sparse.page import sentences

from ..refusals import refused

Browse = Callable[..., str]


def written(
    root: Path, method: str, density: float, perplexity: float | None, errors: bool = True
) -> Path:
    """A folder as `intarsia sparsify` leaves it, with two blocks of two layers."""
    folder = root / f"{method}-{density}"
    folder.mkdir(parents=True)
    layers: list[dict[str, Any]] = []
    for block in range(2):
        for kind in ("self_attn.q_proj", "mlp.up_proj"):
            row = {"layer": f"model.layers.{block}.{kind}", "weights": 64, "density": density}
            layers.append(row | ({"error_masked": 0.3, "error": 0.1 * block} if errors else {}))
    record = {
        "model": "tiny", "method": method, "base": None, "settings": {"density": density},
        "calibration": {"data": "austen", "rows": 8, "tokens": 64}, "density": density,
        "perplexity": {"dense": 20.0, "pruned": perplexity, "rows": 8} if perplexity else None,
        "bytes": {"dense": 1024, "bitmask": 700}, "seconds": 3.0, "layers": layers,
        "parts": {"kept values": 500, "bitmasks": 200, "zeros left out": 500, "other": 100},
    }  # fmt: skip
    (folder / "sparsify.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for method, value in (("magnitude", 90.0), ("wanda", 30.0)):
        written(tmp_path, method, 0.5, value)
    written(tmp_path, "wanda", 0.7, 22.0, errors=False)
    return tmp_path


def test_the_report_of_pruned_models_has_all_figures(
    folders: Path, tmp_path: Path, browse: Browse
) -> None:
    report = report_of(gather([folders]))
    assert report.title == "magnitude and wanda on tiny"
    maps = {f"{name}-{i}" for name in ("density", "before", "after") for i in (0, 1)}
    assert set(report.figures()) == {"perplexity", "bytes", "density-2"} | maps
    assert "Output errors were not measured: prune with --errors." in report.notes()
    out = tmp_path / "page.html"
    out.write_text(page.html(report), "utf-8")
    assert browse(out, "--dump-dom").count('<svg class="chart') == 9
    assert page.html(report_of(gather([folders]))) == page.html(report)


def test_sentences_name_the_best_of_each_density(folders: Path) -> None:
    gathered = gather([folders])
    assert sentences(gathered) == [
        "Dense, the model has a perplexity of 20.0.",
        "At density 0.7, wanda has 22.0.",
        "At density 0.5, wanda has 30.0, the lowest of 2.",
    ]
    table = table_of(gathered)
    assert [row[3].text for row in table.rows] == ["4.50", "1.50", "1.10"] and table.best == 2
    assert place_of("model.layers.3.mlp.up_proj") == ("3", "mlp.up_proj")
    assert place_of("lm_head") == ("lm_head", "lm_head")


def test_each_folder_names_the_texts_that_it_was_calibrated_on(folders: Path) -> None:
    table = table_of(gather([folders]))
    assert table.caption == "Calibrated on 8 rows of 64 tokens of austen."
    record = json.loads((folders / "wanda-0.5" / "sparsify.json").read_text())
    record["calibration"] |= {"data": "mixed", "of": {"austen": 4, "gcide": 4}}
    (folders / "wanda-0.5" / "sparsify.json").write_text(json.dumps(record))
    caption = table_of(gather([folders])).caption
    assert "; on 8 rows of 64 tokens of mixed (4 of austen and 4 of gcide): wanda-0.5" in caption
    assert "8 rows of 64 tokens of austen: magnitude-0.5 and wanda-0.7" in caption


def test_no_perplexity_is_the_lowest_among_several_texts(folders: Path) -> None:
    record = json.loads((folders / "wanda-0.5" / "sparsify.json").read_text())
    record["calibration"]["data"] = "gcide"
    (folders / "wanda-0.5" / "sparsify.json").write_text(json.dumps(record))
    assert sentences(gather([folders])) == [
        "Dense, tiny has a perplexity of 20.0 on austen.",
        "At density 0.7, wanda has 22.0 on austen.",
        "At density 0.5, magnitude has 90.0 on austen.",
        "Dense, tiny has a perplexity of 20.0 on gcide.",
        "At density 0.5, wanda has 30.0 on gcide.",
    ]
    assert table_of(gather([folders])).best is None


def test_errors_before_and_after_have_one_scale(folders: Path) -> None:
    figures = report_of(gather([folders])).figures()
    assert figures["before-0"].scale == figures["after-0"].scale == ("0", "0.3")


def test_without_perplexity_the_page_says_how_to_measure_it(tmp_path: Path) -> None:
    written(tmp_path, "wanda", 0.5, None, errors=False)
    assert "--test" in sentences(gather([tmp_path]))[0]
    assert "perplexity" not in report_of(gather([tmp_path])).figures()


def test_what_is_no_pruned_model_is_refused(tmp_path: Path) -> None:
    with refused(DataError, got="no sparsify.json"):
        gather([tmp_path])
    (written(tmp_path, "wanda", 0.5, 30.0) / "sparsify.json").write_text("{}")
    with refused(CheckpointError, got="no 'method'"):
        gather([tmp_path])
