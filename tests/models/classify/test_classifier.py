"""Classifiers of rows: scikit-learn and transformers are the oracles, and a folder keeps them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from intarsia.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from intarsia.data.language_models import headless_model
from intarsia.models.classify.classifier import RowClassifier
from intarsia.models.classify.features import feature_of, states
from intarsia.models.classify.standalone import hidden_means, ngrams
from intarsia.models.classify.words import parse_method
from intarsia.train.folds import deal

from ...labelled import texts
from ...language_models import llama

ROWS, LABELS = texts()
STRANGE = ["A b  cc\tDD", "x", "é à ö 12 a1", "under_score it's"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(("analyzer", "low", "high"), [("word", 1, 2), ("char_wb", 2, 5)])
def test_the_script_cuts_texts_as_scikit_learn_does(analyzer: str, low: int, high: int) -> None:
    oracle = CountVectorizer(analyzer=analyzer, ngram_range=(low, high)).build_analyzer()
    for text in [*STRANGE, *ROWS[:5]]:
        assert sorted(ngrams(text.lower(), analyzer, low, high)) == sorted(oracle(text))


def test_tfidf_of_words_is_scikit_learns() -> None:
    oracle = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(ROWS)
    feature = feature_of("words").fit(ROWS)
    assert abs(feature(STRANGE) - oracle.transform(STRANGE)).max() < 1e-12
    joined = feature_of("tfidf").fit(ROWS)(ROWS)
    assert np.allclose(joined.multiply(joined).sum(1), 1)


def test_words_with_their_probe_are_a_logistic_regression() -> None:
    classifier = RowClassifier("words").fit(ROWS, LABELS)
    member = classifier.members_[0]
    x = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(ROWS)
    oracle = LogisticRegression(C=member.strength, tol=1e-8, max_iter=5000).fit(x, LABELS)
    assert list(oracle.classes_) == list(classifier.classes_)
    logits = oracle.decision_function(x)
    ours = member.logits(x).numpy()
    # one temperature for all logits, and a constant that softmax does not see
    ours, logits = (z - z.mean(1, keepdims=True) for z in (ours, logits))
    scale = (ours * logits).sum() / (logits**2).sum()
    assert np.abs(ours - scale * logits).max() < 1e-2 * np.abs(ours).max()


def test_held_out_answers_come_from_other_rows() -> None:
    classifier = RowClassifier("words", seed=3).fit(ROWS, LABELS)
    numbers = np.unique(LABELS, return_inverse=True)[1]
    fold = deal(numbers, 5, 3)
    changed = np.where(fold == 0, np.roll(np.array(LABELS, dtype=object), 12), LABELS).tolist()
    again = RowClassifier("words", seed=3).fit(ROWS, changed)
    assert classifier.held_out_.shape == (len(ROWS), 3)
    # other labels in fold 0 change the answers of the other folds
    assert not np.allclose(classifier.held_out_[fold == 1], again.held_out_[fold == 1])


def test_mean_states_are_those_of_transformers(model: Path) -> None:
    net, tokenizer = headless_model(str(model))
    found = hidden_means(net, tokenizer, ROWS[:5], (0, 1, 2), 64)
    for i, text in enumerate(ROWS[:5]):
        with torch.inference_mode():
            output = net(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        for layer in (0, 1):  # the last one has a norm behind it
            mean = output.hidden_states[layer][0].mean(0)
            assert torch.allclose(torch.from_numpy(found[layer][i]), mean, atol=1e-5)
    alone = hidden_means(net, tokenizer, ROWS[:5], (1,), 64)[1]
    assert np.allclose(alone, found[1], atol=1e-5)


def test_a_layer_that_is_left_out_is_chosen(model: Path) -> None:
    classifier = RowClassifier(f"{model}").fit(ROWS, LABELS)
    word = classifier.members_[0].feature.word
    assert word in [f"{model}@{layer}" for layer in range(3)]
    with pytest.raises(ConfigError, match="layer"):
        states(str(model), ROWS, (3,), 16)


def test_a_blend_is_the_mean_of_probabilities(model: Path) -> None:
    pair = RowClassifier(f"words*3+{model}@1:16").fit(ROWS, LABELS)
    singles = [RowClassifier(m).fit(ROWS, LABELS) for m in ("words", f"{model}@1:16")]
    shares = [single.predict_proba(STRANGE) for single in singles]
    assert np.allclose(pair.predict_proba(STRANGE), 0.75 * shares[0] + 0.25 * shares[1])


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["tfidf", "words+MODEL@1:16"])
def test_a_folder_keeps_the_answers_in_a_fresh_process(
    tmp_path: Path, model: Path, method: str
) -> None:
    classifier = RowClassifier(method.replace("MODEL", str(model))).fit(ROWS, LABELS)
    classifier.save(tmp_path / "kept")
    shares = RowClassifier.load(tmp_path / "kept").predict_proba(STRANGE)
    assert np.abs(shares - classifier.predict_proba(STRANGE)).max() < 1e-6
    code = (
        "import sys, json; from intarsia.models.classify.classifier import RowClassifier; "
        f"print(json.dumps(RowClassifier.load(sys.argv[1]).predict_proba({STRANGE!r}).tolist()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "kept")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert np.abs(np.array(eval(output)) - shares).max() < 1e-6  # noqa: S307


def test_a_changed_folder_is_refused(tmp_path: Path) -> None:
    folder = RowClassifier("words").fit(ROWS, LABELS).save(tmp_path / "kept")
    file = folder / "classifier.json"
    file.write_text(file.read_text().replace('"animal"', '"animals"'))
    with pytest.raises(CheckpointError):
        RowClassifier.load(folder)


def test_numbers_need_the_columns_of_training() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    y = (x[:, 0] > 0).astype(int)
    classifier = clone(RowClassifier("numbers")).fit(x, y)
    assert set(classifier.predict(x)) <= {0, 1}
    with pytest.raises(DataError, match="rows of numbers"):
        classifier.predict_proba(np.zeros((3, 5)))


def test_methods_are_words_with_weights() -> None:
    assert parse_method("tfidf*2+minilm@6:64") == [("tfidf", 2 / 3), ("minilm@6:64", 1 / 3)]
    for wrong in ("", "tfidf+", "tfidf*x", "tfidf*0"):
        with pytest.raises(ConfigError):
            parse_method(wrong)
    with pytest.raises(UnknownName, match="tfidf"):
        RowClassifier("tfidff").fit(ROWS, LABELS)
    for method, rows in (("numbers", ROWS), ("words", np.zeros((36, 2)))):
        with pytest.raises(ConfigError, match="method for"):
            RowClassifier(method).fit(rows, LABELS)
    with pytest.raises(DataError, match="classes"):
        RowClassifier("words").fit(ROWS, ["a"] * len(ROWS))
