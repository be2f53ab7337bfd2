"""Strong model collapse (arXiv 2410.04840): closed forms, their simulation, the best setting."""

from lmnoise.theory.collapse.formulas import Errors, random_projection, ridge
from lmnoise.theory.collapse.mixing import (
    best_fraction,
    floor,
    isotropic,
    mixing_weights,
    powerlaw,
    weighted_mixing,
)
from lmnoise.theory.collapse.monte_carlo import Parts, Simulated, simulate
from lmnoise.theory.collapse.optimum import Optimum, optimal
from lmnoise.theory.collapse.rotation import diagonals
from lmnoise.theory.collapse.rounds import (
    best_real_share,
    fresh_rounds,
    generation_factor,
    relabelling_limit,
    same_data_rounds,
)
from lmnoise.theory.collapse.simulated_rounds import (
    Rounds,
    simulate_generations,
    simulate_rounds,
)

__all__ = [
    "Errors",
    "Optimum",
    "Parts",
    "Rounds",
    "Simulated",
    "best_fraction",
    "best_real_share",
    "diagonals",
    "floor",
    "fresh_rounds",
    "generation_factor",
    "isotropic",
    "mixing_weights",
    "optimal",
    "powerlaw",
    "random_projection",
    "relabelling_limit",
    "ridge",
    "same_data_rounds",
    "simulate",
    "simulate_generations",
    "simulate_rounds",
    "weighted_mixing",
]
