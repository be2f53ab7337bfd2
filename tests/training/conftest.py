"""A population of linear regressions: the training floor knows a loss, never a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmnoise.training.loop import Cost, fit
from lmnoise.training.mesh import make_mesh
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, member_arrays

ROWS, WIDTH = 8, 3


class Toy:
    """Linear regressions, their batches, and `fit` with everything filled in.

    `poison` maps the index of a batch to a factor on its targets: nan, or something huge.
    """

    def __init__(self, rates=(0.3, 0.2), steps=24, **options):
        self.optimizer = OptimizerConfig(steps=steps)
        self.members = [
            {"seed": 0, "stream": 0, "learning_rate": rate, "weight_decay": 0.0} for rate in rates
        ]
        self.poison = {}
        self.seen = []
        self.start = None
        self.on_batch = lambda index: None
        self.options = options

    @staticmethod
    def init(key):
        return {"w": jax.random.normal(key, (WIDTH,)), "bias": jnp.zeros(())}

    @staticmethod
    def loss(params, batch, key):
        del key
        return (batch["x"] @ params["w"] + params["bias"] - batch["y"]) ** 2

    @staticmethod
    def transform(batch, member):
        del member
        ones_B = jnp.ones(batch["y"].shape)
        return {"x": batch["x"], "y": batch["y"], "weights": ones_B, "groups": {"all": ones_B}}

    def batches(self, index):
        self.on_batch(index)
        self.seen.append(index)
        random = np.random.default_rng(index)
        x_BD = random.normal(size=(1, ROWS, WIDTH)).astype(np.float32)
        y_B = x_BD @ np.arange(1, WIDTH + 1, dtype=np.float32) + 0.5
        noise_B = 0.1 * random.normal(size=y_B.shape).astype(np.float32)
        return {"x": x_BD, "y": (y_B + noise_B) * np.float32(self.poison.get(index, 1))}

    def population(self):
        arguments = dict(
            init=self.init,
            loss=self.loss,
            transform=self.transform,
            optimizer=self.optimizer,
            members=member_arrays(self.members),
            mesh=make_mesh(devices=jax.devices()[:1]),
        )
        return Population(**(arguments | self.options))

    def evaluate(self, params):
        norms_M = np.abs(jax.device_get(params)["w"]).sum(1)
        return [{"member": m, "eval/norm": float(norm)} for m, norm in enumerate(norms_M)]

    def fit(self, config, workdir, population=None, stop=None):
        self.seen.clear()
        return fit(
            population or self.population(),
            self.batches,
            config,
            workdir=workdir,
            evaluate=self.evaluate,
            cost=Cost(ROWS, 1.0),
            config_record={},
            start=self.start,
            stop=stop,
        )


@pytest.fixture(scope="session")
def toy():
    """The class `Toy`: call it for a population."""
    return Toy


@pytest.fixture(scope="session")
def same():
    """Asserts that two pytrees agree bit for bit."""

    def check(left, right):
        left, right = jax.device_get((left, right))
        assert jax.tree.structure(left) == jax.tree.structure(right)
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)

    return check
