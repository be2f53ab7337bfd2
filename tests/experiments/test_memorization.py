"""The study of memorisation: whole and small, going on, and its statistics' bookkeeping."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from loading import load
from ml_collections import ConfigDict

from lmnoise.errors import UserError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")
sys.path.insert(0, str(ROOT / "experiments"))

import memorization_sights  # noqa: E402
import memorization_stairs  # noqa: E402
import memorization_training  # noqa: E402
import memorization_verdict  # noqa: E402
from memorization_sights import Arm  # noqa: E402
from memorization_training import Rows, Training  # noqa: E402

CONFIGS = load(ROOT / "configs" / "memorization.py")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("memorization")
    rng = np.random.default_rng(0)
    for name in ("first", "second", "third"):
        (root / name).mkdir()
        for i in range(40):
            words = rng.choice(list("aeiou nrst"), size=(40, 5))
            (root / name / f"{i}.txt").write_text(" ".join("".join(w) for w in words))
    return root


def shrunk(preset, corpora):
    """A preset on three small corpora, its second model the first again."""
    config = CONFIGS.get_config(preset)
    config.update(CONFIGS.SMALL)
    names = (CONFIGS.NARROW, CONFIGS.GENERAL, CONFIGS.OTHER)
    stands = dict(
        zip(names, (f"{corpora / n}/" for n in ("first", "second", "third")), strict=True)
    )
    config.data.data_dir = str(corpora / "data")
    config.pretraining.data.source = stands[config.pretraining.data.source]
    config.pretraining.data.evaluate = (config.pretraining.data.source,)
    config.pretraining.mesh.update(dict(member=1, data=0, model=1))
    for section in (config.own, config.imported, config.canaries, config.sizes, config.stages,
                    config.mixing):  # fmt: skip
        for key in ("corpus", "first", "second", "original"):
            if key in section:
                section[key] = stands[section[key]]
        if "sources" in section:
            section.sources = tuple(stands[name] for name in section.sources)
    return config


@pytest.mark.parametrize("preset", CONFIGS.PRESETS)
def test_small_every_preset_is_the_study_that_is_run_below(preset, corpora):
    """But for numbers that change no program, or only what a program is compiled for."""
    own, first = (
        dict(flattened(shrunk(name, corpora))) for name in (preset, next(iter(CONFIGS.PRESETS)))
    )
    free = ("learning_rate", "seeds", "checkpoint_every", "layers")
    different = {key for key in own | first if own.get(key) != first.get(key)}
    assert all(key.endswith(free) for key in different)


def flattened(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_study_reports_and_goes_on(corpora, tmp_path):
    study = load(ROOT / "experiments" / "memorization.py")
    config = shrunk("laptop", corpora)
    work = tmp_path / "work"
    config.imported.checkpoint = str(work / "pretrained")
    report = study.run(config, work, tmp_path / "report", "the command")
    text = report.read_text()
    assert "Made by `the command`." in text
    assert "What shows, and what does not" in text
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", text))
    assert drawn == {path.name for path in report.parent.glob("*.png")}
    of_models = {f"{what}-{model}.png" for what in ("stairs", "gain", "confidence")
                 for model in ("own", "imported")}  # fmt: skip
    assert drawn == of_models | {"canaries.png", "stages.png", "mixing.png"}
    with (report.parent / "canaries.csv").open(newline="") as file:
        assert [row["repetitions"] for row in csv.DictReader(file)] == ["0", "2"]
    # What was trained is not trained again.
    stored = (work / "points.jsonl").read_bytes()
    study.run(config, work, tmp_path / "report", "the command")
    assert (work / "points.jsonl").read_bytes() == stored
    assert report.read_text().split("## How this")[0] == text.split("## How this")[0]
    assert not list((work / "fine-tuning").iterdir())


def test_plans_that_cannot_be_compared_are_refused(corpora):
    config = shrunk("laptop", corpora)
    config.own.batch_size = 5
    with pytest.raises(UserError, match=r"config\.own\.batch_size 5 must divide"):
        memorization_sights.measure(None, config.own, "own")
    config.own.update(dict(batch_size=2, controls=1))
    with pytest.raises(UserError, match=r"config\.own\.controls must be at least 2"):
        memorization_sights.measure(None, config.own, "own")


def test_a_corpus_that_is_not_scored_is_refused_before_training(corpora, tmp_path):
    study = load(ROOT / "experiments" / "memorization.py")
    config = shrunk("laptop", corpora)
    config.stages.second = "elsewhere"
    with pytest.raises(UserError, match=r"own\.sources lacks 'elsewhere', which config\.stages"):
        study.run(config, tmp_path, tmp_path / "report", "the command")
    config.own.sources = config.own.sources[::-1]
    with pytest.raises(UserError, match=r"own\.sources must begin with config\.own\.corpus"):
        study.run(config, tmp_path, tmp_path / "report", "the command")


def test_what_a_corpus_is_too_short_for_is_refused_before_training(corpora, tmp_path):
    study = load(ROOT / "experiments" / "memorization.py")
    config = shrunk("laptop", corpora)
    config.canaries.rows = 10**6
    with pytest.raises(UserError, match=r"config\.canaries asks for 1000004 windows of 16 tokens"):
        study.run(config, tmp_path, tmp_path / "report", "the command")
    assert not (tmp_path / "pretrained").exists()


def test_orders_are_epochs_of_all_examples():
    training = Training(steps=6, batch_size=4, learning_rate=1.0, schedule="constant")
    fixed_KB = memorization_training.fixed_order(8, training)
    assert fixed_KB.reshape(3, 8).tolist() == [list(range(8))] * 3
    again_KB = memorization_training.shuffled_order(8, training, seed=0)
    epochs = again_KB.reshape(3, 8)
    assert np.sort(epochs, axis=1).tolist() == [list(range(8))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other_KB = memorization_training.shuffled_order(8, training, seed=1)
    assert not np.array_equal(again_KB, other_KB)


def test_a_batch_has_the_rows_of_every_seed():
    tokens_RNT = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    rows = Rows(tokens_RNT, np.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]]]))
    np.testing.assert_array_equal(rows.batch(1)["tokens"][0], tokens_RNT[0, 2:])
    np.testing.assert_array_equal(rows.batch(1)["tokens"][1], tokens_RNT[1, [1, 0]])


@pytest.mark.parametrize("reshuffled", [False, True])
def test_gains_follow_an_example_through_a_new_order(reshuffled):
    rng = np.random.default_rng(0)
    count, batch = 8, 2
    training = Training(steps=8, batch_size=batch, learning_rate=1.0, schedule="constant")
    orders = [rng.permutation(count) if reshuffled else np.arange(count) for _ in range(2)]
    example_T = np.concatenate(orders)
    own_N, gain_N = rng.normal(3, 1, count), rng.uniform(0.5, 1.5, count)
    # At every update held-out text falls by 0.1, and so does every example; a sight gives more.
    losses_T = own_N[example_T] - 0.1 * (np.arange(16) // batch)
    losses_T[count:] -= gain_N[orders[1]]
    arm = Arm(
        schedule="constant",
        order="reshuffled" if reshuffled else "fixed",
        training=training,
        losses_RT=losses_T[None],
        base_RT=own_N[example_T][None],
        example_RT=example_T[None],
        epochs=2,
        steps_H=np.array([0, 8]),
        controls_RHC=np.array([[[4.0, 6.0], [3.2, 5.2]]]),
        heldout={"loss": np.array([[5.0, 4.2]])},
    )
    # Unseen examples fall as controls do, whatever they are like.
    assert arm.unseen().mean == pytest.approx(0)
    assert arm.gain().mean == pytest.approx(gain_N.mean())
    # The controls agree with each other, so that examples alone make the error.
    assert arm.gain().standard_error == pytest.approx(gain_N.std(ddof=1) / np.sqrt(count))
    steps = [b.step for b in memorization_stairs.boundaries(arm, [arm], 0)]
    assert (steps == [None]) == reshuffled
    np.testing.assert_allclose(arm.gains()[0, 0], gain_N)
    expected_K = gain_N[orders[0]].reshape(4, batch).mean(1)
    np.testing.assert_allclose(arm.batch_gains()[0], expected_K)
    place = [np.argsort(order) // batch for order in orders]
    np.testing.assert_array_equal(arm.waits()[0], place[1] + 4 - place[0])
    assert arm.boundaries == [8]
    np.testing.assert_allclose(arm.rate_K, 1.0)


def test_a_cure_is_one_only_where_there_is_damage():
    rise = np.array([0.9, 1.0, 1.1])
    cure = memorization_verdict._cure
    assert "no damage" in cure(rise - 1, rise - 1.5)
    assert "not shown" in cure(rise, rise)
    assert "does not prevent" in cure(rise, rise / 2)
    assert "compatible with none" in cure(rise, rise - 1)
