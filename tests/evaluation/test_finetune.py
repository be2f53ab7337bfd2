"""Grids against optimisers written out, populations against single runs, and what a stop leaves."""

import dataclasses
import functools
import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmnoise import keys, tree
from lmnoise.data.stream import Windows, keyed_order
from lmnoise.data.tasks import Rows, Task
from lmnoise.errors import Stopped
from lmnoise.evaluation import finetune_program
from lmnoise.evaluation.finetune import FineTuner, PreTraining
from lmnoise.evaluation.finetune_program import Batches, Replay
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.outcomes import Outcome, Setting, frontier, grid, tuned
from lmnoise.evaluation.scores import Scores
from lmnoise.models.transformer import LanguageModel, llama
from lmnoise.training import lora
from lmnoise.training.mesh import make_mesh

VOCAB, LENGTH, ROWS, BATCH = 32, 8, 12, 4


class Bigram:
    """What follows a token, through a kernel: all that a fine-tuner asks of a model."""

    config = dataclasses.make_dataclass("Config", ["vocab_size"])(VOCAB)

    def init(self, key):
        shapes = {"tokens": (VOCAB, 6), "blocks": {0: {"kernel": (6, 8)}}, "head": (8, VOCAB)}
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        draws = [jax.random.normal(key, shape) * 0.3 for shape in leaves]
        return jax.tree.unflatten(structure, draws)

    def logits(self, params, tokens):
        hidden = jnp.tanh(params["tokens"][tokens] @ params["blocks"][0]["kernel"])
        return hidden @ params["head"]

    def logits_at(self, params, tokens, position):
        return self.logits(params, jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0])

    def loss(self, params, batch, key):
        return token_losses(params, batch["tokens"])

    def flops_per_token(self, length):
        return 1.0


MODEL = Bigram()
START = jax.device_get(MODEL.init(jax.random.key(0)))
CLASSES = np.array([5, 9, 11], np.int32)
KERNEL = "blocks/0/kernel"


def rows(count, seed):
    """Rows of labels at different positions, padded on the right."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (count, LENGTH + 1)).astype(np.int32)
    label, position = random.integers(0, 3, count), random.integers(2, LENGTH, count)
    tokens[np.arange(count), position + 1] = CLASSES[label]
    weights = np.zeros((count, LENGTH), np.float32)
    weights[np.arange(count), position] = 1
    document = np.repeat(np.arange(count, dtype=np.int32)[:, None], LENGTH + 1, axis=1)
    return Rows(tokens, weights, document, label.astype(np.int32), np.ones(count))


TASK = Task("toy", "labels", ("a", "b", "c"), CLASSES, rows(ROWS, 0), rows(6, 1), rows(7, 2))


def of_text(labelled):
    """The same rows as text: every target is scored, and a row is a document."""
    return labelled._replace(weights=np.ones_like(labelled.weights))


class OneToken(Windows):
    """Pre-training text of one token, so that a replayed row is known when it is seen."""

    def __init__(self):
        self.length = LENGTH

    def __len__(self):
        return 20

    def gather(self, index_B):
        tokens = np.full((len(index_B), LENGTH + 1), 3, np.int32)
        return {"tokens": tokens, "document": np.zeros_like(tokens)}


HELD_OUT = Source(
    "held out",
    [
        {
            "tokens": np.random.default_rng(9).integers(0, VOCAB, (BATCH, LENGTH + 1), np.int32),
            "document": np.arange(BATCH, dtype=np.int32)[:, None] // 2
            + np.zeros(9, np.int32)[None],
            "weights": np.ones((BATCH, LENGTH), np.float32),
        }
    ],
    np.ones(2),
)
PRETRAINING = PreTraining(OneToken(), HELD_OUT)
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


def mesh():
    return make_mesh(devices=jax.devices()[:1])


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


def token_losses(params, tokens):
    logits = jax.nn.log_softmax(MODEL.logits(params, tokens[:, :-1]))
    return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)[..., 0]


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


def test_changes_are_paired():
    before = Scores([2.0, 3.0, 5.0], [1.0, 1.0, 2.0], [1.0, 0.0, 0.0])
    after = Scores([1.0, 2.0, 3.0], [1.0, 1.0, 2.0], [1.0, 1.0, 0.0])
    outcome = Outcome(Setting(1.0), {"test": before}, {"test": after})
    assert outcome.change("test") == (-1.0, 0.0, 3)
    assert outcome.accuracy_change("test").mean == pytest.approx(1 / 4)  # by scored tokens
    assert Outcome.from_json(outcome.to_json()) == outcome


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


REPLAY = jax.jit(Replay(VOCAB, TASK.train))
whole_batch = functools.cache(Batches(TASK.train, OneToken(), [0, 1], ROWS, mesh()))


def replayed(rate, seed, step=0):
    """Which rows of a step are pre-training text, and their weights."""
    batch = {k: v[0] for k, v in whole_batch(step).items()} | {"index": np.int32(step)}
    member = {"seed": seed, "rate": rate, "kind": 0}
    found = jax.device_get(REPLAY(batch, member))
    taken = (found["tokens"] == 3).all(1)
    np.testing.assert_array_equal(taken, found["groups"]["replay"][:, 0])
    return taken, found["weights"]


def test_replay_takes_its_share_of_rows_and_more_of_it_takes_the_same_and_others():
    counts = {}
    for step in range(12):
        before = np.zeros(ROWS, bool)
        for rate in (0.0, 0.3, 0.7, 1.0):
            taken, weights = replayed(rate, 0, step)
            assert not (before & ~taken).any()
            # A row of text weighs as much as a row of which a label is scored.
            np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-6)
            assert ((weights > 0).sum(1) == np.where(taken, LENGTH, 1)).all()
            counts[rate] = counts.get(rate, 0) + taken.sum()
            before = taken
    assert counts[0.0] == 0
    assert counts[1.0] == 12 * ROWS
    for rate in (0.3, 0.7):
        assert abs(counts[rate] / (12 * ROWS) - rate) < 4 * (rate * (1 - rate) / 144) ** 0.5
    assert (replayed(0.5, 0)[0] != replayed(0.5, 1)[0]).any()


def test_replay_lengthens_the_run_by_the_rows_that_it_displaces(whole):
    steps = {setting: whole._member(setting)["steps"] for setting in FULL}
    assert steps[Setting(1e-2, replay=0.5, weight_decay=0.1)] == 2 * steps[Setting(1e-2)]


def test_all_settings_of_a_seed_see_the_same_rows_each_once_an_epoch():
    batches = Batches(TASK.train, None, [0, 1], BATCH, mesh())
    epochs = []
    for epoch in range(2):
        read = [batches(3 * epoch + k)["tokens"] for k in range(3)]
        epochs.append(np.concatenate(read, axis=1))
    for seed in (0, 1):
        for epoch in epochs:
            assert {row.tobytes() for row in epoch[seed]} == {
                row.tobytes() for row in TASK.train.tokens
            }
        assert (epochs[0][seed] != epochs[1][seed]).any()
    assert (epochs[0][0] != epochs[0][1]).any()


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
