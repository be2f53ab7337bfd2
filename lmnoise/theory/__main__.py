"""What synthetic data will cost, before any is made.

    python -m lmnoise.theory collapse --n_real=2000 --synthetic_share=0.2 --quality=0.3 \\
        --spectrum=powerlaw:1.5 --noise=0.5

The answer is that of a linear model in `dimension` features (Theorem 1 of arXiv 2410.04840): a
guide to what share of a data set may be synthetic, not a forecast for a network. What it needs to
know of the synthetic data is their quality c^2: by how much a model that is trained on synthetic
data alone, as many as one likes, misses the truth, in units of the signal's power.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.theory import collapse

ENDLESS = 1e24  # times as many samples
DIMENSION = 600
LARGEST = 20_000  # dimension that is answered in seconds
ALL = 0.999  # synthetic share that stands for any
# Mixes and penalties of one call; always as many, for JAX compiles anew for every shape.
ROWS, PENALTIES = 170, 48


class Answer(NamedTuple):
    """For N mixes: the errors, the penalties, and which of these end the range searched, (N,)."""

    errors: collapse.Errors
    penalty: np.ndarray
    at_bound: np.ndarray


class Setting:
    """Predictions for mixes of data, with the penalty that is asked for or the best one."""

    def __init__(self, arguments: argparse.Namespace):
        self.eigenvalues_D = spectrum(arguments.spectrum, arguments.dimension)
        # Signal and shift are spread over the eigenvectors as a random direction is.
        weights_D = np.ones_like(self.eigenvalues_D) / self.eigenvalues_D.sum()
        self.prior_D, self.shift_D = arguments.signal * weights_D, arguments.quality * weights_D
        self.signal, self.quality = arguments.signal, arguments.quality
        self.noise = arguments.noise
        noise = arguments.noise_synthetic
        self.noise_synthetic = self.noise if noise is None else noise
        self.penalty = arguments.penalty

    def error(self, n_real, n_synthetic) -> np.ndarray:
        """Squared errors of N <= ROWS mixes on real data, label noise not counted, (N,)."""
        return self.solve(n_real, n_synthetic).errors.total

    def solve(self, n_real, n_synthetic) -> Answer:
        """The errors of N <= ROWS mixes with their parts, and the penalties used."""
        n_N = np.broadcast_arrays(*(np.atleast_1d(np.float64(n)) for n in (n_real, n_synthetic)))
        if self.penalty is None:
            return self._best(*n_N)
        penalty_N = np.full(n_N[0].shape, self.penalty)
        errors_NP = self._errors(*n_N, penalty_N[:, None])
        errors = collapse.Errors(*(value_NP[:, 0] for value_NP in errors_NP))
        return Answer(errors, penalty_N, np.zeros(penalty_N.shape, bool))

    def _best(self, n_real_N, n_synthetic_N) -> Answer:
        """Three grids, each within the cells around the best point of the one before."""
        rows_N = np.arange(n_real_N.size)
        lowest_N, highest_N = low_N, high_N = self._range(n_real_N, n_synthetic_N)
        for _ in range(3):
            grid_NP = np.geomspace(low_N, high_N, PENALTIES - 1, axis=1)
            penalty_NP = np.insert(grid_NP, 0, 0.0, axis=1)
            errors_NP = self._errors(n_real_N, n_synthetic_N, penalty_NP)
            best_N = errors_NP.total[:, 1:].argmin(1)
            low_N = grid_NP[rows_N, np.maximum(best_N - 1, 0)]
            high_N = grid_NP[rows_N, np.minimum(best_N + 1, PENALTIES - 2)]
        best_N = errors_NP.total.argmin(1)
        errors = collapse.Errors(*(value_NP[rows_N, best_N] for value_NP in errors_NP))
        penalty_N = penalty_NP[rows_N, best_N]
        at_bound_N = (penalty_N < 1.001 * lowest_N) | (penalty_N > 0.999 * highest_N)
        # An endless penalty predicts 0 everywhere.
        zero = collapse.Errors(self.signal, 0.0, 0.0, self.signal, np.inf)
        worse_N = errors.total >= self.signal
        errors = (np.where(worse_N, *pair) for pair in zip(zero, errors, strict=True))
        penalty_N = np.where(worse_N, np.inf, penalty_N)
        return Answer(collapse.Errors(*errors), penalty_N, at_bound_N & (penalty_N > 0) & ~worse_N)

    def _range(self, n_real_N, n_synthetic_N) -> tuple[np.ndarray, np.ndarray]:
        """Penalties between which the best one lies, if it is neither 0 nor endless.

        For real data alone it is `noise^2 D / (n signal)`, as the mean eigenvalue is 1; a shift
        asks for more, at most about as many times the largest eigenvalue as it exceeds the signal.
        """
        n_N, signal = n_real_N + n_synthetic_N, max(self.signal, 1e-100)
        unit_N = self.eigenvalues_D.size / (n_N * signal)
        noise_N = (n_real_N * self.noise**2 + n_synthetic_N * self.noise_synthetic**2) / n_N
        power = self.signal + self.quality
        high_N = (noise_N + power) * unit_N + self.eigenvalues_D.max() * (1 + power / signal)
        return np.clip(1e-3 * noise_N * unit_N, 1e-16, 1e-6), np.clip(100 * high_N, 1.0, 1e100)

    def _errors(self, n_real_N, n_synthetic_N, penalty_NP) -> collapse.Errors:
        filled = np.minimum(np.arange(ROWS), n_real_N.size - 1)
        errors = collapse.ridge(
            self.eigenvalues_D,
            self.prior_D,
            self.shift_D,
            n_real=n_real_N[filled, None],
            n_synthetic=n_synthetic_N[filled, None],
            noise_real=self.noise,
            noise_synthetic=self.noise_synthetic,
            penalty=penalty_NP[filled],
        )
        return collapse.Errors(*(np.asarray(value)[: n_real_N.size] for value in errors))


def spectrum(text: str, dimension: int | None) -> np.ndarray:
    """Eigenvalues with mean 1: `isotropic`, `powerlaw:EXPONENT`, or a text file of eigenvalues."""
    name, _, exponent = text.partition(":")
    if name == "isotropic" and not exponent:
        return np.ones(dimension or DIMENSION)
    if name == "powerlaw":
        try:
            return np.asarray(collapse.powerlaw(dimension or DIMENSION, float(exponent)))
        except ValueError as error:
            raise UserError(f"--spectrum={text}: give a number, as in powerlaw:1.5") from error
    if not Path(text).is_file():
        raise UserError(
            f"--spectrum={text} is neither isotropic, powerlaw:EXPONENT nor a file of eigenvalues"
        )
    if dimension is not None:
        raise UserError(
            f"--dimension={dimension} cannot go with --spectrum={text}, whose number of lines is "
            "the dimension: leave it out"
        )
    return read_spectrum(text)


def read_spectrum(file: str) -> np.ndarray:
    """Eigenvalues in a text file, one a line, scaled to mean 1."""
    try:
        lines = Path(file).read_text().splitlines()
        values_D = np.loadtxt(lines, ndmin=1) if lines else np.zeros(0)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"--spectrum={file}: {error}; write one eigenvalue a line") from error
    if values_D.ndim != 1 or not np.isfinite(values_D).all() or (values_D < 0).any():
        raise UserError(f"--spectrum={file}: eigenvalues must be one a line and not negative")
    if not (values_D > 0).any():
        raise UserError(f"--spectrum={file}: some eigenvalue must be above 0")
    if values_D.size > LARGEST:
        raise UserError(f"--spectrum={file}: give at most {LARGEST:,} eigenvalues")
    return values_D / values_D.mean()


def farthest(errors: Callable, allowed: float, start: float, end: float) -> float | None:
    """The point up to which, from `start` towards `end`, errors stay allowed; None if nowhere."""
    for _ in range(3):
        points = np.linspace(start, end, ROWS)
        over = np.flatnonzero(errors(points) > allowed * (1 + 1e-12))  # more than rounding
        if over.size == 0:
            return float(end)
        if over[0] == 0:
            return None
        start, end = points[over[0] - 1], points[over[0]]
    return float(start)


def real_alone(setting: Setting, error: float, most: float) -> float:
    """Fewest real samples from which on no more than this error is made; infinity if over most."""
    log_n = farthest(lambda log_n: setting.error(np.exp(log_n), 0.0), error, np.log(most), 0.0)
    return np.inf if log_n is None else float(np.exp(log_n))


def largest_share(setting: Setting, n: float, limit: float, *, added: bool) -> float:
    """Largest share up to which the error stays within `limit` times that of n real samples.

    Args:
      added: synthetic samples come on top of the n real ones; else they take the place of some.
    """

    def errors(share):
        if added:
            return setting.error(n, n * share / (1 - share))
        return setting.error(n * (1 - share), n * share)

    share = farthest(errors, limit * setting.error(n, 0.0)[0], 0.0, ALL)
    return 1.0 if share == ALL else share or 0.0


def report(arguments: argparse.Namespace) -> str:
    """The calculator's answer as text."""
    setting = Setting(arguments)
    share, n_real = arguments.synthetic_share, arguments.n_real
    n_synthetic = n_real * share / (1 - share)
    n = n_real + n_synthetic
    mixes = [(n_real, n_synthetic), (n_real, 0.0), (n, 0.0)]
    answer = setting.solve(*np.array([*mixes, (ENDLESS * n_real, ENDLESS * n_synthetic)]).T)
    error, alone, all_real, endless = (float(total) for total in answer.errors.total)
    bias, variance, shift, _, _ = (f"{value[0]:.4g}" for value in answer.errors)
    floor = float(collapse.floor(share, arguments.quality))
    rows = [
        ("samples", f"{n_real:,.0f} real + {n_synthetic:,.0f} synthetic"),
        ("penalty", penalty_used(setting, answer)),
        ("predicted error", shown(error)),
        ("  bias + variance", f"{bias} + {variance}".replace("inf", "infinite")),
        ("  from synthetic data's shift", shift.replace("inf", "infinite")),
        ("floor, however many samples", f"{shown(endless)} (without penalty {floor:.4g})"),
        ("the real samples alone", shown(alone)),
        ("as many samples, all real", shown(all_real)),
        ("real samples with this error", samples_worth(setting, error, n)),
    ]
    for added, base, base_error in ((True, n_real, alone), (False, n, all_real)):
        text = "no answer: without synthetic data the error is infinite"
        if np.isfinite(base_error):
            largest = largest_share(setting, base, 1 + arguments.cost / 100, added=added)
            text = "any share" if largest == 1 else f"{largest:.1%}"
            text += " added to the real samples" if added else " in place of real ones"
        rows.append((f"share that costs < {arguments.cost:g} %", text))
    lines = [f"{name:<30}{value}" for name, value in rows]
    return "\n".join([*lines, verdict(error, alone)])


def shown(error: float) -> str:
    return f"{error:.4g}" if np.isfinite(error) else "infinite (interpolation threshold)"


def penalty_used(setting: Setting, answer: Answer) -> str:
    penalty = answer.penalty[0]
    if setting.penalty is not None:
        return f"{penalty:.3g} (as given)"
    if np.isinf(penalty):
        return "infinite (the best: nothing beats predicting 0)"
    if answer.at_bound[0]:
        return f"{penalty:.3g} (the best so far: the search ended at its bound)"
    return f"{penalty:.3g} (the best)"


def samples_worth(setting: Setting, error: float, n: float) -> str:
    if not np.isfinite(error):
        return "no answer: the error is infinite"
    worth = real_alone(setting, error, max(1e9, 1e3 * n))
    return f"{worth:,.0f}" if np.isfinite(worth) else "none"


def verdict(error: float, alone: float) -> str:
    """Whether synthetic data help, as a sentence."""
    if np.isinf(error) and np.isinf(alone):
        return "No verdict: the error is infinite with and without synthetic data."
    if np.isinf(error):
        return "Here synthetic data hurt: without them the error is finite."
    if np.isinf(alone):
        return "Here synthetic data help: without them the error is infinite."
    if alone == 0:
        if error == 0:
            return "Here synthetic data change nothing: without them the error is 0 too."
        return "Here synthetic data hurt: without them the error is 0."
    gain = error / alone - 1
    word = "help" if gain < -5e-4 else "hurt" if gain > 5e-4 else "change nothing"
    return f"Here synthetic data {word}: {gain:+z.1%} beside the real samples alone."


def number(low: float, high: float, *, whole: bool = False):
    """A parser of numbers for argparse: low <= number <= high."""

    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    parse.__name__ = "integer" if whole else "number"
    return parse


def main() -> None:
    """Reads the command line and prints the answer."""
    parser = argparse.ArgumentParser("python -m lmnoise.theory", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("collapse", help="error of a model on real and synthetic data")
    add = command.add_argument
    add("--n_real", type=number(1, 1e12), required=True, help="real samples")
    add(
        "--synthetic_share",
        type=number(0, 0.9999),
        required=True,
        help="of all samples that are synthetic, which come on top of the real ones",
    )
    add(
        "--quality",
        type=number(0, 1e6),
        required=True,
        help="c^2: error of a model trained on endless synthetic data; 0 is perfect",
    )
    add("--spectrum", default="isotropic", help="isotropic, powerlaw:EXPONENT, or a text file")
    add(
        "--dimension",
        type=number(1, LARGEST, whole=True),
        help=f"features; default {DIMENSION}; not with a file, which gives it",
    )
    add("--signal", type=number(0, 1e12), default=1.0, help="power of the noiseless labels")
    add("--noise", type=number(0, 1e6), default=0.5, help="standard deviation of label noise")
    add("--noise_synthetic", type=number(0, 1e6), help="of the synthetic labels; as --noise")
    add("--penalty", type=number(0, 1e12), help="of ridge; by default the best one")
    add("--cost", type=number(0, 1e6), default=5.0, help="per cent; default 5")
    print(report(parser.parse_args()))


if __name__ == "__main__":
    cli.run(main)
