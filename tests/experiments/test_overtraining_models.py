"""The over-training study of language models: every preset fits, one runs small and goes on."""

import csv
import functools
import importlib.util
import math
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from lmnoise.assemble import dry_run
from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.training import mesh
from lmnoise.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
pytestmark = pytest.mark.usefixtures("compiled_once")


def load(path):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIGS = load(ROOT / "configs" / "overtraining.py")
STUDY = load(ROOT / "experiments" / "overtraining.py")
training, tuning = STUDY.training, STUDY.tuning


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """One device compiles much faster than the suite's eight; meshes have tests of their own."""
    one = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", one)
        yield


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
    tuned = len(config.tune.rates) + 1 + 1  # replay
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


def planted(noise_B, kind="noise", strength=1.0, cure="", seed=0):
    """A curve of three seeds on five budgets, with a base loss that falls."""
    rng = np.random.default_rng(seed)
    base = np.linspace(3.0, 2.0, 5) + 0.01 * rng.normal(size=(3, 5))
    curves = STUDY.noise.Curve
    return curves(
        series="budgets",
        kind=kind,
        name=f"γ = {strength:g}",
        strength=strength,
        tokens_B=1e6 * 2.0 ** np.arange(5),
        before_RB=base,
        after_RB=base + np.asarray(noise_B),
        task_RB=None if kind == "noise" else base,
        cure=cure,
    )


def test_the_verdict_says_what_was_planted():
    verdict = STUDY.report.verdict
    rising = planted([0.0, 0.1, 0.3, 0.9, 2.0], strength=4.0)
    flat = planted([0.1] * 5, strength=0.5)
    [text, earlier] = verdict.sentences("Noise", [flat, rising], 9.0)
    assert "loss grows with the tokens) is shown for 1 of 2 (γ = 4)" in text
    assert "turns up) is shown for 1 of 2 (γ = 4)" in text
    assert "stronger modification is shown: at 16,000,000 tokens for γ = 0.5" in earlier
    assert "at 4,000,000 for γ = 4, 2 doublings earlier (bootstrap 2 to 2)" in earlier
    assert rising.turn.least == 4e6
    assert not flat.turn.shown
    assert "frequencies of tokens" not in text
    [text, _] = verdict.sentences("Noise", [flat, rising], 2.4)
    assert "For γ = 4 the turn is where the model as pre-trained knows no more" in text
    [text] = verdict.sentences("Noise", [flat], 9.0)
    assert text.count("not shown for any of 1 strengths") == 2


def test_a_budget_that_diverged_is_left_out():
    curve = planted([0.0, 0.1, 0.3, 0.9, math.inf])
    np.testing.assert_array_equal(curve.fine, [True] * 4 + [False])
    assert curve.turn.least in curve.tokens_B[:4]
    [text] = STUDY.report.verdict.sentences("Noise", [curve], 9.0)
    assert "Some budgets diverged" in text


def test_settings_hold_every_rate_with_every_cure():
    config = CONFIGS.get_config("laptop")
    found = tuning.settings(config)
    cures = [tuning.cure_of(setting) for setting in found]
    rates = len(config.tune.rates)
    assert len(set(found)) == len(found)
    for cure in ("plain", *config.tune.cures):
        assert cures.count(cure) == rates * len(config.tune.cures.get(cure, (0,)))
