"""Strong model collapse: what a share of synthetic data does to regression (arXiv 2410.04840).

Command:
    python experiments/collapse_theory.py --config=configs/collapse_theory.py:demo \
        --workdir=runs/collapse-demo

Cost: `demo` 1 to 2 minutes and `laptop` about 11 minutes on two busy cores.
Expected of `laptop`: of all simulated errors together 93 % (232 of 249) within 2 standard errors
of the theory at 100 repetitions; the report counts them figure by figure, and against the width
they are fewer (86 %). With a share p2 of synthetic data the error stops falling at p2^2 c^2
(c^2 = 1 in the figures: data as wrong as predicting 0), however many samples there are; trained
models agree with exact fits to 0.1 % but at the interpolation threshold. 100 repetitions do not
show a bias of a few per cent: for rounds with the same real data the line is of first order, and
in round 10 the mean of 1500 repetitions lies 4 to 6 % above it (p2 = 0.5 and 0.8).
"""

from ml_collections import ConfigDict

from lmnoise.config import preset


def laptop() -> ConfigDict:
    """The sizes of the published figures."""
    return ConfigDict(
        dict(
            seed=0,
            repetitions=100,
            scaling=dict(
                shares=(0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.5),
                counts=(50, 100, 160, 200, 250, 400, 1000, 4000),
                longest=300_000,  # n up to which the theory is drawn
                quality=1.0,  # c^2
                noise=0.1,
                dimension=200,
                penalty=1e-3,
                power=dict(dimension=300, decay=1.5, prior_decay=0.0, penalty=1e-5),
            ),
            widths=dict(
                dimension=600,
                n_real=400,
                n_synthetic=100,
                qualities=(0.0, 0.1, 0.5, 1.0),
                widths=(50, 100, 200, 300, 400, 500, 650, 1000, 2000),
                noise=0.1,
                penalty=1e-3,
            ),
            weights=dict(
                dimension=200,
                n=600,
                shares=(0.2, 0.5),
                qualities=(0.05, 0.2, 1.0),
                weights=(0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
                noise=0.5,
                penalty=1e-3,
            ),
            rounds=dict(
                dimension=30,
                n=1500,
                noise=0.5,
                start=1.0,  # error of the model that labels the first round
                shares=(0.5, 0.8),
                rounds=10,
                real_shares=(0.2, 0.3, 0.45, 0.618, 0.8, 0.95),
                relabelled_rounds=20,
            ),
            # Settings that are also trained with the project's own step.
            fit=dict(
                share=0.2,
                counts=(100, 200, 400, 1000),
                widths=(100, 500, 2000),
                steps=2000,
                adam_rate=1e-2,
                repetitions=20,
            ),
        )
    ).lock()


def demo() -> ConfigDict:
    """The same figures, smaller and with wider intervals."""
    config = laptop()
    config.repetitions = 50
    config.scaling.update(dict(dimension=100, shares=(0.0, 0.01, 0.1, 0.5)))
    config.scaling.counts = (50, 100, 130, 200, 1000)
    config.scaling.power.dimension = 150
    config.widths.update(dict(dimension=150, n_real=100, n_synthetic=25, qualities=(0.0, 1.0)))
    config.widths.widths = (15, 60, 125, 250, 500)
    config.weights.update(dict(dimension=100, n=300, shares=(0.5,), qualities=(0.2, 1.0)))
    config.weights.weights = (0.05, 0.2, 0.5, 0.8)
    config.rounds.update(dict(shares=(0.5,), real_shares=(0.3, 0.618, 0.9)))
    config.fit.update(dict(share=0.1, counts=(200,), widths=(500,), repetitions=10))
    return config


# Makes every preset run in seconds, for the tests.
SMALL = dict(
    repetitions=2,
    scaling=dict(shares=(0.0, 0.2), counts=(30,), dimension=20, power=dict(dimension=20)),
    widths=dict(dimension=12, n_real=8, n_synthetic=2, qualities=(0.0, 1.0), widths=(5, 20)),
    weights=dict(dimension=10, n=20, shares=(0.5,), qualities=(0.2,), weights=(0.1,)),
    rounds=dict(
        dimension=5, n=20, shares=(0.5,), rounds=2, real_shares=(0.618,), relabelled_rounds=2
    ),
    fit=dict(share=0.2, counts=(30,), widths=(20,), steps=3, repetitions=2),
)

PRESETS = {"demo": demo, "laptop": laptop}


def get_config(name: str = "demo") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
