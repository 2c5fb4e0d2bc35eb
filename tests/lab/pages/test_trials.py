"""A page's trial is read back until something that it depends on has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from intarsia.catalog import card, cards
from intarsia_lab.kit import provenance
from intarsia_lab.kit.provenance import LIBRARY, code_digest, module_of
from intarsia_lab.pages import hosts, trials
from intarsia_lab.pages.trials import Trials

Edit = Callable[[Path], None]
METHODS = card("mosa"), card("s2ft")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start from an empty store, and forget the digests of edited files in the end."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    yield
    code_digest.cache_clear()


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Let a file have another text for the digests, as after an edit."""
    code = provenance._code

    def edit_file(path: Path) -> None:
        edited = lambda p, names=None: "x = 1" if p == path else code(p, names)  # noqa: E731
        monkeypatch.setattr(provenance, "_code", edited)
        code_digest.cache_clear()

    return edit_file


def tried() -> list[str]:
    """Return the methods whose trials run."""
    ran: list[str] = []
    page = Trials(hosts.__file__)
    for method in METHODS:
        page("toy", method, run=lambda key=method.key: ran.append(key))
    return ran


@pytest.mark.parametrize(
    ("path", "again"),
    [
        (module_of("mosa")[0], ["mosa"]),
        (LIBRARY / "adapters" / "bottleneck.py", ["mosa"]),  # which MoSA is made over
        (LIBRARY / "hosts" / "folding" / "fold.py", ["mosa", "s2ft"]),  # which the page calls
        (module_of("fourier")[0], []),
    ],
)
def test_a_changed_file_has_the_trials_run_again_that_depend_on_it(
    path: Path, again: list[str], edit: Edit
) -> None:
    assert tried() == ["mosa", "s2ft"] and tried() == []
    edit(path)
    assert tried() == again and tried() == []


def test_another_version_of_a_package_has_all_trials_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert tried() == ["mosa", "s2ft"]
    monkeypatch.setattr(trials, "_versions", lambda: {"torch": "0"})
    assert tried() == ["mosa", "s2ft"]


def test_a_trial_that_fails_is_not_stored() -> None:
    def fails() -> None:
        raise AssertionError("nothing was trained")

    with pytest.raises(AssertionError, match="nothing was trained"):
        Trials(hosts.__file__)("toy", METHODS[0], run=fails)
    assert tried() == ["mosa", "s2ft"]


def test_the_page_of_hosts_tries_a_changed_method_and_writes_what_it_does_now(
    monkeypatch: pytest.MonkeyPatch, edit: Edit
) -> None:
    answers = dict.fromkeys((c.key for c in cards("adapter")), "yes")
    ran: list[str] = []

    def works(method: object, name: str) -> str:
        key = getattr(method, "key", "")
        ran.append(key)
        return answers[key]

    monkeypatch.setattr(hosts, "HOSTS", {"BERT": hosts.HOSTS["BERT"]})
    monkeypatch.setattr(hosts, "works", works)
    monkeypatch.setattr(hosts, "upcycles", lambda _: "yes")
    first = hosts.page()
    assert ran == list(answers) and first == hosts.page() and len(ran) == len(answers)
    answers["s2ft"] = "folds"
    assert hosts.page() == first
    edit(module_of("s2ft")[0])
    row = "| **BERT** | " + " | ".join([*answers.values(), "yes"]) + " |"
    assert row in hosts.page() and ran[len(answers) :] == ["s2ft"]
