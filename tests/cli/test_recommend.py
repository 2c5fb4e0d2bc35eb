"""`intarsia fit --task sessions | ranking` and `intarsia recommend` on a small shop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from intarsia.areas.recommend.recommending import open_recommender
from intarsia.areas.recommend.showing import RecommenderPage
from intarsia.cli import app
from intarsia.cli.early import RECOMMENDERS
from intarsia.cli.recommending import answers, page_of
from intarsia.core.errors import DataError
from intarsia.core.registry import index
from intarsia.data.atomic_files import read_items
from intarsia.reports.local_page import LocalPage, running

from ..refusals import refused


def run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(done: Any) -> str:
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shop/: 10 users with 14 of 16 items each, and the runs of two models on it."""
    root = tmp_path_factory.mktemp("rec")
    folder = root / "shop"
    folder.mkdir()
    rows = [
        f"u{user}\t{(user * 3 + step) % 16}\t{step * 60 + user}"
        for user in range(10)
        for step in range(14)
    ]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "shop.inter").write_text("\n".join([head, *rows]))
    items = [f"{i}\tlamp {i}\tc{i % 3}" for i in range(17)]  # the last has no event
    head = "item_id:token\ttitle:token_seq\tcolour:token"
    (folder / "shop.item").write_text("\n".join([head, *items]))
    (root / "new.item").write_text(f"{head}\nx1\tlamp x\tc1\n")
    common = ("--epochs", 2, "--batch-size", 8)
    words = ("--set", "width=16", "--set", "layers=1", "--out", root / "sessions")
    done = run("fit", folder, "--task", "sessions", *common, *words)
    assert done.exit_code == 0, done.output
    assert "nDCG@20" in done.stdout and "intarsia recommend" in done.stdout
    words = ("--schedule", "dsl:every=2", "--density", 0.2, "--out", root / "ranking")
    words += ("--method", "lightgcn", "--set", "width=16")
    done = run("fit", folder, "--task", "ranking", *common, *words)
    assert done.exit_code == 0, done.output
    assert "rows are smaller below" in done.stdout  # the break-even of each table
    return root


def test_items_without_events_and_new_ones_are_ranked(shop: Path) -> None:
    words = ("--new", shop / "new.item", "-k", 18, "--json", "--why", "--seen")
    done = run("recommend", shop / "sessions", "--user", "u3", *words)
    assert done.exit_code == 0, done.output
    items = {row["item"]: row for row in json.loads(done.stdout)["items"]}
    assert len(items) == 18 and items["16"]["new"] and items["x1"]["new"] and not items["3"]["new"]
    (new,) = json.loads(done.stdout)["new"]
    ranked = [row["item"] for row in json.loads(done.stdout)["items"]]
    assert new["item"] == "x1" and new["of"] == 18 and ranked[new["rank"] - 1] == "x1"
    assert items["x1"]["title"] == "lamp x" and set(items["x1"]["why"]) == {"title", "colour"}
    done = run("recommend", shop / "sessions", "--history", "1,2,nothing", "-k", 3)
    assert done.exit_code == 0 and "lamp" in done.stdout
    assert "1 of 3 items are not known, as 'nothing'" in said(done)
    done = run("recommend", shop / "sessions", "--user", "u3", "-k", 1, *words[:2])
    assert re.search(r"New item x1 ranks \d+ of \d+", done.stdout), done.output


def test_a_shop_s_table_is_learned_from_in_closed_form(shop: Path) -> None:
    rows = [f"{u};{(u * 3 + step) % 16};{step}" for u in range(10) for step in range(14)]
    (shop / "kauf.csv").write_text("\n".join(["kunde;movieId;wann", *rows]))
    words = ("fit", shop / "kauf.csv", "--task", "ranking", "--out", shop / "closed")
    done = run(*words)
    assert done.exit_code == 2 and "a column of the user" in said(done)
    done = run(*words, "--columns", "user=kunde,time=wann", "--set", "reg=5")
    assert done.exit_code == 0 and "nDCG@20" in done.stdout, done.output
    assert open_recommender(shop / "closed").get_params() == {"reg": 5.0}  # EASE is the default
    done = run("recommend", shop / "closed", "--history", "1,2,3", "--json")
    assert done.exit_code == 0 and len(json.loads(done.stdout)["items"]) == 10, done.output
    for wrong in (("--epochs", 3), ("--columns", "usr=kunde"), ("--schedule", "dsl")):
        done = run(*words[:-1], shop / "other", "--columns", "user=kunde", *wrong)
        assert done.exit_code == 2 and "Traceback" not in done.output, done.output
    done = run("fit", "elpv", "--columns", "user=kunde")
    assert done.exit_code == 2 and "ranking or sessions" in said(done)


def test_a_sparse_model_comes_back(shop: Path) -> None:
    model: Any = open_recommender(shop / "ranking")
    for table in (model.user, model.item):
        assert int((table.weight != 0).sum()) <= round(0.2 * table.weight.numel())
    done = run("recommend", shop / "ranking", "--user", "u3", "--json")
    items = [row["item"] for row in json.loads(done.stdout)["items"]]
    assert {"1", "16"} & set(items) and "9" not in items  # which u3 has taken


@pytest.mark.parametrize(
    ("words", "fails"),
    [
        (("fit", "shop", "--task", "sessions", "--method", "lightgcn"), "m2trec"),
        (("fit", "shop", "--task", "session"), "sessions"),
        (("fit", "shop", "--task", "ranking", "--size", 32), "--size"),
        (("fit", "shop", "--task", "ranking", "--set", "depth=2"), "depth"),
        (("fit", "nowhere", "--task", "ranking"), "ml-100k"),
        (("fit", "shop", "--task", "ranking", "--out", "ranking"), "--resume"),
        (("recommend", "sessions"), "neither"),
        (("recommend", "sessions", "--serve", "--user", "u1"), "several"),
        (("recommend", "sessions", "--user", "u99"), "u99"),
        (("recommend", "shop", "--user", "u1"), "a finished run"),
        (("recommend", "ranking", "--user", "u1", "--why"), "--why"),
        (("recommend", "ranking", "--user", "u1", "--new", "new.item"), "new items"),
        (("recommend", "ranking", "--history", "1"), "in the place of a user"),
    ],
)
def test_what_cannot_be_is_refused(
    shop: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], fails: str
) -> None:
    monkeypatch.chdir(shop)
    done = run(*words)
    assert done.exit_code == 2 and fails in said(done), done.output


def test_a_run_that_is_done_goes_on_where_it_ended(shop: Path) -> None:
    done = run("fit", "--resume", "--out", shop / "sessions")
    assert done.exit_code == 0, done.output


def test_a_damaged_file_is_refused(shop: Path) -> None:
    file = shop / "sessions" / "recommender" / "weights.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = run("recommend", shop / "sessions", "--user", "u3")
    file.write_bytes(content)
    assert done.exit_code == 2 and "changed after they were written" in said(done)


def test_the_list_of_recommenders_is_that_of_the_cards() -> None:
    listed = {key for keys in RECOMMENDERS.values() for key in keys}
    assert {k for k, e in index().items() if e["family"] == "recommenders"} == listed


def test_a_generator_writes_a_session_and_comes_back(shop: Path) -> None:
    words = [w for s in ("codes=3,3", "width=16", "layers=1", "experts=2", "history=4", "session=1")
             for w in ("--set", s)]  # fmt: skip
    out = ("--out", shop / "onerec", "--epochs", 1, "--batch-size", 8)
    done = run("fit", shop / "shop", "--task", "sessions", "--method", "onerec", *words, *out)
    assert done.exit_code == 0, done.output
    result = run("recommend", shop / "onerec", "--user", "u3", "--session", "--json")
    assert len(json.loads(result.stdout)["items"]) == 1, result.output
    again: Any = open_recommender(shop / "onerec")
    assert again.ids.codes_.shape == (17, 3) and len(again.recommend("u3", 3)) == 3
    ask = answers(RecommenderPage(again))
    assert ask["/about"]({})["session"] and not ask["/about"]({})["why"]
    answer = ask["/recommend"]({"user": "u3", "session": True})
    assert len(answer["items"]) == 1 and len(answer["items"][0]["code"]) == 3
    assert answer["items"][0]["why"] == {} and answer["reads"] == 4 and answer["total"] == 14
    refused = run("recommend", shop / "sessions", "--user", "u3", "--session")
    assert refused.exit_code == 2 and "a generator" in said(refused)


@pytest.fixture(scope="module")
def showing(shop: Path) -> RecommenderPage:
    """A model of fields that knows an item that nobody has taken, and one of an odd name."""
    model = open_recommender(shop / "sessions")
    head, row = (shop / "new.item").read_text().splitlines()
    odd = row.replace("x1", "x2").replace("lamp x", "<b>lamp</b> y")
    (shop / "odd.item").write_text("\n".join([head, row, odd]))
    model.add_items(*read_items(shop / "odd.item"))
    return RecommenderPage(model)


def test_a_page_asks_for_people_items_and_what_comes_next(showing: RecommenderPage) -> None:
    ask = answers(showing)
    assert ask["/find"]({"text": "u1"})["users"] == ["u1"]
    titles = [row["title"] for row in ask["/find"]({"text": "LAMP x"})["items"]]
    assert titles == ["lamp x"] and ask["/find"]({"text": " "}) == {"users": [], "items": []}
    page = ask["/about"]({})
    assert page["histories"] and page["why"] and not page["session"] and page["new"] == 3
    answer = ask["/recommend"]({"user": "u3", "k": 3})
    assert [row["item"] for row in answer["taken"]][:2] == ["6", "5"] and answer["total"] == 14
    assert len(answer["items"]) == 3 and set(answer["items"][0]["why"]) == {"title", "colour"}
    basket = ask["/recommend"]({"items": ["1", "nothing", "2"], "new": True})
    assert [row["item"] for row in basket["taken"]] == [
        "2",
        "1",
    ] and "'nothing'" in basket["told"][0]
    assert {row["item"] for row in basket["items"]} == {"16", "x1", "x2"}
    assert all(row["new"] for row in basket["items"]) and basket["items"][0]["fields"]["colour"]
    json.dumps([page, answer, basket], allow_nan=False)
    for wrong in ({}, {"user": "u3", "items": ["1"]}, {"items": []}, {"user": "u3", "k": 0}):
        with refused(DataError, what="question", want="a user or items"):
            ask["/recommend"](wrong)


def test_reasons_of_several_are_those_of_each(showing: RecommenderPage) -> None:
    model: Any = showing.model
    for item, reasons in zip(["1", "x1"], model.reasons("u3", ["1", "x1"]), strict=True):
        assert model.explain("u3", item) == pytest.approx(reasons, abs=1e-6)
        assert list(reasons.values()) == sorted(reasons.values(), reverse=True)


def test_a_model_of_users_offers_no_history(shop: Path) -> None:
    page = RecommenderPage(open_recommender(shop / "ranking")).about()
    assert not page["histories"] and not page["why"]


class _Address:
    """A page's address, as the browser takes a file's."""

    def __init__(self, address: str) -> None:
        self.address = address

    def as_uri(self) -> str:
        return self.address


def test_the_page_works_in_a_browser(
    showing: RecommenderPage, shop: Path, browse: Callable[..., str]
) -> None:
    page = LocalPage(page_of(showing, shop / "sessions"), answers(showing))
    with running(page) as url:
        wait = ("--virtual-time-budget=4000", "--window-size=390,844", "--dump-dom")
        dom = browse(_Address(f"{url}#item=3&item=x2&new=1"), *wait)
    assert "A history of your own" in dom and "nobody has taken it yet" in dom
    assert re.search(r"The best \d that nobody has taken", dom)
    assert "&lt;b&gt;lamp&lt;/b&gt; y" in dom  # a title is text
    assert "colour: c1" in dom  # why
