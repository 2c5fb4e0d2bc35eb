"""The predictor of a run on labelled texts answers as the run does, and refuses the rest."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from intarsia.cli import serving
from intarsia.reports.local_page import LocalPage, running
from intarsia.runs.labelled import LabelledFit, LabelledRun, fit_labelled

from ..labelled import write_csv, write_numbers
from .conftest import Intarsia

TEXTS = ["the cat and the dog", "bread and soup"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LabelledRun:
    folder = tmp_path_factory.mktemp("served")
    return fit_labelled(LabelledFit(str(write_csv(folder / "a.csv")), method="words"), folder / "b")


def asked(port: int, question: Any) -> tuple[int, Any]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    link.request("POST", "/predict", json.dumps(question), {"Content-Type": "application/json"})
    answer = link.getresponse()
    content = json.loads(answer.read())
    link.close()
    return answer.status, content


def test_it_answers_as_the_run_does(run: LabelledRun) -> None:
    page = LocalPage(serving.page_of(run), serving.answers(run))
    answers: list[Any] = []
    with running(page):
        port = page.server.server_port
        several = [
            threading.Thread(target=lambda: answers.append(asked(port, {"texts": TEXTS})))
            for _ in range(4)
        ]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()
        wrong = [{}, {"texts": []}, {"texts": "a"}, {"texts": [" "]}, {"texts": [1]}]
        wrong.append({"texts": ["a"] * (serving.MOST + 1)})
        refused = [asked(port, question) for question in wrong]
    assert answers == [(200, {"answers": run.predict(TEXTS)})] * 4
    assert [status for status, _ in refused] == [400] * len(wrong)
    assert refused[0][1]["error"]["want"].startswith("1 to 256 texts")


def test_serve_takes_a_run_on_texts_alone(
    intarsia: Intarsia, run: LabelledRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr(
        "intarsia.reports.local_page.serve_page",
        lambda page, answers, port, *_: served.append((answers.keys(), port)),
    )
    assert intarsia("serve", run.folder, "--port", 0).code == 0
    assert served == [({"/predict"}, 0)]
    assert intarsia("serve", run.folder, "--slots", "0.5").code == 2
    numbers = LabelledFit(str(write_numbers(tmp_path / "a.csv")), label="kind")
    fit_labelled(numbers, tmp_path / "numbers")
    assert intarsia("serve", tmp_path / "numbers").code == 2
    assert len(served) == 1
