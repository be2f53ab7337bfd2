"""The loop in one process: resuming, stopping, spikes, full disks."""

import dataclasses
import errno
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from lmnoise.errors import UserError
from lmnoise.training.checkpoint import Checkpoints
from lmnoise.training.loop import LoopConfig
from lmnoise.training.metrics import MetricsWriter, read_rows
from lmnoise.training.processes import StopSignals
from lmnoise.training.spikes import SpikeConfig

CONFIG = LoopConfig(
    steps=24, log_every=4, evaluate_every=8, checkpoint_every=8, steps_per_dispatch=4
)


def stop_at(index):
    """Makes this process get SIGTERM while it reads a batch."""

    def on_batch(k):
        if k == index and signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None):
            os.kill(os.getpid(), signal.SIGTERM)

    return on_batch


def losses(workdir):
    return {(r["step"], r["member"]): r["loss"] for r in read_rows(workdir) if "loss" in r}


def rollbacks(workdir):
    return [row for row in read_rows(workdir) if row.get("event") == "rollback"]


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def population(toy):
    return toy().population()


@pytest.fixture(scope="module")
def whole(toy, population, tmp_path_factory):
    """An uninterrupted run: (final states on the host, work directory)."""
    workdir = tmp_path_factory.mktemp("whole")
    states = toy().fit(CONFIG, workdir, population)
    return jax.device_get(states), workdir


def test_what_a_run_leaves(toy, whole):
    states, workdir = whole
    rows = read_rows(workdir)
    assert [r["step"] for r in rows if "loss" in r] == [s for s in range(4, 25, 4) for _ in "mm"]
    assert [r["step"] for r in rows if "eval/norm" in r] == [8, 8, 16, 16, 24, 24]
    assert saved_steps(workdir) == [16, 24]
    assert states.step.tolist() == [24, 24]
    assert not (workdir / "skipped.json").exists()
    first = np.mean([losses(workdir)[4, m] for m in range(2)])
    assert losses(workdir)[24, 0] < first


def test_log_rows_are_means_over_the_steps_since_the_last(toy, population, whole):
    each = dataclasses.replace(CONFIG, log_every=1, steps_per_dispatch=1)
    every = toy().population().steps  # its own program: one step a dispatch
    instance = toy()
    states, singles = population.init(), []
    for step in range(8):
        states, metrics = every(
            states, population.stage([instance.batches(step) | {"index": np.int32(step)}])
        )
        singles.append(metrics["loss"][:, 0, 0] / metrics["loss"][:, 0, 1])
    assert each.dispatch == 1
    for m in range(2):
        mean = np.mean([float(s[m]) for s in singles[4:8]])
        assert losses(whole[1])[8, m] == pytest.approx(mean, rel=1e-6)


def test_one_program_serves_a_whole_run_and_its_resumption(toy, tmp_path):
    instance = toy()
    instance.on_batch = stop_at(13)
    population = instance.population()
    assert instance.fit(CONFIG, tmp_path, population) is None
    instance.on_batch = lambda k: None
    assert instance.fit(CONFIG, tmp_path, population) is not None
    assert population._steps._cache_size() == 1
    assert population._init._cache_size() == 1


@pytest.mark.parametrize("index", [0, 5, 8, 13, 20])
def test_sigterm_saves_and_the_resumed_run_is_the_same(
    toy, population, whole, same, tmp_path, index
):
    instance = toy()
    config = dataclasses.replace(CONFIG, log_every=12, steps_per_dispatch=2)
    expected = toy().fit(config, tmp_path / "whole")
    instance.on_batch = stop_at(index)
    assert instance.fit(config, tmp_path / "run") is None
    stopped = saved_steps(tmp_path / "run")[-1]
    assert stopped < 24
    assert stopped % 2 == 0
    instance.on_batch = lambda k: None
    states = instance.fit(config, tmp_path / "run")
    assert instance.seen == list(range(stopped, 24))
    same(states, expected)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sigterm_during_evaluation_is_honoured_after_it(toy, population, same, whole, tmp_path):
    instance, evaluate = toy(), toy().evaluate

    def interrupted(params):
        rows = evaluate(params)
        os.kill(os.getpid(), signal.SIGTERM)
        return rows

    instance.evaluate = interrupted
    assert instance.fit(CONFIG, tmp_path, population) is None
    assert saved_steps(tmp_path) == [8]
    instance.evaluate = evaluate
    same(instance.fit(CONFIG, tmp_path, population), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[1] / "metrics.jsonl").read_bytes()


def test_sigterm_before_the_first_step_stops_without_a_checkpoint(toy, tmp_path):
    population = toy().population()
    init = population.init

    def interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        return init()

    population.init = interrupted
    assert toy().fit(CONFIG, tmp_path, population) is None
    assert saved_steps(tmp_path) == []


def test_a_finished_run_is_left_alone(toy, population, whole, same):
    states, workdir = whole
    before = (workdir / "metrics.jsonl").read_bytes()
    instance = toy()
    same(instance.fit(CONFIG, workdir, population), states)
    assert instance.seen == []
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_without_an_end_only_what_is_on_the_way_is_saved(toy, population, whole, same, tmp_path):
    config = dataclasses.replace(CONFIG, save_end=False)
    same(toy().fit(config, tmp_path, population), whole[0])
    assert saved_steps(tmp_path) == [8, 16]
    # It ends anew from there, with the same states.
    instance = toy()
    same(instance.fit(config, tmp_path, population), whole[0])
    assert instance.seen == list(range(16, 24))


def test_a_caller_may_hear_of_a_signal_after_the_last_step(toy, population, whole, same, tmp_path):
    instance = toy()

    def interrupted(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    instance.evaluate = interrupted
    with StopSignals() as stop:
        config = dataclasses.replace(CONFIG, evaluate_every=0)
        same(instance.fit(config, tmp_path, population, stop=stop), whole[0])
        assert stop.reached()


def test_the_signal_handlers_are_put_back(toy, population, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    toy().fit(CONFIG, tmp_path, population)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_transfer_guard_is_on(toy, population, tmp_path):
    instance = toy()
    function = jax.jit(lambda x: x + 1)
    instance.evaluate = lambda params: function(np.ones(3))
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        instance.fit(CONFIG, tmp_path, population)


@pytest.mark.parametrize("interval", ["log_every", "evaluate_every", "checkpoint_every"])
def test_an_interval_of_zero_means_only_at_the_end(toy, population, tmp_path, interval):
    config = dataclasses.replace(CONFIG, **{interval: 0})
    toy().fit(config, tmp_path, population)
    rows = read_rows(tmp_path)
    steps = {
        "log_every": [r["step"] for r in rows if "loss" in r],
        "evaluate_every": [r["step"] for r in rows if "eval/norm" in r],
        "checkpoint_every": saved_steps(tmp_path) * 2,
    }
    assert steps[interval] == [24, 24]


@pytest.mark.parametrize(
    ("intervals", "dispatch"),
    [((24, 4, 8, 8, 10), 4), ((24, 0, 0, 0, 10), 8), ((7, 0, 0, 0, 10), 7), ((24, 5, 8, 8, 10), 1)],
)
def test_a_dispatch_divides_every_interval(intervals, dispatch):
    names = ("steps", "log_every", "evaluate_every", "checkpoint_every", "steps_per_dispatch")
    assert LoopConfig(**dict(zip(names, intervals, strict=True))).dispatch == dispatch


# ---- spikes -------------------------------------------------------------------------------------

WATCHING = dataclasses.replace(CONFIG, spikes=SpikeConfig(threshold=1e4, window=8, skip=2))


@pytest.mark.parametrize(
    ("index", "factor", "back", "skipped"),
    [
        (18, np.nan, 16, [17, 18]),
        (18, 1e6, 16, [17, 18]),
        (16, np.nan, 8, [15, 16]),  # the checkpoint of step 16 has seen batch 15
        (2, np.nan, 0, [1, 2]),  # before any checkpoint
        (0, np.inf, 0, [0]),
    ],
)
def test_a_bad_batch_is_rolled_back_and_skipped(
    toy, population, tmp_path, index, factor, back, skipped
):
    instance = toy()
    instance.poison = {index: factor}
    states = instance.fit(WATCHING, tmp_path, population)
    assert states.step.tolist() == [24, 24]
    (event,) = rollbacks(tmp_path)
    assert (event["step"], event["spike_step"], event["skipped"]) == (back, index, skipped)
    assert json.loads((tmp_path / "skipped.json").read_text()) == skipped
    assert instance.seen[-(24 - back) :] == [
        k for k in range(back, 24 + len(skipped)) if k not in skipped
    ]
    steps = [r["step"] for r in read_rows(tmp_path) if "loss" in r]
    assert steps == [s for s in range(4, 25, 4) for _ in "mm"]
    assert all(np.isfinite(value) for value in losses(tmp_path).values())
    assert saved_steps(tmp_path) == [16, 24]


def test_without_rewinding_a_member_that_fails_is_a_result_and_harms_no_other(
    toy, population, whole, same, tmp_path
):
    instance = toy(rates=(0.3, 1e38))
    instance.evaluate = lambda params: []
    config = dataclasses.replace(CONFIG, spikes=SpikeConfig(rewind=False))
    states = instance.fit(config, tmp_path, population.using(instance.population().members))
    first = jax.tree.map(lambda leaf: leaf[0], jax.device_get((states, whole[0])))
    same(*first)
    assert not np.isfinite(states.params["w"][1]).all()
    assert instance.seen == list(range(24))
    assert rollbacks(tmp_path) == []
    assert not (tmp_path / "skipped.json").exists()


def test_the_run_after_a_rollback_is_one_without_those_batches(toy, population, same, tmp_path):
    instance = toy()
    instance.poison = {18: np.nan}
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "skipped.json").write_text("[17, 18]")
    rolled_back = instance.fit(WATCHING, tmp_path / "spiked", population)
    same(rolled_back, instance.fit(WATCHING, tmp_path / "clean", population))
    assert losses(tmp_path / "spiked") == losses(tmp_path / "clean")


def test_a_gradient_that_is_not_finite_is_found_at_its_own_step(toy, tmp_path):
    instance = toy()
    plain = instance.loss

    def loss(params, batch, key):
        # The value is fine where the gradient is not: d sqrt(x) at x = 0.
        bad_B = jax.numpy.abs(batch["y"]) > 1e3
        square_B = jax.numpy.where(bad_B, (params["bias"] * 0) ** 2, 1.0)
        clipped = batch | {"y": jax.numpy.where(bad_B, 0.0, batch["y"])}
        return plain(params, clipped, key) + 0.01 * jax.numpy.sqrt(square_B)

    instance.loss = loss
    instance.poison = {14: 1e6}
    instance.fit(CONFIG, tmp_path)
    (event,) = rollbacks(tmp_path)
    assert (event["spike_step"], event["step"]) == (14, 8)


def test_skipped_batches_stay_skipped_after_a_kill(toy, population, same, tmp_path):
    instance = toy()
    instance.poison = {10: np.nan}
    expected = jax.device_get(instance.fit(WATCHING, tmp_path / "whole", population))
    instance.on_batch = stop_at(19)
    assert instance.fit(WATCHING, tmp_path / "run", population) is None
    instance.on_batch = lambda k: None
    same(instance.fit(WATCHING, tmp_path / "run", population), expected)
    for name in ("metrics.jsonl", "skipped.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_too_many_rollbacks_are_a_user_error(toy, population, tmp_path):
    instance = toy()
    instance.poison = dict.fromkeys(range(9, 100), np.nan)
    with pytest.raises(UserError, match="failed again at step 8 after 3 rollbacks"):
        instance.fit(WATCHING, tmp_path, population)
    assert len(rollbacks(tmp_path)) == 3
    assert saved_steps(tmp_path) == [8]
    instance.poison = {}
    assert instance.fit(WATCHING, tmp_path, population).step.tolist() == [24, 24]


def test_two_bad_places_are_two_rollbacks(toy, population, tmp_path):
    instance = toy()
    instance.poison = {6: np.nan, 20: np.nan}
    instance.fit(WATCHING, tmp_path, population)
    assert [event["spike_step"] for event in rollbacks(tmp_path)] == [6, 18]
    assert json.loads((tmp_path / "skipped.json").read_text()) == [5, 6, 19, 20]


def test_a_damaged_list_of_skipped_batches_is_named(toy, population, tmp_path):
    (tmp_path / "skipped.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"skipped\.json is not JSON"):
        toy().fit(CONFIG, tmp_path, population)


# ---- full disks ---------------------------------------------------------------------------------


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_saving(toy, population, whole, same, tmp_path, monkeypatch):
    calls, manager_of = [], Checkpoints(tmp_path / "probe")
    manager = type(manager_of._manager)
    manager_of.close()
    save = manager.save

    def second_fails(self, *args, **kwargs):
        calls.append(args)
        return full_disk() if len(calls) == 2 else save(self, *args, **kwargs)

    monkeypatch.setattr(manager, "save", second_fails)
    with pytest.raises(UserError, match="the disk is full while saving"):
        toy().fit(CONFIG, tmp_path / "run", population)
    assert saved_steps(tmp_path / "run") == [8]
    monkeypatch.undo()
    same(toy().fit(CONFIG, tmp_path / "run", population), whole[0])


def test_a_disk_that_fills_up_in_the_background(
    toy, population, whole, same, tmp_path, monkeypatch
):
    """The files are written by a thread after `save` has returned."""
    import orbax.checkpoint._src.handlers.json_checkpoint_handler as handler

    write, count = handler.JsonCheckpointHandler._save_fn, []
    before = set(threading.enumerate())

    async def second_fails(self, *args, **kwargs):
        count.append(threading.current_thread())
        return full_disk() if len(count) == 2 else await write(self, *args, **kwargs)

    monkeypatch.setattr(handler.JsonCheckpointHandler, "_save_fn", second_fails)
    with pytest.raises(UserError, match="the disk is full while saving"):
        toy().fit(CONFIG, tmp_path, population)
    assert count[1] is not threading.main_thread()
    # In a process of its own the resumed run would not meet the threads of the failed save.
    for thread in set(threading.enumerate()) - before:
        thread.join(1)
    monkeypatch.undo()
    same(toy().fit(CONFIG, tmp_path, population), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[1] / "metrics.jsonl").read_bytes()


def test_a_disk_that_fills_up_within_a_line_of_metrics(
    toy, population, whole, same, tmp_path, monkeypatch
):
    write = MetricsWriter.write

    def half_a_line(self, row):
        if row["step"] < 12:
            return write(self, row)
        self._jsonl.write('{"step": 12, "mem')
        self._jsonl.flush()
        return full_disk()

    monkeypatch.setattr(MetricsWriter, "write", half_a_line)
    with pytest.raises(OSError, match="No space left"):
        toy().fit(CONFIG, tmp_path, population)
    assert saved_steps(tmp_path) == [8]
    monkeypatch.undo()
    same(toy().fit(CONFIG, tmp_path, population), whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole[1] / "metrics.jsonl").read_bytes()
