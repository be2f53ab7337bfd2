"""The training loop: dispatches, logs, evaluates, saves, rolls back, stops and resumes.

The device never waits for the host: metrics are read one dispatch late, and the next batches
are staged while the current ones are computed.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from lmnoise.errors import UserError
from lmnoise.training import processes
from lmnoise.training.checkpoint import Checkpoints, refuse_difference
from lmnoise.training.hardware import peak_flops
from lmnoise.training.metrics import MetricsWriter
from lmnoise.training.population import Population, mean
from lmnoise.training.spikes import SpikeConfig, SpikeDetector, data_index
from lmnoise.training.step import TrainState

type Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Lengths and intervals in steps.

    `steps_per_dispatch` is an upper limit: the largest number that divides every interval is
    taken, so that one program serves the whole run. An interval of 0 means only at the end.
    With `save_end` False the final states are not saved: the caller measures them at once.
    """

    steps: int
    log_every: int = 50
    evaluate_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    keep_every: int = 0
    steps_per_dispatch: int = 10
    save_end: bool = True
    spikes: SpikeConfig = dataclasses.field(default_factory=SpikeConfig)

    @property
    def dispatch(self) -> int:
        """Steps a dispatch."""
        common = math.gcd(self.steps, self.log_every, self.evaluate_every, self.checkpoint_every)
        limit = max(1, min(self.steps_per_dispatch, common))
        return max(k for k in range(1, limit + 1) if common % k == 0)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one step of the whole population costs, for rates: tokens and FLOPs."""

    tokens: int
    flops: float


def fit(
    population: Population,
    batches: Callable[[int], dict[str, np.ndarray]],
    config: LoopConfig,
    *,
    workdir: epath.PathLike,
    evaluate: Callable[[Any], Rows],
    cost: Cost,
    config_record: dict[str, Any],
    title: str = "train",
    start: Any = None,
    stop: processes.StopSignals | None = None,
) -> TrainState | None:
    """Trains to the end, from the last checkpoint of the work directory if there is one.

    Args:
      population: compiled steps and states.
      batches: this process's rows of batch k, for any k.
      config: lengths and intervals.
      workdir: checkpoints, metrics and skipped batches live here, on storage that all
        processes share. The step and the skipped batches are the position in the data.
      evaluate: the population's parameters to rows for the metrics, each with `member`.
      cost: for tokens/s and MFU.
      config_record: the config as run, stored with every checkpoint (JSON). What `start` and
        the members' `frozen` are is for it to say: checkpoints do not know.
      title: of the progress bar.
      start: parameters, without the axis of the members, from which a run without a checkpoint
        begins (see `Population.start`); default the population's own `init`.
      stop: entered by the caller, who still hears of a signal after the last step; by default
        signals count until this returns, and one during the last dispatch is not heard of.

    Returns:
      The final states, or None if SIGTERM or SIGINT, to any one of the processes, stopped the
      run after saving it.

    Raises:
      UserError: the loss kept failing after `max_rollbacks` rollbacks, or the disk is full.
    """
    workdir = epath.Path(workdir)
    with processes.StopSignals() if stop is None else nullcontext(stop) as stop:
        run = _Run(
            population, batches, config, workdir, evaluate, cost, config_record, title, start
        )
        try:
            return run.until_done(stop)
        except BaseException as error:
            processes.fail(error)
            raise
        finally:
            run.close()


class _Run:
    """The moving parts of one call of `fit`."""

    def __init__(
        self, population, batches, config, workdir, evaluate, cost, config_record, title, start
    ):
        self.population, self.batches, self.config = population, batches, config
        self.config_record, self.start = config_record, start
        self.workdir, self.evaluate, self.cost = workdir, evaluate, cost
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", keep=config.keep, keep_every=config.keep_every
        )
        self.skipped: list[int] = _read_json(workdir / "skipped.json", [])
        # Rollbacks since a checkpoint was saved beyond the last spike.
        self.rollbacks, self.spike_step = 0, -1
        self._restore()
        # Of several processes the first writes what all of them know.
        first = jax.process_index() == 0
        self.metrics = MetricsWriter(workdir, self.step) if first else None
        self.bar = tqdm(
            total=config.steps, initial=self.step, desc=title, unit="step", disable=not first
        )
        self.clock = (time.perf_counter(), self.step)

    def close(self):
        with ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            if self.metrics is not None:
                stack.callback(self.metrics.close)
            stack.callback(self.bar.close)

    def until_done(self, stop) -> TrainState | None:
        config = self.config
        pending = None
        with jax.transfer_guard("disallow"):
            while self.step < config.steps and not stop.reached():
                staged = self._stage(self.step) if self.staged is None else self.staged
                started = self.step
                self.states, metrics = self.population.steps(self.states, staged)
                self.step += config.dispatch
                self.staged = self._stage(self.step) if self.step < config.steps else None
                spike = self._consume(pending)
                pending = (started, metrics)
                if spike is None and self._due():
                    spike, pending = self._consume(pending), None
                if spike is not None:
                    self._roll_back(*spike)
                    pending = None
                elif self._due():
                    self._evaluate_and_save()
            if self.step < config.steps:
                if self._consume(pending) is None and self.step > 0:
                    self._save()
                self.checkpoints.wait()
                return None
        return self.states

    def _due(self) -> bool:
        return any(
            interval and self.step % interval == 0
            for interval in (
                self.config.steps,
                self.config.evaluate_every,
                self.config.checkpoint_every,
            )
        )

    def _stage(self, step: int) -> dict[str, jax.Array]:
        steps = range(step, step + self.config.dispatch)
        indices = [data_index(s, self.skipped) for s in steps]
        return self.population.stage([self.batches(i) | {"index": np.int32(i)} for i in indices])

    def _consume(self, pending) -> tuple[int, int] | None:
        """Reads one dispatch's metrics; returns the (step, member) of a spike, if any."""
        if pending is None:
            return None
        started, on_device = pending
        metrics = {name: np.asarray(v, np.float64) for name, v in jax.device_get(on_device).items()}
        # These are the same on all processes, and so is what follows from them.
        # A gradient that is not finite ruins the parameters, whatever the loss was.
        sound_MK1 = np.isfinite(metrics["grad_norm"][..., :1])
        spike = self.detector.first_spike(np.where(sound_MK1, metrics["loss"], np.nan))
        if spike is not None:
            return started + spike[0], spike[1]
        for name, pairs_MK2 in metrics.items():
            self.window[name] = self.window.get(name, 0) + pairs_MK2.sum(1)
        done = started + self.config.dispatch
        self._show(done, mean(metrics["loss"][:, -1:], 1))
        every = self.config.log_every
        if done == self.config.steps or (every and done % every == 0):
            self._log(done)
        return None

    def _log(self, step: int) -> None:
        means = {name: mean(pairs_M2[:, None], 1) for name, pairs_M2 in self.window.items()}
        self._write(
            {"step": step, "member": member}
            | {name: float(values_M[member]) for name, values_M in means.items()}
            for member in range(self.population.count)
        )
        self.window = {}

    def _show(self, step: int, losses_M: np.ndarray) -> None:
        self.bar.update(step - self.bar.n)
        then, since = self.clock
        seconds, steps = time.perf_counter() - then, step - since
        # A member that has ended has no loss.
        running_M = losses_M[~np.isnan(losses_M)]
        text = f"loss {running_M.mean():.3f}" if running_M.size else "no loss"
        if seconds > 0 and steps > 0:
            text += f", {steps * self.cost.tokens / seconds:,.0f} tokens/s"
            flops = steps * self.cost.flops / seconds
            peak = peak_flops()
            text += f", {flops / 1e12:.3g} TFLOP/s"
            text += f", MFU {flops / peak:.1%} of {peak / 1e12:,.0f}" if peak else ""
        self.bar.set_postfix_str(text, refresh=False)
        if steps >= 10 * self.config.dispatch:
            self.clock = (time.perf_counter(), step)

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        if self.metrics is not None:
            for row in rows:
                self.metrics.write(row)
            self.metrics.flush()

    def _evaluate_and_save(self) -> None:
        every, end = self.config.evaluate_every, self.step == self.config.steps
        if end or (every and self.step % every == 0):
            rows = self.evaluate(self.states.params)
            self._write({"step": self.step} | row for row in rows)
        every = self.config.checkpoint_every
        if self.config.save_end if end else every and self.step % every == 0:
            self._save()
            if self.step > self.spike_step:
                self.rollbacks = 0

    def _save(self) -> None:
        if self.metrics is not None:
            self.metrics.sync()
        window = {name: pairs_M2.tolist() for name, pairs_M2 in self.window.items()}
        meta = {
            "history": self.detector.history,
            "window": window,
            "skipped": self.skipped,
            "config": self.config_record,
        }
        with jax.transfer_guard("allow"):
            self.checkpoints.save(self.step, self.states, meta)

    def _settle(self) -> None:
        """Brings what is under way to disk, before all processes fail alike.

        The first that fails ends the others, and none of them closes its run then. What does not
        come to its end is bounded by Orbax (twenty minutes) and by the object store's retries.
        """
        with jax.transfer_guard("allow"):
            self.checkpoints.wait()
            if self.metrics is not None:
                self.metrics.sync()
            multihost_utils.sync_global_devices("settled")

    def _restore(self, at_most: int | None = None) -> None:
        self.states = None  # Frees the old ones first.
        with jax.transfer_guard("allow"):
            restored = self.checkpoints.restore(self.population.abstract(), at_most)
            if restored is None:
                self.step, meta = 0, {}
                self.states = (
                    self.population.init()
                    if self.start is None
                    else self.population.start(self.start)
                )
            else:
                self.step, self.states, meta = restored
                refuse_difference(self.workdir, meta["config"], self.config_record)
        self.detector = SpikeDetector(self.config.spikes, meta.get("history", ()))
        self.window = {name: np.asarray(v) for name, v in meta.get("window", {}).items()}
        # A rollback after this checkpoint has skipped more than it knows.
        self.skipped = sorted({*self.skipped, *meta.get("skipped", ())})
        self.staged = None

    def _roll_back(self, step: int, member: int) -> None:
        self.rollbacks += 1
        if self.rollbacks > self.config.spikes.max_rollbacks:
            self._settle()
            raise UserError(
                f"the loss of member {member} (see members.csv) failed again at step {step} after "
                f"{self.config.spikes.max_rollbacks} rollbacks: lower its learning rate, leave it "
                f"out, or look at batches {self.skipped} of the data; what was saved is in "
                f"{self.checkpoints.folder}"
            )
        self.spike_step = step
        # A checkpoint from among the suspicious steps may hold the harm already.
        first = max(0, step - self.config.spikes.skip + 1)
        self._restore(at_most=first)
        with jax.transfer_guard("allow"):  # Processes wait for each other by a collective.
            self.checkpoints.discard_after(self.step)
        bad = [data_index(s, self.skipped) for s in range(max(first, self.step), step + 1)]
        self.skipped = sorted(self.skipped + bad)
        event = {"event": "rollback", "spike_step": step, "spike_member": member, "skipped": bad}
        if self.metrics is not None:
            _write_json(self.workdir / "skipped.json", self.skipped)
            self.metrics.rewind(self.step)
            self._write([{"step": self.step} | event])
            tqdm.write(f"spike at step {step}: back to step {self.step}, skipping batches {bad}")
            self.bar.n = self.bar.last_print_n = self.step
            self.bar.initial = min(self.bar.initial, self.step)
        self.clock = (time.perf_counter(), self.step)


def _read_json(path: epath.Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: mend it or use another --workdir") from error


def _write_json(path: epath.Path, value: Sequence[Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)
