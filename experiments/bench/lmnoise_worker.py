"""Contenders: this library's training and perturbation sweep, and a bare matrix product.

Started by train.py and perturb.py with their own interpreter.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from contenders import Shape
from protocol import Missing, resident_peak, serve

from lmnoise.data.corruption import Corruption
from lmnoise.errors import UserError, first_line
from lmnoise.evaluation import variants
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.perturb import Perturbation, sensitivity
from lmnoise.models.pretrained import read_folder
from lmnoise.models.transformer import LanguageModel
from lmnoise.training.hardware import peak_flops
from lmnoise.training.mesh import make_mesh, parameter_shardings
from lmnoise.training.optimizer import OptimizerConfig
from lmnoise.training.population import Population, mean, member_arrays

_OPTIMIZER = dict(
    steps=1_000_000,
    schedule="constant",
    warmup_fraction=0.0,
    # nanoGPT decays every matrix, the positions too.
    decay_table=((r"(.*/)?(bias|scale)", False), (r".*", True)),
)


def first_steps(advance):
    """Decorates `advance`: what the compiler or the device refuses at first is `Missing`."""

    @functools.wraps(advance)
    def checked(self, steps):
        if self.step:
            return advance(self, steps)
        try:
            return advance(self, steps)
        except jax.errors.JaxRuntimeError as error:
            raise Missing(f"it does not run here ({first_line(error)})") from error

    return checked


class Training:
    """Dispatches as `lmnoise.training.loop` does: staged ahead, metrics read one late."""

    def __init__(self, spec):
        shape, self.members = Shape(**spec["shape"]), spec["members"]
        try:
            model = LanguageModel(shape.model(**{"dtype": spec["dtype"]} | spec["model"]))
            optimizer = OptimizerConfig(**_OPTIMIZER | spec["optimizer"])
        except (ValueError, TypeError, UserError) as error:
            if not (spec["model"] or spec["optimizer"]):
                raise
            raise Missing(str(error)) from error
        self.population = Population(
            init=model.init,
            loss=model.loss,
            transform=Corruption(shape.vocab_size, kinds=("uniform",)),
            optimizer=optimizer,
            members=member_arrays([_member(m, spec) for m in range(self.members)]),
            mesh=make_mesh(devices=jax.devices()[:1]),
        )
        self.states = self.population.init()
        self.dispatch, self.step = spec["dispatch"], 0
        tokens_T = np.fromfile(spec["tokens"], np.int32)
        self.tokens_PBT = tokens_T.reshape(-1, shape.batch, shape.length + 1)
        self.facts = device_facts() | {"parameters": model.parameter_count, "versions": {}}

    @first_steps
    def advance(self, steps):
        pending, staged = None, self._stage()
        with jax.transfer_guard("disallow"):
            for done in range(self.dispatch, steps + 1, self.dispatch):
                self.states, metrics = self.population.steps(self.states, staged)
                self.step += self.dispatch
                staged = self._stage() if done < steps else None
                jax.device_get(pending)
                pending = metrics
            jax.block_until_ready(self.states)
            loss_M = mean(jax.device_get(pending)["loss"][:, -1:], 1)
        return float(loss_M[0])

    def _stage(self):
        batches = []
        for step in range(self.step, self.step + self.dispatch):
            # Every member reads a stream of its own, as runs of different seeds do.
            rows = [(step + member) % len(self.tokens_PBT) for member in range(self.members)]
            batches.append({"tokens": self.tokens_PBT[rows], "index": np.int32(step)})
        return self.population.stage(batches)

    def memory(self):
        return device_memory()


class Sweep:
    """Evaluations of a checkpoint under Gaussian noise, a seed at every strength first."""

    def __init__(self, spec):
        config, params = read_folder(Path(spec["model"]))
        config = dataclasses.replace(config, layers_as="unrolled")
        model, mesh = LanguageModel(config), make_mesh(devices=jax.devices()[:1])
        # The program takes the parameters from where they are, so the host keeps no copy.
        self.params = jax.device_put(params, parameter_shardings(mesh, params))
        tokens_KBT = np.fromfile(spec["tokens"], np.int32).reshape(spec["shape"])
        windows, rows, length = tokens_KBT.shape
        whole = {
            "document": np.zeros((rows, length), np.int32),
            "weights": np.ones((rows, length - 1), np.float32),
        }
        batches = [{"tokens": tokens_BT} | whole for tokens_BT in tokens_KBT]
        change = sensitivity(Perturbation("gaussian"), model.specs)
        self.evaluate = variants.evaluator(
            change, model.loss, [Source("tokens", batches, np.ones(1))], mesh=mesh
        )
        self.strengths, self.step = spec["strengths"], 0
        self.tokens = windows * rows * (length - 1)
        self.parameters = model.parameter_count

    @property
    def facts(self):
        """Asked for once the program is compiled, whose cost is measured apart."""
        unperturbed = float(self._losses([0.0], [0])[0])
        return device_facts() | {
            "parameters": self.parameters,
            "versions": {},
            "unperturbed": unperturbed,
        }

    def advance(self, steps):
        seeds, strengths = np.divmod(np.arange(self.step, self.step + steps), len(self.strengths))
        self.step += steps
        return float(self._losses(np.take(self.strengths, strengths), seeds)[-1])

    def _losses(self, strengths, seeds):
        """Nats per token of each member, (M,)."""
        members = {"strength": np.asarray(strengths, np.float32), "seed": np.asarray(seeds)}
        sums = self.evaluate(self.params, members)["tokens"]
        return sums.losses_MD.sum(1) / self.tokens

    def memory(self):
        return device_memory()


class Matmul:
    """Square products one after the other: what the compiler's own product reaches here."""

    def __init__(self, spec):
        size = 1024 if jax.default_backend() == "cpu" else 8192
        self.x = jnp.full((size, size), 1 / size, spec["dtype"])
        self.facts = device_facts() | {"flops_per_step": 2 * size**3, "versions": {}}

        def products(x, count):
            def multiply(_, y):
                return jnp.dot(x, y, preferred_element_type=jnp.float32).astype(x.dtype)

            return jax.lax.fori_loop(0, count, multiply, x)

        self.products = jax.jit(products)

    def advance(self, steps):
        return float(self.products(self.x, steps)[0, 0])

    def memory(self):
        return device_memory()


def _member(member, spec):
    return {
        "seed": member,
        "stream": member,
        "kind": 0,
        "rate": 0.0,
        "learning_rate": spec["learning_rate"],
        "weight_decay": 0.1,
    }


def device_facts():
    """The device and its data-sheet peak, for `facts`."""
    peak = peak_flops()
    return {
        "device": jax.devices()[0].device_kind,
        "peak_flops": peak and peak / jax.device_count(),
    }


def device_memory():
    """Peak in bytes."""
    if jax.default_backend() == "cpu":
        return resident_peak()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def build(spec):
    kinds = {"product": Matmul, "sweep": Sweep, "run": Training, "population": Training}
    return kinds[spec["kind"]](spec)


if __name__ == "__main__":
    serve(build)
