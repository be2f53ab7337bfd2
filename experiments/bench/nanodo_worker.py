"""A contender: the model and training step of google-deepmind/nanodo, from a copy the user has.

Started by train.py with our own interpreter. Model, loss, optimizer, metrics and `Trainer` are
the copy's own; what its data reading and logging import is stood in for, since neither runs here.
"""

import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from lmnoise_worker import device_facts, device_memory, first_steps
from ml_collections import ConfigDict
from protocol import Refused, fingerprint, serve

# Imported by nanodo's data.py and train.py for tokenizing, reading corpora and writing metrics.
NOT_RUN = (
    "clu",
    "clu.metric_writers",
    "clu.periodic_actions",
    "sentencepiece",
    "tensorflow_datasets",
)


class Nanodo:
    """Its `Trainer` as its loop drives it: a step ahead of the metrics that are read."""

    def __init__(self, spec):
        shape, source = spec["shape"], Path(spec["source"])
        train, model_factory = _modules(source)
        config = _config(spec)
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
        model, loss = model_factory.get_model_and_loss(config, shape["vocab_size"])
        shardings, state = train._init_train_state(config, model, jax.random.PRNGKey(0), mesh)
        self.trainer = train.Trainer(config, state, mesh, shardings, loss)
        tokens_T = np.fromfile(spec["tokens"], np.int32)
        tokens_PBT = tokens_T.reshape(-1, shape["batch"], shape["length"] + 1)
        # It predicts within the S tokens it is given, with weight 0 on the last position.
        self.tokens_PBS = np.ascontiguousarray(tokens_PBT[..., :-1])
        self.step = 0
        self.facts = device_facts() | {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "versions": {"nanodo model.py": fingerprint(source / "nanodo" / "model.py")},
        }

    @first_steps
    def advance(self, steps):
        pending = None
        for _ in range(steps):
            tokens_BS = self.tokens_PBS[self.step % len(self.tokens_PBS)]
            metrics = self.trainer.do_step(self.step, tokens_BS)
            self.step += 1
            jax.device_get(pending)
            pending = metrics
        jax.block_until_ready(self.trainer.state)
        return float(jax.device_get(pending)["train_loss"])

    def memory(self):
        return device_memory()


def _modules(source):
    """Its train.py and model_factory.py."""
    sys.path.insert(0, str(source))
    sys.modules |= {name: mock.MagicMock() for name in NOT_RUN}
    try:
        from nanodo import model_factory, train
    except (ImportError, AttributeError) as error:
        raise Refused(f"{source} is no nanodo that runs here ({error})") from error
    return train, model_factory


def _config(spec):
    """Its config at our shape, optimizer as the other contenders', statistics by layer off."""
    shape, rate = spec["shape"], spec["learning_rate"]
    model = dict(
        D=shape["width"],
        H=shape["heads"],
        L=shape["length"],
        N=shape["layers"],
        F=4 * shape["width"],
        dtype=spec["dtype"],
        fsdp_enabled=True,
        remat=False,
    )
    optimizer = dict(
        optimizer="adamw",
        num_train_steps=1_000_000,
        init_learning_rate=rate,
        peak_learning_rate=rate,
        warmup_steps=1,
        decay_type="constant_without_warmup",
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        weight_decay_exclusion_names=("scale",),
        clip_by_global_norm=1.0,
    )
    return ConfigDict(
        dict(batch_size=shape["batch"], model=model, opt=optimizer, log_internal_metrics=False)
    )


if __name__ == "__main__":
    serve(Nanodo)
