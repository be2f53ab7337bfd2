"""Fitted power laws as a report writes them."""

import numpy as np

from lmnoise.evaluation.powerlaw import Interval, PowerLaw
from lmnoise.report import Estimate


def estimates(interval: Interval) -> list[Estimate]:
    """The numbers of an interval, () or (P,), one after the other."""
    pairs = zip(np.atleast_1d(interval.value), np.atleast_1d(interval.standard_error), strict=True)
    return [Estimate(float(value), float(error), interval.n) for value, error in pairs]


def at_end(law: PowerLaw) -> list[str]:
    """What of each curve (P,) is at an end of its range: "exponent", "floor", or "" for neither."""
    ends = zip(law.at_edge, law.floor == 0, strict=True)
    return ["exponent" if edge else "floor" if none else "" for edge, none in ends]
