"""Over-training of a two-layer linear network: longer pre-training, more fragile (2503.19206).

Command:
    python experiments/overtraining_theory.py --config=configs/overtraining_theory.py:demo \\
        --workdir=runs/overtraining-demo

Cost: `demo` about 25 seconds and `laptop` about a minute on two busy cores.
Expected of `laptop`: without noise the loss falls for as long as training goes on; after noise of
standard deviation 0.05, 0.1, 0.15, 0.2 and 0.25 it turns up at t = 24.4, 9.7, 4.6, 2.8 and 1.9,
and ends 1, 10, 22, 30 and 32 % above its lowest. All perturbed networks lie within 4 standard
errors of the closed forms, about 95 % within 2; halving the step halves the deviation of training
from the gradient flow (1.1 % at 2^-10, 0.07 % at 2^-14). Weight decay g^2 d takes 4 to 27 % off
the loss after noise; decay towards the pre-trained weights forgets up to 12 % less than early
stopping at the same gain.
"""

from ml_collections import ConfigDict

from lmnoise.config import preset


def laptop() -> ConfigDict:
    """32 modes, steps so small that training is the flow within the error bars."""
    return ConfigDict(
        dict(
            seed=0,
            draws=256,  # of the noise, for every point
            task=dict(
                dimension=32,  # d
                largest=8.0,  # singular value i is largest * i^-decay
                decay=1.0,
                start=1e-6,  # strength of every mode at time 0
            ),
            pretraining=dict(
                first=0.6,  # times of the first and the last checkpoint
                last=40.0,
                checkpoints=20,
                rate=2.0**-14,
                coarser=(2.0**-10, 2.0**-11, 2.0**-12, 2.0**-13),
                scales=(0.05, 0.1, 0.15, 0.2, 0.25),  # g
            ),
            cure=dict(
                scales=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
                last=400.0,
                rate=2.0**-7,
            ),
            second=dict(
                shared=8,  # modes that are the same in both tasks
                factor=3.0,  # of the other singular values
                lengths=(0.25, 0.5, 1.0, 2.0),
                decays=(0.0, 0.3, 1.0, 3.0, 10.0),
                frontier_lengths=(0.125, 0.25, 0.5, 1.0, 2.0, 8.0),
                rate=2.0**-12,
            ),
        )
    ).lock()


def demo() -> ConfigDict:
    """Half the modes and longer steps: some points lie visibly off the lines."""
    config = laptop()
    config.draws = 128
    config.task.dimension = 16
    config.pretraining.update(dict(last=25.0, checkpoints=10, rate=2.0**-11))
    config.pretraining.coarser = (2.0**-8, 2.0**-9, 2.0**-10)
    config.second.update(dict(shared=4, rate=2.0**-10))
    return config


# Makes every preset run in seconds, for the tests.
SMALL = dict(
    draws=4,
    task=dict(dimension=4),
    pretraining=dict(
        last=3.0, checkpoints=3, rate=2.0**-6, coarser=(2.0**-5,), scales=(0.15, 0.25)
    ),
    cure=dict(scales=(0.2,), last=4.0, rate=2.0**-6),
    second=dict(
        shared=2,
        lengths=(0.25, 0.5),
        decays=(0.0, 1.0),
        frontier_lengths=(0.25, 0.5),
        rate=2.0**-6,
    ),
)

PRESETS = {"demo": demo, "laptop": laptop}


def get_config(name: str = "demo") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
