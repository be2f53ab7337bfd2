"""The study of collapse in language models: planted curves, and all of it small."""

import functools
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from loading import load
from ml_collections import ConfigDict

from lmnoise.analyze.laws import estimates
from lmnoise.analyze.mixtures import Curves
from lmnoise.errors import UserError
from lmnoise.report import Estimate
from lmnoise.training import mesh

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import collapse_lm_head as head  # noqa: E402
import collapse_lm_report as report  # noqa: E402
import collapse_lm_runs as runs  # noqa: E402
import collapse_lm_sizes as sizes  # noqa: E402
import collapse_lm_verdict as verdict  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIGS = load(ROOT / "configs" / "collapse_lm.py")
SHARES = np.array([0.0, 0.1, 0.5, 1.0])
TOKENS = 1e5 * 2.0 ** np.arange(5)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One device and no optimisation compile much faster than the suite's eight devices."""
    one = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", one)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", before)


def law(tokens, floor=2.0):
    return 100.0 * np.asarray(tokens) ** -0.4 + floor


def planted(losses_PB, generator=2.4, noise=1e-3):
    """A grid of these mean losses, with 4 seeds that the shares have in common."""
    rng = np.random.default_rng(0)
    common_RB = 5 * noise * rng.normal(size=(4, len(TOKENS)))
    losses_PRB = np.asarray(losses_PB)[:, None] + common_RB
    losses_PRB = losses_PRB + noise * rng.normal(size=losses_PRB.shape)
    curves = Curves(
        shares=tuple(SHARES), tokens_B=TOKENS, seeds=(0, 1, 2, 3), real_PRB=losses_PRB,
        synthetic_PRB=losses_PRB, parameters=9, real_tokens=10**6, synthetic_tokens=10**7,
    )  # fmt: skip
    losses_R = generator + noise * rng.normal(size=4)
    config = ConfigDict(dict(fits=dict(draws=50, seed=0), data=dict(length=64)))
    return verdict.analyse(runs.Study({}, losses_R, curves), config)


def with_floors(floors):
    return planted([law(TOKENS, 2.0 + floor) for floor in floors])


def test_a_floor_that_is_planted_is_shown_with_the_share_from_which_on_it_is():
    grid = with_floors(0.4 * SHARES**2)
    text = head.shared_floor_sentence(grid)
    assert "between them: shown. The slope of the floors is 0.4" in text
    assert "at p2 = 0.5 and all above; for it p2² c² is not" in report.floor_list(grid)
    [slope] = estimates(grid.shared.floor_slope(SHARES))
    expected = np.polyfit(SHARES, 0.4 * SHARES**2, 1)[0]
    assert slope.interval[0] < expected < slope.interval[1]


def test_a_floor_that_is_not_there_is_not_shown():
    """Synthetic rows do nothing: only the real ones count, and at p2 = 1 few of those."""
    amplitudes = (1 - np.minimum(SHARES, 0.9)) ** -0.4
    grid = planted([2.0 + a * (law(TOKENS) - 2.0) for a in amplitudes])
    for text in (head.floor_sentence(grid), head.shared_floor_sentence(grid)):
        assert " not shown. The slope" in text
    assert report.floor_list(grid).count("at no share from which on it stays so") == 2
    assert "A plateau in these sizes is not shown: from" in head.plateau_sentence(grid)


def test_floors_that_one_exponent_makes_up_are_not_shown():
    """One floor, and exponents that fall with the share, as in lmnoise.evaluation.powerlaw."""
    grid = planted([2.0 + 30.0 * TOKENS ** -(0.3 - 0.05 * share) for share in SHARES], noise=2e-4)
    text = head.shared_floor_sentence(grid)
    assert ": not shown (the free exponents move with p2, by -0.05" in text
    assert verdict.direction(estimates(grid.shared.floor_slope(SHARES))[0]) == 1
    assert "the floor grows with p2 is not shown" in head.floor_sentence(grid)


def test_a_fit_at_the_end_of_its_range_is_named():
    losses_PB = np.stack([law(TOKENS)] * 3 + [4.0 - 0.2 * np.log(TOKENS / TOKENS[0])])
    grid = planted(losses_PB, noise=1e-5)
    assert "not shown (the fit is at an end of its range at p2 = 1)" in head.floor_sentence(grid)
    assert "not shown (the fit is at an end" in head.reached_sentence(grid)
    ends = [row[3] for row in report._fits(grid).rows if row[0] == "own"]
    assert ends == ["", "", "", "floor"]


def test_a_plateau_is_a_last_step_that_gains_nothing_where_real_text_still_does():
    flat = np.minimum.accumulate(law(TOKENS, 2.2))
    flat[-2:] = flat[-2]
    grid = planted([law(TOKENS)] * 3 + [flat])
    text = head.plateau_sentence(grid)
    assert text.startswith("A plateau in these sizes is shown: from 800,000 to 1,600,000")
    assert "without any fit: shown for p2 = 1." in report.floor_list(grid)
    same = planted([law(TOKENS)] * 4)
    assert "is not shown" in head.plateau_sentence(same)
    assert "without any fit: shown for no share." in report.floor_list(same)
    # A fifth of the gain of real text is less than that, but no plateau.
    slower = planted([law(TOKENS)] * 3 + [2.3 + 0.2 * (law(TOKENS) - 2.0)])
    assert "is not shown" in head.plateau_sentence(slower)


def test_rises_are_told_by_the_prediction_that_they_follow():
    quality = 2.4 - law(TOKENS[-1])
    grid = with_floors(quality * SHARES**2)
    text = head.theory_sentence(grid)
    assert "regression's p2² c² is not contradicted at p2 = 0.1, 0.5;" in text
    assert "did nothing, is too high at p2 = 0.1, 0.5;" in text
    assert text.endswith("the kind of a row is exceeded at no share.")
    # The real part alone: regression's square is far below it at 10 %.
    kept = [law((1 - min(share, 0.99)) * TOKENS) for share in SHARES]
    grid = planted(kept)
    found = dict(zip((0.1, 0.5), grid.beyond_real_part, strict=True))
    # Between two sizes the cubic is near the law, at a size it is what was measured.
    assert abs(found[0.5].mean) < 2e-3
    assert abs(found[0.1].mean) < 5e-3
    assert "p2² c² is too low at p2 = 0.1, 0.5;" in head.theory_sentence(grid)
    assert head.added_sentence(grid, 1).count("(not shown)") >= 3
    # And worse than the real part alone by more than not knowing the kind of a row can cost.
    spoilt = planted([losses + 0.05 * (0 < s < 1) for losses, s in zip(kept, SHARES, strict=True)])
    assert "is exceeded at p2 = 0.1, 0.5." in head.theory_sentence(spoilt)
    assert head.added_sentence(spoilt, 2).count("(worse)") == 4
    for beyond, bound in zip(spoilt.beyond_bounds, spoilt.bounds_P[1:3], strict=True):
        assert beyond.mean == pytest.approx(0.05 - bound, abs=5e-3)


def test_a_law_that_misses_the_losses_shows_no_floor():
    steep = 0.05 * np.tanh(3 * (np.arange(5) - 2.0))  # a late steep part of real text alone
    shares = zip(SHARES, 0.4 * SHARES**2, strict=True)
    grid = planted([law(TOKENS, 2.0 + floor) - steep * (share < 0.2) for share, floor in shares])
    for text in (head.floor_sentence(grid), head.shared_floor_sentence(grid)):
        assert "not shown (" in text
    assert "the law does not hold in these sizes" in head.floor_sentence(grid)
    # The curve of synthetic text alone does follow it; real text alone is below that floor.
    assert "is shown by the fit of its own curve, whose floor is 0." in head.reached_sentence(grid)
    assert grid.beyond_reached.mean == pytest.approx(2.4 - grid.free.losses_PB[0, -1], abs=0.02)


def test_the_quality_is_the_excess_of_the_generators():
    grid = planted([law(TOKENS)] * 4, generator=2.4)
    assert grid.quality_R.mean() == pytest.approx(2.4 - law(TOKENS[-1]), abs=0.01)
    low, high = grid.quality_over_floor.interval
    assert low < 0.4 < high


def test_shares_count_from_where_all_larger_ones_are_above():
    def sure(mean):
        return Estimate(mean, 0.01, 4)

    shares = np.array([0.1, 0.2, 0.5, 1.0])
    assert verdict.shown_from(shares, [sure(x) for x in (1, 0, 1, 2)]) == 0.5
    assert verdict.shown_from(shares, [sure(x) for x in (1, 1, 1, 1)]) == 0.1
    assert verdict.shown_from(shares, [sure(x) for x in (1, 1, 1, 0)]) is None


def test_the_excess_of_a_size_is_paired_at_the_sizes_chosen():
    curves = with_floors(0.4 * SHARES**2).curves
    chosen_B = np.array([False, True, False, True, False])
    size = sizes._size(2, 32, curves, chosen_B)
    np.testing.assert_array_equal(size.tokens_B, TOKENS[chosen_B])
    np.testing.assert_array_equal(size.real_RB, curves.real_PRB[0][:, chosen_B])
    np.testing.assert_allclose(size.excess_RB, 0.4, atol=0.02)


def test_larger_models_have_the_excess_that_is_planted():
    config = CONFIGS.get_config("laptop")
    rng = np.random.default_rng(0)

    def size(layers, width):
        excess_RB = 0.1 * np.log2(width) - 0.05 * np.log2(layers) + 1e-3 * rng.normal(size=(3, 1))
        return sizes.Size(layers, width, layers * width**2, TOKENS[:1], np.ones((3, 1)), excess_RB)

    models = [size(2, 16), size(1, 32), size(2, 32), size(4, 32), size(2, 64)]
    [text] = sizes.seen(models, config)
    width, depth = text.split("; ")
    assert "of the width (16 to 64) by 0.09" in width
    assert "(grows)" in width
    assert "of the depth (1 to 4) by -0.0" in depth
    assert "(shrinks)" in depth
    assert "synthetic text alone changes by 0.099" in width
    own = sizes.series(models, config)["width"]
    [growth] = sizes.growth(own, "width", [size.excess_RB for size in own])
    assert growth.mean == pytest.approx(0.1, abs=3e-3)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of invented words."""
    folder = tmp_path_factory.mktemp("collapse") / "text"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        letters = rng.choice(list("aeiou nrst"), size=(80, 5))
        (folder / f"{i}.txt").write_text(" ".join("".join(w) for w in letters), encoding="utf-8")
    return folder


def small(preset, text):
    config = CONFIGS.get_config(preset)
    config.update(CONFIGS.SMALL)
    config.data.update(
        dict(data_dir=str(text.parent / "data"), source=str(text), evaluate=(str(text),))
    )
    return config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": {"seed": (1, 1)}}, "config.members.seed must hold at least 2 values that"),
        ({"members": {"rate": (0.0, 0.1, 0.5)}}, "begin with 0 and end with 1"),
        ({"members": {"seed": (0, 10**6)}}, "must lie below 1000000"),
        ({"sizes": {"duration": (0.3,)}}, "config.sizes.duration has 0.3"),
        ({"sizes": {"models": ((2, 32),)}}, "has the model of config.model"),
        ({"sizes": {"models": ((2, 33),)}}, r"config.sizes.models, \(2, 33\): config.model: width"),
    ],
)
def test_a_config_that_cannot_be_studied_is_refused(change, words):
    import collapse_lm

    config = CONFIGS.get_config("laptop")
    config.update(change)
    with pytest.raises(UserError, match=words):
        collapse_lm.check(config)


@pytest.mark.parametrize("preset", list(CONFIGS.PRESETS))
def test_presets_are_studies_that_can_be_made(preset):
    import collapse_lm

    config = CONFIGS.get_config(preset)
    assert set(collapse_lm.SECTIONS) <= set(config)
    collapse_lm.check(config)


def test_the_study_reports_and_goes_on(text, tmp_path, monkeypatch):
    import collapse_lm

    # The other chapters have a file of tests of their own.
    monkeypatch.setattr(collapse_lm, "CHAPTERS", (sizes,))
    config = small("laptop", text)
    found = collapse_lm.run(config, tmp_path, tmp_path / "report", "the command")
    said = found.read_text()
    assert "the command" in said
    assert said.index("the floor grows with p2 is") < said.index("\n## ")
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", said))
    assert drawn == {path.name for path in found.parent.glob("*.png")}
    assert drawn >= {f"{name}.png" for name in ("scaling", "gains", "floors", "rises", "sizes")}
    for table in found.parent.glob("*.csv"):
        assert len(table.read_text().splitlines()) > 1
    stored = {p: p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    study = runs.measure(config, tmp_path)
    assert {p: p.read_bytes() for p in stored} == stored
    # Generators and students have nothing in common but the corpus.
    assert len({c.fingerprint for c in study.generators.values()}) == 2
    assert not set(runs.seeds(config)[:2]) & set(runs.seeds(config)[2:])
    assert study.curves.real_PRB.shape == study.curves.synthetic_PRB.shape == (3, 2, 3)
    # The largest run of synthetic text alone reads nothing twice.
    assert study.curves.tokens_B[-1] < study.curves.synthetic_tokens
    assert np.isfinite(study.generator_losses_R).all()
