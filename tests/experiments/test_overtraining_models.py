"""The over-training study of language models: every preset fits, one runs small and goes on."""

import csv
import functools
import math
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from loading import load

from lmnoise.assemble import dry_run
from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.training import mesh
from lmnoise.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
pytestmark = pytest.mark.usefixtures("compiled_once")


CONFIGS = load(ROOT / "configs" / "overtraining.py")
STUDY = load(ROOT / "experiments" / "overtraining.py")
training, tuning, VERDICT = STUDY.training, STUDY.tuning, STUDY.report.verdict
CURES = VERDICT.cures


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


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A text of invented words, and documents of two classes."""
    root = tmp_path_factory.mktemp("overtraining")
    rng = np.random.default_rng(0)
    (root / "first").mkdir()
    for i in range(40):
        words = rng.choice(list("aeiou nrst"), size=(40, 5))
        (root / "first" / f"{i}.txt").write_text(" ".join("".join(w) for w in words))
    lines = [
        f'{{"text": "{"good" if i % 2 else "bad"} {i}", "label": "{i % 2}"}}' for i in range(80)
    ]
    (root / "labelled.jsonl").write_text("\n".join(lines))
    return root


def small(preset, texts):
    """A preset as the tests can run it."""
    config = CONFIGS.get_config(preset)
    config.update(CONFIGS.SMALL)
    own = f"{texts / 'first'}/"
    config.data.update(dict(source=own, evaluate=(own,), data_dir=str(texts / "data")))
    config.tune.tasks = (f"labels:{texts / 'labelled.jsonl'}",)
    return config


@pytest.mark.parametrize("preset", CONFIGS.PRESETS)
def test_every_preset_can_be_planned_and_made_small(preset, texts):
    config = CONFIGS.get_config(preset)
    STUDY.check(config)
    used = set(STUDY.SECTIONS)
    assert set(config.keys()) == used
    if config.data.tokenizer == "bytes":
        plan = dry_run(training.training_config(config), devices=1, chip=None, mfu=0.4)
        tokens = config.train.steps * config.train.batch_size * config.data.length
        assert preset == "demo" or tokens >= 1000 * plan.parameters
    STUDY.check(small(preset, texts))


def test_budgets_of_both_series_are_the_same_tokens():
    for preset in CONFIGS.PRESETS:
        config = CONFIGS.get_config(preset)
        steps = training.one_run_steps(config)
        assert steps[-1] == config.train.steps
        assert steps[0] == config.one_run.first * config.train.steps
        assert all(step % steps[0] == 0 for step in steps)


@pytest.fixture(scope="module")
def reported(texts, one_device, compiled_once, tmp_path_factory):
    """A config, its folders and the report of the study made small."""
    config = small("demo", texts)
    prepare(config.data.source, data_dir=config.data.data_dir, tokenizer="bytes")
    folder = tmp_path_factory.mktemp("study")
    return config, folder, STUDY.run(config, folder / "work", folder / "report", "the command")


def test_the_study_reports_both_series_and_goes_on(reported):
    config, folder, report = reported
    text = report.read_text()
    assert "What shows, and what does not" in text
    assert "confounded by the learning rate" in text
    assert "the command" in text
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", text))
    assert drawn == {path.name for path in report.parent.glob("*.png")}
    assert len(drawn) == 2 + 2 * len(config.tune.tasks) + 1
    stored = (folder / "work" / "points.jsonl").read_bytes()
    STUDY.run(config, folder / "work", folder / "report", "the command")
    assert (folder / "work" / "points.jsonl").read_bytes() == stored
    assert report.read_text().split("## How this")[0] == text.split("## How this")[0]
    assert not (folder / "work" / "tuning").exists()


def test_every_number_of_the_figures_is_in_the_table(reported):
    config, _, report = reported
    with (report.parent / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    tuned = 2 * (len(config.tune.rates) + 1)  # without and with replay
    curves = len(config.perturb.gammas) + len(config.tune.tasks) * tuned
    assert len(rows) == curves * len(training.SERIES) * len(config.members.duration)
    for row in rows:
        rise = float(row["loss after"]) - float(row["loss before"])
        assert rise == pytest.approx(float(row["sensitivity"]), abs=1e-6)
    tokens = sorted({float(row["tokens"]) for row in rows})
    an_end = config.train.steps * config.train.batch_size * config.data.length
    assert tokens == [an_end * share for share in config.members.duration]


def test_the_loss_before_is_that_of_the_end_of_training(reported):
    config, folder, report = reported
    rows = [r for r in read_rows(folder / "work" / "budgets") if r["step"] == config.train.steps]
    [key] = {k for r in rows for k in r if k.startswith("eval/") and k.endswith("/loss")}
    of_member = {r["member"]: r[key] for r in rows if key in r}
    with (folder / "work" / "budgets" / "members.csv").open() as file:
        durations = {int(m["member"]): float(m["duration"]) for m in csv.DictReader(file)}
    with (report.parent / "curves.csv").open() as file:
        found = [float(r["loss before"]) for r in csv.DictReader(file) if r["series"] == "budgets"]
    for loss, share in zip(found, config.members.duration, strict=False):
        expected = np.mean([of_member[m] for m in of_member if durations[m] == share])
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": {"seed": (0,)}}, "config.members.seed must hold at least 2"),
        ({"members": {"duration": (0.5, 1.0)}}, "config.members.duration must hold at least 3"),
        ({"members": {"duration": (0.1, 0.2, 0.5)}}, "must end with 1.0"),
        ({"members": {"learning_rate": (1e-3, 1e-2)}}, "config.members.learning_rate is"),
        ({"one_run": {"first": 0.3}}, "config.one_run.first 0.3 must be one over"),
        ({"tune": {"rates": (1e-2, 1e-3)}}, "config.tune.rates must hold at least 2"),
        ({"tune": {"cures": {"sam_radius": (0.0,)}}}, "config.tune.cures.sam_radius must be"),
        ({"perturb": {"gammas": (0.0, 1.0)}}, "config.perturb.gammas must hold"),
        ({"linear": {"start": 10.0}}, "config.linear.start 10.0 must lie"),
    ],
)
def test_a_config_that_cannot_be_studied_is_refused_before_training(change, words):
    config = CONFIGS.get_config("demo")
    config.update(change)
    with pytest.raises(UserError, match=words):
        STUDY.check(config)


def planted(noise_B, name="γ = 1", strength=1.0, cure="", seeds=3, task_B=None):
    """A curve on five budgets with a base loss that falls from 3 to 2."""
    rng = np.random.default_rng(0)
    base_RB = np.linspace(3.0, 2.0, 5) + 0.01 * rng.normal(size=(seeds, 5))
    return STUDY.noise.Curve(
        series="budgets",
        kind="task" if cure else "noise",
        name=name,
        strength=strength,
        tokens_B=1e6 * 2.0 ** np.arange(5),
        before_RB=base_RB,
        after_RB=base_RB + np.asarray(noise_B),
        task_RB=base_RB + np.asarray(task_B or [0.0] * 5) if cure else None,
        cure=cure,
        accuracy_RB=np.full((seeds, 5), math.nan) if cure else None,
        rate_RB=np.full((seeds, 5), 0.1) if cure else None,
    )


RISING = [0.0, 0.1, 0.3, 0.9, 2.0]
HIGH = VERDICT.Levels(frequencies=9.0, uniform=10.0)


def test_the_verdict_says_what_was_planted():
    rising, flat = planted(RISING, "γ = 4", 4.0), planted([0.1] * 5, "γ = 0.5", 0.5)
    [text, earlier] = VERDICT.sentences("Noise", [flat, rising], HIGH)
    assert "loss grows with the tokens) is shown for 1 of 2 (γ = 4)" in text
    assert "For γ = 4 the loss after it is itself higher in the end" in text
    assert "turns up) is shown for 1 of 2 (γ = 4)" in text
    assert "stronger modification is shown: at 16,000,000 tokens for γ = 0.5" in earlier
    assert "at 4,000,000 for γ = 4, 2 doublings earlier (bootstrap 2 to 2)" in earlier
    assert "forgotten" not in text
    assert "frequencies of tokens" not in text
    [text, _] = VERDICT.sentences("Noise", [flat, rising], VERDICT.Levels(2.4, 5.5))
    assert "For γ = 4 the turn is where the model as pre-trained knows no more" in text
    assert "at least that of the frequencies of tokens) for γ = 4." in text
    [text] = VERDICT.sentences("Noise", [flat], HIGH)
    assert text.count("not shown for any of 1 strengths") == 2


@pytest.mark.parametrize(
    ("noise_B", "way"),
    [
        (RISING, "more lost"),
        # Falls by half of what the loss before it falls.
        ([0.0, 0.125, 0.25, 0.375, 0.5], "falls less"),
        # Ends where it began: all that the start had gained is lost.
        ([0.0, 0.25, 0.5, 0.75, 1.0], "better start"),
        ([0.1] * 5, ""),
        # No slope, but a turn.
        ([0.0, 0.0, 0.0, 0.4, 1.0], "more lost"),
    ],
)
def test_a_sensitivity_that_grows_is_told_from_a_better_start(noise_B, way):
    assert VERDICT.way(planted(noise_B)) == way


def test_what_is_forgotten_is_counted_among_what_was_learned():
    flat = planted([0.0, 0.25, 0.5, 0.75, 1.0])  # 3 after every budget
    np.testing.assert_array_equal(flat.learned(2.9), [False, True, True, True, True])
    np.testing.assert_array_equal(flat.forgotten(2.9), [False, True, True, True, True])
    assert not flat.forgotten(3.1).any()
    [text] = VERDICT.sentences("Noise", [flat], VERDICT.Levels(2.9, 2.95))
    assert "all is forgotten (the loss after it is at least" in text
    assert "worse than a uniform guess for γ = 1." in text
    [row] = VERDICT._table([flat], VERDICT.Levels(2.9, 5.5)).rows
    assert "4 of 4" in row
    assert "shown, better start" in row


def test_budgets_that_diverged_are_named_and_left_out_of_both_curves():
    cut = planted([*RISING[:4], math.inf], "γ = 4", 4.0)
    flat = planted([0.1] * 5, "γ = 0.5", 0.5)
    np.testing.assert_array_equal(cut.fine, [True] * 4 + [False])
    assert cut.turn.least in cut.tokens_B[:4]
    [text, earlier] = VERDICT.sentences("Noise", [flat, cut], HIGH)
    assert "Diverged, and left out: γ = 4 at 16,000,000 tokens." in text
    # The weak curve too is read up to 8M tokens alone.
    assert "at 8,000,000 tokens for γ = 0.5 and at 4,000,000 for γ = 4, 1 doublings" in earlier
    falling = planted([0.0, 0.0, 0.0, math.inf, math.inf], "γ = 4", 4.0)
    [_, earlier] = VERDICT.sentences("Noise", [flat, falling], HIGH)
    assert "no inflection is shown for γ = 4" in earlier
    assert CURES.turned(falling, falling.turn) == (
        "not shown, no inflection in the rest of the range (diverged at 8,000,000, 16,000,000 "
        "tokens)"
    )


def test_two_seeds_do_not_compare_inflections():
    pair = [planted([0.1] * 5, seeds=2), planted(RISING, "γ = 4", 4.0, seeds=2)]
    [_, earlier] = VERDICT.sentences("Noise", pair, HIGH)
    assert earlier.endswith("it needs three seeds.")


def test_cures_are_compared_by_what_they_spare_cost_and_delay():
    def rows(strength, name):
        plain = planted(RISING, name, strength, "plain")
        gentle = planted(
            [0.0, 0.0, 0.1, 0.2, 0.5], "with SAM", strength, "sam_radius", task_B=[0.3] * 5
        )
        lost = planted([0.0, 0.1, *[math.inf] * 3], "with replay", strength, "replay")
        return [plain, gentle, lost]

    curves = rows(math.nan, "tuned rate") + rows(0.1, "rate 0.1")
    sam, replay = CURES.sentences(curves, 2.4)
    assert "text -1.5000 ± 0.0000 (lower), test loss on the task 0.3000 ± 0.0000 (higher)" in sam
    assert "all is forgotten there without it and with it" in sam
    assert "inflection comes later: shown, 1 doublings (bootstrap 1 to 1)" in sam
    assert "(diverged at 4,000,000, 8,000,000, 16,000,000 tokens), at 2,000,000 tokens" in replay
    assert "not compared (too few budgets without divergence)" in replay
    [table] = CURES.tables("task", curves)
    assert [row[0] for row in table.rows] == ["with SAM", "with replay"]
    assert table.rows[0][3] == "shown, 1 doublings (bootstrap 1 to 1)"
    [_, edges] = VERDICT.tuned_sentences(curves, HIGH, (0.01, 0.1))
    assert "15 and 0 of 15 checkpoints (tuned rate); 15 and 0 of 15 checkpoints (with SAM)" in edges


def test_settings_hold_every_rate_with_every_cure():
    config = CONFIGS.get_config("laptop")
    found = tuning.settings(config)
    cures = [tuning.cure_of(setting) for setting in found]
    rates = len(config.tune.rates)
    assert len(set(found)) == len(found)
    for cure in ("plain", *config.tune.cures):
        assert cures.count(cure) == rates * len(config.tune.cures.get(cure, (0,)))
