"""Settings, and what is made of their outcomes: changes, means, the tuned one, the frontier."""

import numpy as np
import pytest

from lmnoise.evaluation.outcomes import Outcome, Setting, averaged, frontier, tuned
from lmnoise.evaluation.scores import Scores


def test_changes_are_paired():
    before = Scores([2.0, 3.0, 5.0], [1.0, 1.0, 2.0], [1.0, 0.0, 0.0])
    after = Scores([1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [1.0, 1.0, 0.0])
    outcome = Outcome(Setting(1.0), {"test": before}, {"test": after})
    assert outcome.change("test") == (-1.0, 0.0, 3)
    assert outcome.accuracy_change("test").mean == pytest.approx(1 / 4)  # by scored tokens
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_an_average_over_seeds_is_of_every_row():
    texts = [Scores([1.0, 3.0], [1.0, 1.0], [1.0, 0.0]), Scores([2.0, 3.0], [1.0, 1.0], [1.0, 1.0])]
    own = [
        Outcome(Setting(1.0, seed=s), {"test": texts[0]}, {"test": x}) for s, x in enumerate(texts)
    ]
    found = averaged(own)
    assert found.before == own[0].before
    assert found.after["test"] == ([1.5, 3.0], [1.0, 1.0], [1.0, 0.5])
    assert found.change("test").mean == pytest.approx(0.25)


def outcome(rate, validation, test, pretraining=0.0):
    before = {
        name: Scores([1.0, 1.0], [1.0, 1.0]) for name in ("validation", "test", "pretraining")
    }
    values = {"validation": validation, "test": test, "pretraining": 1.0 + pretraining}
    after = {name: Scores([value, value], [1.0, 1.0]) for name, value in values.items()}
    return Outcome(Setting(rate), before, after)


def test_the_rate_is_tuned_by_validation_and_never_by_test():
    found = [outcome(1.0, 0.5, 0.9), outcome(2.0, 0.7, 0.1), outcome(3.0, np.nan, np.nan)]
    assert tuned(found) is found[0]
    with pytest.raises(ValueError, match="none that did not diverge"):
        tuned(found[2:])


def test_the_frontier_leaves_out_what_gains_less_and_forgets_more():
    kept = [outcome(1.0, 0, 0.9, 0.1), outcome(2.0, 0, 0.6, 0.3), outcome(3.0, 0, 0.2, 0.5)]
    worse = [outcome(4.0, 0, 0.7, 0.4), outcome(5.0, 0, 0.9, 0.2), outcome(6.0, 0, 0.1, np.nan)]
    assert frontier([worse[0], kept[2], worse[1], kept[0], worse[2], kept[1]]) == kept


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"epochs": 0.0}, "epochs"),
        ({"replay": 1.0}, "replay"),
        ({"rank": 2, "frozen": "some"}, "frozen"),
        ({"weight_decay": 0.1, "decay_to_start": 0.1}, "decay_to_start"),
    ],
)
def test_settings_without_sense(changes, word):
    with pytest.raises(ValueError, match=f"^{word} "):
        Setting(**{"learning_rate": 1e-3} | changes)
