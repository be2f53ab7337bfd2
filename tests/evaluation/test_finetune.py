"""Grids against optimisers written out, populations against single runs, and what a stop leaves."""

import logging
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmnoise import keys, tree
from lmnoise.data.stream import keyed_order
from lmnoise.data.tasks import Task
from lmnoise.errors import Stopped
from lmnoise.evaluation import finetune_program
from lmnoise.evaluation.finetune import FineTuner
from lmnoise.evaluation.finetune_program import Batches
from lmnoise.evaluation.outcomes import Setting, grid
from lmnoise.models.transformer import LanguageModel, llama
from lmnoise.training import lora

sys.path.insert(0, str(Path(__file__).parent))

from finetune_toy import (
    BATCH,
    CLASSES,
    HELD_OUT,
    KERNEL,
    LENGTH,
    MODEL,
    PRETRAINING,
    ROWS,
    START,
    TASK,
    VOCAB,
    mesh,
    of_text,
    token_losses,
)

MASK = {
    "some": tree.map_named(
        lambda name, leaf: np.arange(leaf.size).reshape(leaf.shape) % 2 == (name == KERNEL), START
    )
}
FULL = [
    *grid(learning_rate=(1e-2, 1e38), epochs=(1.0, 2.0)),
    Setting(1e-2, seed=1),
    Setting(1e-2, replay=0.5, weight_decay=0.1),
]
SETTINGS = [*FULL, Setting(1e-2, rank=1, seed=1), Setting(1e-2, rank=2)]


def finetuner(settings, **options):
    options = {"pretraining": PRETRAINING} | options
    return FineTuner(MODEL, TASK, settings, mesh=mesh(), batch_size=BATCH, **options)


def to_host(setting, params):
    """A callback that stores parameters where a test finds them: JSON is not for arrays."""
    KEPT[setting] = jax.device_get(params)
    return float(KEPT[setting]["head"].sum())


KEPT = {}


@pytest.fixture(scope="module", autouse=True)
def compiled_fast(compiled_once):
    """What these tests cost is compiling: programs this small need no optimising."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def whole():
    return finetuner(SETTINGS)


@pytest.fixture(scope="module")
def outcomes(whole, tmp_path_factory):
    KEPT.clear()
    found = whole.run(START, workdir=tmp_path_factory.mktemp("grid"), record={}, after=to_host)
    return dict(zip(SETTINGS, found, strict=True))


def by_hand(start, loss, total, train=TASK.train, at=lambda params, tokens: params):
    """Builds AdamW of a library on rows in their keyed order, with a cosine after a warm-up.

    The schedule is one of `total` steps with a warm-up of one, shrunk to those of the setting.
    """

    def optimizer_at(rate):
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.0),
        )

    @jax.jit
    def step(params, state, tokens, weights, rate):
        gradient = jax.grad(lambda p: (loss(p, tokens) * weights).sum() / weights.sum())(
            at(params, tokens)
        )
        updates, state = optimizer_at(rate).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def run(learning_rate, steps, seed):
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 1, total, 0.1)
        order = keyed_order(0, ROWS, f"{seed}/task")
        shapes = jax.eval_shape(optimizer_at(1.0).init, start)
        params, state = start, jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
        for k in range(steps):
            chosen = [order[k * BATCH + b] for b in range(BATCH)]
            tokens, weights = train.tokens[chosen], train.weights[chosen]
            rate = learning_rate * schedule((k + 1) * total / steps)
            params, state = step(params, state, tokens, weights, rate)
        return params

    return run


def assert_close(ours, theirs):
    for mine, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)


def test_a_member_is_a_loop_written_out(outcomes):
    train = by_hand(START, token_losses, 6)
    for setting, steps in ((FULL[0], 3), (FULL[1], 6), (FULL[4], 3)):
        assert_close(KEPT[setting], train(1e-2, steps, setting.seed))


def test_low_rank_updates_below_the_largest_rank_are_a_loop_written_out(outcomes):
    setting = SETTINGS[-2]
    key = keys.fold(jax.random.key(setting.seed), "parameters")
    low = jax.jit(lambda key: lora.init(key, START, setting.rank))(key)
    base = jax.tree.map(jnp.asarray, START)
    train = by_hand(low, lambda low, tokens: token_losses(lora.merge(base, low), tokens), 3)
    assert_close(KEPT[setting], lora.merge(base, train(1e-2, 3, setting.seed)))


all_logits = jax.jit(MODEL.logits)


def test_scores_are_those_of_the_final_parameters(outcomes):
    for params, scores in (
        (START, outcomes[FULL[1]].before),
        (KEPT[FULL[1]], outcomes[FULL[1]].after),
    ):
        for name, data in (("validation", TASK.validation), ("test", TASK.test)):
            count = len(data.tokens)
            position = data.weights.argmax(1)
            logits = np.asarray(all_logits(params, data.tokens[:, :-1]), np.float64)
            logits = logits[np.arange(count), position]
            losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(count), CLASSES[data.label]]
            np.testing.assert_allclose(scores[name].losses, losses, rtol=1e-5)
            right = logits[:, CLASSES].argmax(1) == data.label
            assert scores[name].right == right.tolist()
            assert scores[name].accuracy.mean == pytest.approx(right.mean())
            assert scores[name].accuracy.standard_error == pytest.approx(
                right.std(ddof=1) / count**0.5
            )
        of_text = np.asarray(
            jax.jit(token_losses)(params, HELD_OUT.batches[0]["tokens"]), np.float64
        )
        np.testing.assert_allclose(
            scores["pretraining"].losses, of_text.reshape(2, -1).sum(1), rtol=1e-5
        )
        assert scores["pretraining"].loss.mean == pytest.approx(of_text.mean(), rel=1e-5)


def test_a_member_that_diverges_is_a_result_and_harms_no_other(outcomes):
    for setting in SETTINGS:
        assert outcomes[setting].diverged == (setting.learning_rate > 1)
    for outcome in (outcomes[FULL[2]], outcomes[FULL[3]]):
        assert np.isnan(outcome.change("test").mean)
        assert np.isnan(outcome.after["test"].accuracy.mean)


@pytest.fixture
def alone(single, monkeypatch):
    """With room for one state at a time each setting trains on its own, a step a dispatch."""
    monkeypatch.setattr(finetune_program, "_SHORT", 0.0)
    return single


@pytest.fixture(scope="module")
def single():
    return finetuner(FULL, state_bytes=1)


def test_a_population_equals_single_runs(alone, outcomes, tmp_path):
    found = alone.run(START, workdir=tmp_path, record={})
    assert_same(found, outcomes)
    assert all(outcome.before == outcomes[outcome.setting].before for outcome in found)


def test_a_second_start_compiles_nothing(whole, outcomes, tmp_path, caplog):
    start = jax.tree.map(lambda leaf: leaf * 0.5, START)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        found = whole.run(start, workdir=tmp_path, record={}, after=to_host)
    messages = [r.getMessage() for r in caplog.records]
    assert not [m for m in messages if "MLIR" in m or "XLA compilation" in m]
    assert found[0].before != outcomes[SETTINGS[0]].before
    assert found[0].after != outcomes[SETTINGS[0]].after


def fail_at(monkeypatch, count, act):
    """Calls `act` when so many batches were read; returns the list of their indices."""
    read = []

    def batches(self, index, call=Batches.__call__):
        read.append(index)
        if len(read) == count:
            act()
        return call(self, index)

    monkeypatch.setattr(Batches, "__call__", batches)
    return read


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same(found, outcomes):
    for setting, outcome in zip(FULL, found, strict=True):
        for text, scores in outcome.after.items():
            np.testing.assert_allclose(
                scores.losses, outcomes[setting].after[text].losses, rtol=1e-6
            )


def test_a_stopped_run_goes_on_exactly(alone, outcomes, tmp_path, monkeypatch):
    """Settings that are done are not trained again, and the others go on where they were."""
    read = fail_at(monkeypatch, 6, terminate)
    with pytest.raises(Stopped):
        alone.run(START, workdir=tmp_path, record={})
    assert len(list(tmp_path.glob("*.json"))) == 1
    first = len(read)
    found = alone.run(START, workdir=tmp_path, record={})
    assert 0 < read[first] < 3
    assert_same(found, outcomes)
    trained = len(read)
    again = alone.run(START, workdir=tmp_path, record={})
    assert again[0] == found[0]
    assert len(read) == trained
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_signal_after_the_last_step_stops_when_the_outcomes_are_stored(
    alone, outcomes, tmp_path, monkeypatch
):
    read = fail_at(monkeypatch, 0, None)
    with pytest.raises(Stopped):
        alone.run(START, workdir=tmp_path, record={}, after=lambda *_: terminate())
    assert read == [0, 1, 2]
    assert len(list(tmp_path.glob("*.json"))) == 1
    read.clear()
    assert_same(alone.run(START, workdir=tmp_path, record={}), outcomes)
    assert len(read) == 2 * 3 + 3 * 6


def test_a_long_population_that_is_killed_loses_a_quarter_at_most(
    alone, outcomes, tmp_path, monkeypatch
):
    monkeypatch.setattr(finetune_program, "_LONG", 6)

    def kill():
        raise RuntimeError("killed")

    # Those of three steps first; the sixth batch of a longer one is read after its fifth step.
    read = fail_at(monkeypatch, 3 * 3 + 6, kill)
    with pytest.raises(RuntimeError, match="killed"):
        alone.run(START, workdir=tmp_path, record={})
    read.clear()
    assert_same(alone.run(START, workdir=tmp_path, record={}), outcomes)
    assert read[:2] == [4, 5]


def test_frozen_entries_keep_their_bits_and_another_mask_of_the_name_is_another_setting(tmp_path):
    settings = [Setting(1e-2, frozen="some"), Setting(1e-1, frozen="some")]
    options = dict(pretraining=None, state_bytes=1)
    tuner = finetuner(settings, masks=MASK, **options)
    first = tuner.run(START, workdir=tmp_path, record={}, after=to_host)
    for setting in settings:
        for after, before, frozen in zip(
            *map(jax.tree.leaves, (KEPT[setting], START, MASK["some"])), strict=True
        ):
            assert after[frozen].tobytes() == before[frozen].tobytes()
            assert (after[~frozen] != before[~frozen]).mean() > 0.1
    KEPT.clear()
    assert tuner.run(START, workdir=tmp_path, record={}, after=to_host) == first
    assert not KEPT
    other = {"some": jax.tree.map(np.logical_not, MASK["some"])}
    second = finetuner(settings, masks=other, **options).run(START, workdir=tmp_path, record={})
    assert [o.after for o in second] != [o.after for o in first]


def test_sharpness_on_a_task_of_text(tmp_path):
    """The gradient is taken at params + radius * g / ||g||, of rows that weigh by their tokens."""
    text = Task(
        "text", "text", (), CLASSES[:0], *map(of_text, (TASK.train, TASK.validation, TASK.test))
    )
    [found] = FineTuner(
        MODEL, text, [Setting(1e-2, epochs=2 / 3, sam_radius=0.5)], mesh=mesh(), batch_size=BATCH
    ).run(START, workdir=tmp_path, record={}, after=to_host)
    assert found.after["test"].right is None
    assert np.isnan(found.after["test"].accuracy.mean)
    assert found.change("validation").n == 6

    def sharp(loss):
        def at(params, tokens):
            gradient = jax.grad(lambda p: loss(p, tokens).mean())(params)
            norm = sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)) ** 0.5
            return jax.tree.map(lambda p, g: p + 0.5 * g / norm, params, gradient)

        return at

    train = by_hand(START, token_losses, 2, text.train, sharp(token_losses))
    assert_close(KEPT[found.setting], train(1e-2, 2, 0))


def test_replay_lengthens_the_run_by_the_rows_that_it_displaces(whole):
    steps = {setting: whole._member(setting)["steps"] for setting in FULL}
    assert steps[Setting(1e-2, replay=0.5, weight_decay=0.1)] == 2 * steps[Setting(1e-2)]


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ([], {}, "settings must be different"),
        ([Setting(1e-3)] * 2, {}, "settings must be different"),
        ([Setting(1e-3, frozen="core")], {}, "frozen must be one of"),
        ([Setting(1e-3, replay=0.5)], {"pretraining": None}, "replay 0.5 needs pretraining"),
    ],
)
def test_grids_without_sense(settings, options, words):
    with pytest.raises(ValueError, match=words):
        finetuner(settings, masks=MASK, **options)


def test_logits_at_a_position_are_those_of_the_whole_row():
    model = LanguageModel(
        llama(vocab_size=VOCAB, context=LENGTH, layers=1, width=8, heads=2, kv_heads=1, mlp_width=8)
    )
    tokens, position = TASK.test.tokens[:3, :-1], np.array([0, 7, 3], np.int32)

    @jax.jit
    def both(params):
        return model.logits(params, tokens), model.logits_at(params, tokens, position)

    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: random.normal(0, 0.3, s.shape).astype(np.float32), shapes)
    whole, found = jax.device_get(both(params))
    np.testing.assert_allclose(found, whole[np.arange(3), position], rtol=1e-5, atol=1e-6)
