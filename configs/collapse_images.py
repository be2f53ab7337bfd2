"""Does a share of synthetic labels end the scaling of image models? (arXiv 2410.04840)

Command:
    python experiments/collapse_images.py --config=configs/collapse_images.py:laptop \
        --workdir=runs/collapse-images

Cost: `laptop` 20 minutes on two cores that others kept busy; stored points make a report in 15
seconds. `gpu`: not yet run.
Expected (see experiments/results/collapse-images-laptop): with random features the plateau shows
and grows with the share in all four cases, and Theorem 2 with the correlation of shift and real
labels has the rise of all synthetic labels at the largest n within 7 % (as printed it is up to
41 % too low); small shares cost more than p2^2 c^2. Trained networks on a weaker network's labels
alone stop at its error; flipped labels still let their error fall at the largest n, so that no
floor shows.
"""

from ml_collections import ConfigDict

from lmnoise.config import preset

_SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def laptop() -> ConfigDict:
    """Images of 14 x 14 pixels."""
    return ConfigDict(
        dict(
            images=("mnist", "fashion_mnist"),
            data_dir="data",
            pool=2,  # pixels a side of the squares that become one
            seeds=(0, 1, 2, 3, 4),  # of random features, and of what makes synthetic labels
            # The weaker network; its images are in no training set.
            teacher=dict(examples=2000, width=16, steps=600, batch_size=128, learning_rate=1e-2),
            # The best network, which stands for the real law where c^2 is measured.
            reference=dict(width=512, steps=6000, batch_size=256, learning_rate=5e-3),
            quality=0.2,  # c^2 of the flips
            theory=dict(features=2000, examples=30_000, seed=1000, longest=1_000_000),
            features=dict(
                samples=dict(
                    shares=_SHARES,
                    counts=(500, 1000, 2000, 4000, 8000, 16_000, 32_000),
                    width=1000,
                    penalty=1e-4,
                ),
                widths=dict(
                    shares=(0.0, 0.1, 0.5, 1.0),
                    widths=(50, 100, 200, 350, 500, 700, 1000, 1400, 2000),
                    n=500,
                    penalty=1e-5,
                ),
            ),
            networks=dict(
                seeds=(0, 1, 2),
                steps=2000,
                batch_size=128,
                learning_rate=1e-2,
                samples=dict(
                    shares=_SHARES, counts=(500, 1000, 2000, 4000, 8000, 16_000), width=256
                ),
                widths=dict(shares=(0.0, 0.1, 0.5, 1.0), widths=(8, 16, 32, 64, 256), n=2000),
            ),
        )
    ).lock()


def gpu() -> ConfigDict:
    """Images of 28 x 28 pixels, wider models, more seeds and steps."""
    config = laptop()
    config.pool = 1
    config.theory.update(dict(features=4000, examples=60_000))
    config.features.samples.width = 2000
    config.features.widths.update(dict(n=1000, widths=(100, 200, 400, 700, 1000, 1400, 2000, 4000)))
    config.networks.update(dict(seeds=(0, 1, 2, 3, 4), steps=10_000, learning_rate=5e-3))
    config.networks.samples.update(
        dict(width=1024, counts=(500, 1000, 2000, 4000, 8000, 16_000, 32_000))
    )
    config.networks.widths.widths = (16, 64, 256, 1024, 4096)
    return config


# Makes every preset run in seconds, for the tests, on images that come with scikit-learn.
SMALL = dict(
    images=("digits",),
    pool=1,
    seeds=(0, 1),
    teacher=dict(examples=60, width=4, steps=20, batch_size=16),
    reference=dict(width=16, steps=20, batch_size=32),
    theory=dict(features=60, examples=600, longest=5000),
    features=dict(
        samples=dict(shares=(0.0, 0.2, 1.0), counts=(60, 120, 240, 480), width=40),
        widths=dict(shares=(0.0, 0.2, 1.0), widths=(20, 60), n=40),
    ),
    networks=dict(
        seeds=(0, 1),
        steps=10,
        batch_size=16,
        samples=dict(shares=(0.0, 0.2, 1.0), counts=(60, 120, 240), width=8),
        widths=dict(shares=(0.0, 0.2, 1.0), widths=(4, 8), n=240),
    ),
)

PRESETS = {"laptop": laptop, "gpu": gpu}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
