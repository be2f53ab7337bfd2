"""Two-layer networks trained by the project's own step, as populations.

Letters: M members, S seeds, T steps, B images a batch, n images of a training set, K units.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from collapse_images_data import Array, Pictures, host_generator
from ml_collections import ConfigDict

from lmnoise.models.regression import Params, TwoLayerRelu
from lmnoise.training import mesh as meshes
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, mean, member_arrays

_REPLICATED = ((r".*", ()),)
# Of the steps, over which the loss on a network's own labels is averaged at the end.
_LAST = 0.05


class Plan(NamedTuple):
    """What is compiled in: sizes of the model, steps, and images for which there is room.

    Training sets of any size up to `room` run the same program.
    """

    inputs: int
    width: int
    outputs: int
    steps: int
    room: int

    @property
    def model(self) -> TwoLayerRelu:
        return TwoLayerRelu(self.inputs, self.width, self.outputs)


def train(
    plan: Plan,
    own: ConfigDict,
    x_SNP: Array,
    labels_MNO: Array,
    seed_S: Sequence[int],
    stream_M: Sequence[int],
) -> tuple[Params, np.ndarray]:
    """Trains M networks with Adam on mini-batches, each on its own labels.

    Networks of a seed start alike and see the same images in the same order, whatever the labels.

    Args:
      own: `batch_size` (at most n), `learning_rate` (a peak, of a cosine to 0).
      x_SNP: training images of each seed.
      labels_MNO: of those images.
      seed_S: seeds.
      stream_M: which of the seeds a member has.

    Returns:
      The parameters, leaves (M, ...), and the loss on the own labels at the end (M,).
    """
    n = x_SNP.shape[1]
    fed = {
        "index": np.arange(plan.steps, dtype=np.int32),
        "position": _positions(seed_S, n, plan.steps, min(own.batch_size, n)),
    }
    members = [
        {"seed": seed_S[s], "stream": s, "place": m, "learning_rate": own.learning_rate,
         "weight_decay": 0.0}
        for m, s in enumerate(stream_M)
    ]  # fmt: skip
    spare = ((0, 0), (0, plan.room - n), (0, 0))
    shared = {"x": np.pad(x_SNP, spare), "y": np.pad(labels_MNO, spare)}
    params, losses = _train(plan, member_arrays(members), shared, fed)
    last = max(1, round(_LAST * plan.steps))
    return params, mean(np.asarray(losses)[:, -last:], 1)


@functools.partial(jax.jit, static_argnums=0)
def _train(plan: Plan, members, shared, fed) -> tuple[Params, jax.Array]:
    def transform(batch, member):
        size = len(batch["position"])
        place = {name: jnp.broadcast_to(member[name], (size,)) for name in ("stream", "place")}
        return batch | place | {"weights": jnp.ones(size), "groups": {}}

    def loss(shared, params, batch, key):
        x_BP = shared["x"][batch["stream"], batch["position"]]
        y_BO = shared["y"][batch["place"], batch["position"]]
        return plan.model.loss(params, {"x": x_BP, "y": y_BO}, key)

    population = Population(
        init=plan.model.init,
        loss=loss,
        transform=transform,
        optimizer=_optimizer(plan.steps),
        members=members,
        # The networks are small: one device, on which each takes its turn if it is a CPU.
        mesh=meshes.make_mesh(devices=jax.devices()[:1]),
        sharding=_REPLICATED,
        shared=shared,
    )
    states, metrics = population.steps(population.init(), fed)
    return states.params, metrics["loss"]


def _optimizer(steps: int) -> OptimizerConfig:
    return OptimizerConfig(
        steps=steps, warmup_fraction=0.05, final_fraction=0.0, b2=0.99, clip_norm=float("inf")
    )


def _positions(seeds: Sequence[int], n: int, steps: int, size: int) -> np.ndarray:
    """Places in the training set (T, S, B): every seed's set is gone through again and again."""
    epochs = -(-steps * size // n)

    def of_seed(seed):
        generator = host_generator(jax.random.key(seed), "batches")
        orders = [generator.permutation(n) for _ in range(epochs)]
        return np.concatenate(orders)[: steps * size].reshape(steps, size)

    return np.stack([of_seed(seed) for seed in seeds], 1).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def _scores(plan: Plan, params: Params, x_NP, y_NO) -> tuple[jax.Array, jax.Array]:
    def one(own):
        predicted_NO = plan.model.predict(own, x_NP)
        right_N = predicted_NO.argmax(1) == y_NO.argmax(1)
        return jnp.square(predicted_NO - y_NO).sum(1).mean(), right_N.mean()

    return jax.lax.map(one, params)


def scores(plan: Plan, params: Params, pictures: Pictures) -> tuple[list, list]:
    """Squared error summed over classes and accuracy on the test images, (M,) each."""
    x_NP, y_NO = jnp.asarray(pictures.test_NP), jnp.asarray(pictures.test_NO)
    return tuple(np.asarray(a, np.float64).tolist() for a in _scores(plan, params, x_NP, y_NO))
