"""Strong model collapse (arXiv 2410.04840): closed forms, their simulation, the best setting."""

from lmnoise.theory.collapse.formulas import Errors, diagonals, random_projection, ridge
from lmnoise.theory.collapse.monte_carlo import Parts, Simulated, simulate

__all__ = [
    "Errors",
    "Parts",
    "Simulated",
    "diagonals",
    "random_projection",
    "ridge",
    "simulate",
]
