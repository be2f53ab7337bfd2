"""Members that train fewer steps than their population, each annealed to its own end."""

import dataclasses

import jax
import numpy as np
import pytest

from lmnoise.training.loop import LoopConfig
from lmnoise.training.optimizer import OptimizerConfig, schedule
from lmnoise.training.population import mean


@pytest.mark.parametrize("name", ["cosine", "wsd", "one_cycle", "constant"])
def test_a_shrunk_schedule_is_that_of_the_shorter_run(name):
    config = OptimizerConfig(steps=80, schedule=name, final_fraction=0.0)
    shrunk = jax.vmap(schedule(config), in_axes=(0, None))(np.arange(20), np.int32(20))
    short = jax.vmap(schedule(dataclasses.replace(config, steps=20)))(np.arange(20))
    np.testing.assert_allclose(shrunk, short, atol=2e-6)


def test_cycles_are_not_shrunk():
    config = OptimizerConfig(steps=80, schedule="cyclical", cycle_steps=10)
    fraction = schedule(config)
    assert fraction(13, 20) == fraction(13)


def test_a_member_that_ends_early_is_a_run_of_its_own(toy, same, tmp_path):
    """The same parameters, moments and step as a population of that length; no metric after."""
    options = LoopConfig(steps=24, log_every=6, checkpoint_every=24, steps_per_dispatch=3)
    both = toy(steps=24)
    for member, steps in zip(both.members, (24, 12), strict=True):
        member["steps"] = steps
    population = both.population()
    states = both.fit(options, tmp_path / "both", population)
    assert states.step.tolist() == [24, 12]

    short = toy(steps=12, rates=(0.2,))
    alone = short.fit(dataclasses.replace(options, steps=12, checkpoint_every=12), tmp_path / "one")
    ours = jax.tree.map(lambda leaf: leaf[1], states)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-6, atol=1e-7)

    staged = population.stage([both.batches(0) | {"index": np.int32(0)}] * 2)
    kept = jax.device_get(states)
    after, metrics = population.steps(states, staged)
    same(jax.tree.map(lambda leaf: leaf[1], jax.device_get(after)),
         jax.tree.map(lambda leaf: leaf[1], kept))  # fmt: skip
    assert all(np.isnan(mean(np.asarray(m)[1], 0)) for m in metrics.values())


def test_it_resumes_bit_for_bit(toy, same, tmp_path):
    options = LoopConfig(steps=24, log_every=6, checkpoint_every=8, steps_per_dispatch=2)

    def run(folder, stop_at=None):
        study = toy(steps=24)
        for member, steps in zip(study.members, (24, 6), strict=True):
            member["steps"] = steps

        def interrupt(index):
            if index == stop_at:
                raise KeyboardInterrupt

        study.on_batch = interrupt
        return study.fit(options, tmp_path / folder)

    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop_at=18)
    same(run("stopped"), run("whole"))
