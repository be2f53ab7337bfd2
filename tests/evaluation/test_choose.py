"""The choice of a checkpoint on invented outcomes whose right answer is known."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from lmnoise.evaluation.choose import choose_checkpoint
from lmnoise.evaluation.outcomes import Outcome, Setting
from lmnoise.evaluation.scores import Mean, Scores, over_seeds

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
    # The rows of one checkpoint are those of the other, shifted: they leave nothing open.
    half = stats.t.ppf(0.975, 3) * gaps.std(ddof=1) / 2
    assert rival.spread.n == 4
    assert rival.interval == pytest.approx((gaps.mean() - half, gaps.mean() + half))
    assert rival.shown


def test_documents_are_paired_where_there_is_one_seed():
    series = {"one": [outcome(1.0, 1.0)], "two": [outcome(1.1, 1.01)]}
    [rival] = choose_checkpoint(series).rivals
    assert rival.spread.n == DOCUMENTS
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


def drawn(random, checkpoints, seeds, rows, of_rows, of_seeds, of_both):
    """A series of equal true losses: each checkpoint has chance of its rows and of its seeds."""
    series = {}
    for c in range(checkpoints):
        seed_S = of_seeds * random.normal(size=seeds)

        def scores(s, row_N):
            both_N = of_both * random.normal(size=rows)
            return Scores((1 + seed_S[s] + row_N + both_N).tolist(), [1.0] * rows)  # noqa: B023

        rows_of = {text: of_rows * random.normal(size=rows) for text in ("validation", "test")}
        series[str(c)] = [
            Outcome(Setting(1.0, seed=s), {}, {t: scores(s, row_N) for t, row_N in rows_of.items()})
            for s in range(seeds)
        ]
    return series


@pytest.mark.parametrize(
    ("checkpoints", "seeds", "of_rows", "of_seeds", "of_both"),
    [
        (2, 2, 0.3, 0.01, 0.0),
        (2, 4, 0.3, 0.01, 0.0),
        (2, 2, 0.0, 0.1, 0.01),
        (4, 4, 0.0, 0.1, 0.0),
        (4, 3, 0.3, 0.05, 0.1),
        (3, 1, 0.3, 0.0, 0.0),
    ],
)
def test_equal_checkpoints_are_told_apart_in_one_series_of_twenty_at_most(
    checkpoints, seeds, of_rows, of_seeds, of_both
):
    random = np.random.default_rng(0)
    trials = 400
    wrong = sum(
        len(choice.equals) < checkpoints - 1
        for choice in (
            choose_checkpoint(drawn(random, checkpoints, seeds, 48, of_rows, of_seeds, of_both))
            for _ in range(trials)
        )
    )
    # Two standard errors of the share above the level.
    assert wrong / trials <= 0.05 + 2 * (0.05 * 0.95 / trials) ** 0.5


def test_a_difference_beyond_rows_and_seeds_shows():
    random = np.random.default_rng(0)
    series = drawn(random, 2, 4, 48, 0.05, 0.01, 0.0)
    worse = [
        dataclasses.replace(
            o, after={t: Scores([x + 0.3 for x in s.losses], s.counts) for t, s in o.after.items()}
        )
        for o in series["1"]
    ]
    choice = choose_checkpoint({"0": series["0"], "1": worse})
    assert choice.name == "0"
    assert choice.rivals[0].shown
    assert "cover chance in 48 test rows and 4 seeds" in choice.sentence()


def test_the_two_errors_add_up_and_one_alone_stands_for_itself():
    rows, seeds = Mean(1.0, 0.3, 41), [0.9, 1.0, 1.1]
    of_rows, of_seeds = stats.t.ppf(0.975, 40) * 0.3, stats.t.ppf(0.975, 2) * 0.1 / 3**0.5
    assert over_seeds(rows, seeds).half_width() == pytest.approx(np.hypot(of_rows, of_seeds))
    assert over_seeds(rows, seeds).standard_error == pytest.approx((0.09 + 0.01 / 3) ** 0.5)
    assert over_seeds(rows, [1.0]).half_width() == pytest.approx(of_rows)
    assert over_seeds(Mean(1.0, np.nan, 1), seeds).half_width() == pytest.approx(of_seeds)
    assert np.isnan(over_seeds(Mean(1.0, np.nan, 1), [1.0]).half_width())


def test_series_that_were_not_tuned_alike():
    with pytest.raises(ValueError, match="different settings"):
        choose_checkpoint({"a": [outcome(1, 1)], "b": [outcome(1, 1, rate=0.1)]})
    with pytest.raises(ValueError, match=r"series\['b'\]"):
        choose_checkpoint({"a": [outcome(1, 1)], "b": [outcome(1, np.nan)]})
    with pytest.raises(ValueError, match="empty"):
        choose_checkpoint({})
