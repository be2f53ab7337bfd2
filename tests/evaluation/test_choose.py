"""The choice of a checkpoint on invented outcomes whose right answer is known."""

import numpy as np
import pytest
from scipy import stats

from lmnoise.evaluation.choose import choose_checkpoint
from lmnoise.evaluation.outcomes import Outcome, Setting
from lmnoise.evaluation.scores import Scores

DOCUMENTS = 40
RANDOM = np.random.default_rng(0)
SPREAD = RANDOM.normal(0, 0.3, DOCUMENTS)


def outcome(validation, test, seed=0, rate=1e-3, noise=0.0):
    """An outcome with these mean losses; documents differ alike in all outcomes, seeds a little."""
    shift = noise * np.random.default_rng(seed).normal()

    def scores(loss):
        return Scores((loss + shift + SPREAD - SPREAD.mean()).tolist(), [1.0] * DOCUMENTS)

    texts = {"validation": validation, "test": test}
    before = {text: scores(5.0) for text in texts}
    return Outcome(Setting(rate, seed=seed), before, {t: scores(x) for t, x in texts.items()})


def test_the_checkpoint_is_chosen_at_its_own_rate_and_on_validation_rows_alone():
    series = {
        # The best rates differ, and the test rows would choose otherwise.
        "early": [outcome(2.0, 1.5, rate=1e-3), outcome(1.1, 1.4, rate=1e-2)],
        "late": [outcome(1.0, 1.6, rate=1e-3), outcome(3.0, 0.5, rate=1e-2)],
    }
    choice = choose_checkpoint(series)
    assert choice.name == "late"
    assert choice.loss == pytest.approx(1.6)
    [rival] = choice.rivals
    assert (rival.name, rival.loss) == ("early", pytest.approx(1.4))
    assert rival.difference == pytest.approx(-0.2)
    assert rival.shown
    assert "on the test rows early is better" in choice.sentence()


def test_seeds_are_paired():
    """A shift that a seed has in both checkpoints does not hide their difference."""
    gaps = np.array([0.010, 0.012, 0.011, 0.009])
    series = {
        "one": [outcome(1.0, 1.0, seed, noise=0.5) for seed in range(4)],
        "two": [outcome(1.1, 1.0 + gap, seed, noise=0.5) for seed, gap in enumerate(gaps)],
    }
    [rival] = choose_checkpoint(series).rivals
    half = stats.t.ppf(0.975, 3) * gaps.std(ddof=1) / 2
    assert rival.n == 4
    assert rival.interval == pytest.approx((gaps.mean() - half, gaps.mean() + half))
    assert rival.shown


def test_documents_are_paired_where_there_is_one_seed():
    series = {"one": [outcome(1.0, 1.0)], "two": [outcome(1.1, 1.01)]}
    [rival] = choose_checkpoint(series).rivals
    assert rival.n == DOCUMENTS
    assert rival.interval == pytest.approx((0.01, 0.01))


def test_no_difference_shown_is_an_answer():
    gaps = (0.02, -0.03, 0.01)
    series = {
        "one": [outcome(1.0, 1.0, seed) for seed in range(3)],
        "two": [outcome(1.01, 1.0 + gap, seed) for seed, gap in enumerate(gaps)],
        "three": [outcome(2.0, 2.0, seed) for seed in range(3)],
    }
    choice = choose_checkpoint(series)
    assert choice.equals == ("two",)
    assert "No difference is shown to two: any of them will do." in choice.sentence()
    assert choose_checkpoint({"one": series["one"]}).sentence().endswith("to compare it with.")


def test_series_that_were_not_tuned_alike():
    with pytest.raises(ValueError, match="different settings"):
        choose_checkpoint({"a": [outcome(1, 1)], "b": [outcome(1, 1, rate=0.1)]})
    with pytest.raises(ValueError, match=r"series\['b'\]"):
        choose_checkpoint({"a": [outcome(1, 1)], "b": [outcome(1, np.nan)]})
    with pytest.raises(ValueError, match="empty"):
        choose_checkpoint({})
