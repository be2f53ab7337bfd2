"""What synthetic data will cost, before any is made.

    python -m lmnoise.theory collapse --n_real=2000 --synthetic_share=0.2 --quality=0.3 \\
        --spectrum=powerlaw:1.5 --noise=0.5

The answer is that of a linear model in `dimension` features (Theorem 1 of arXiv 2410.04840): a
guide to what share of a data set may be synthetic, not a forecast for a network. What it needs to
know of the synthetic data is their quality c^2: by how much a model that is trained on synthetic
data alone, as many as one likes, misses the truth, in units of the signal's power.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from lmnoise import cli
from lmnoise.errors import UserError
from lmnoise.theory import collapse

ENDLESS = 1e12  # times as many samples
PENALTIES = np.geomspace(1e-8, 1e4, 2000)


class Setting:
    """Prediction for one data set, with the penalty that is asked for or the best one."""

    def __init__(self, arguments: argparse.Namespace):
        self.eigenvalues_D = spectrum(arguments.spectrum, arguments.dimension)
        # Signal and shift are spread over the eigenvectors as a random direction is.
        weights_D = np.ones_like(self.eigenvalues_D) / self.eigenvalues_D.sum()
        self.prior_D, self.shift_D = arguments.signal * weights_D, arguments.quality * weights_D
        self.noise = arguments.noise
        noise = arguments.noise_synthetic
        self.noise_synthetic = self.noise if noise is None else noise
        self.penalty = arguments.penalty

    def error(self, n_real: float, n_synthetic: float) -> float:
        """Squared error on real data, label noise not counted."""
        penalties = PENALTIES if self.penalty is None else self.penalty
        return float(np.min(self._errors(n_real, n_synthetic, penalties).total))

    def parts(self, n_real: float, n_synthetic: float) -> tuple[collapse.Errors, float]:
        """The error with its parts, and the penalty used."""
        penalty = self.penalty
        if penalty is None:
            errors = self._errors(n_real, n_synthetic, PENALTIES).total
            penalty = float(PENALTIES[np.argmin(errors)])
        return self._errors(n_real, n_synthetic, penalty), penalty

    def _errors(self, n_real, n_synthetic, penalty) -> collapse.Errors:
        return collapse.ridge(
            self.eigenvalues_D,
            self.prior_D,
            self.shift_D,
            n_real=n_real,
            n_synthetic=n_synthetic,
            noise_real=self.noise,
            noise_synthetic=self.noise_synthetic,
            penalty=penalty,
        )


def spectrum(text: str, dimension: int) -> np.ndarray:
    """Eigenvalues with mean 1: `isotropic`, `powerlaw:EXPONENT`, or a text file of eigenvalues."""
    name, _, exponent = text.partition(":")
    if name == "isotropic" and not exponent:
        return np.ones(dimension)
    if name == "powerlaw":
        try:
            return collapse.powerlaw(dimension, float(exponent))
        except ValueError as error:
            raise UserError(f"--spectrum={text}: give a number, as in powerlaw:1.5") from error
    if not Path(text).is_file():
        raise UserError(
            f"--spectrum={text} is neither isotropic, powerlaw:EXPONENT nor a file of eigenvalues"
        )
    try:
        values_D = np.loadtxt(text, ndmin=1)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"--spectrum={text}: {error}; write one eigenvalue a line") from error
    if values_D.ndim != 1 or not np.isfinite(values_D).all() or values_D.min() < 0:
        raise UserError(f"--spectrum={text}: eigenvalues must be one a line and not negative")
    if values_D.max() == 0:
        raise UserError(f"--spectrum={text}: some eigenvalue must be above 0")
    return values_D / values_D.mean()


def real_alone(setting: Setting, error: float) -> float:
    """Fewest real samples from which on no more than this error is made; infinity if none."""

    def excess(log_n):
        return setting.error(np.exp(log_n), 0.0) - error

    log_n = np.log(np.geomspace(1.0, 1e9, 200))
    over = np.flatnonzero(np.array([excess(x) for x in log_n]) > 0)
    if over.size == 0:
        return 1.0
    if over[-1] == log_n.size - 1:
        return np.inf
    return float(np.exp(brentq(excess, log_n[over[-1]], log_n[over[-1] + 1])))


def largest_share(setting: Setting, n: float, limit: float, *, added: bool) -> float:
    """Largest share up to which the error stays within `limit` times that of n real samples.

    Args:
      added: synthetic samples come on top of the n real ones; else they take the place of some.
    """

    def excess(share):
        if added:
            return setting.error(n, n * share / (1 - share)) - allowed
        return setting.error(n * (1 - share), n * share) - allowed

    allowed = limit * setting.error(n, 0.0)
    shares = np.linspace(0.0, 0.999, 200)
    values = np.array([excess(share) for share in shares])
    over = np.flatnonzero(values > 0)
    if over.size == 0:
        return 1.0
    if over[0] == 0:
        return 0.0
    return float(brentq(excess, shares[over[0] - 1], shares[over[0]]))


def report(arguments: argparse.Namespace) -> str:
    """The calculator's answer as text."""
    setting = Setting(arguments)
    share, n_real = arguments.synthetic_share, arguments.n_real
    n_synthetic = n_real * share / (1 - share)
    n, limit = n_real + n_synthetic, 1 + arguments.cost / 100
    errors, penalty = setting.parts(n_real, n_synthetic)
    alone, all_real = setting.error(n_real, 0.0), setting.error(n, 0.0)
    endless = setting.error(ENDLESS * n_real, ENDLESS * n_synthetic)
    floor = float(collapse.floor(share, arguments.quality))
    worth = real_alone(setting, float(errors.total))
    chosen = "the best" if setting.penalty is None else "as given"
    rows = [
        ("samples", f"{n_real:,.0f} real + {n_synthetic:,.0f} synthetic"),
        ("penalty", f"{penalty:.3g} ({chosen})"),
        ("predicted error", f"{errors.total:.4g}"),
        ("  bias + variance", f"{errors.bias:.4g} + {errors.variance:.4g}"),
        ("  from synthetic data's shift", f"{errors.collapse:.4g}"),
        ("floor, however many samples", f"{endless:.4g} (without penalty {floor:.4g})"),
        ("the real samples alone", f"{alone:.4g}"),
        ("as many samples, all real", f"{all_real:.4g}"),
        ("real samples with this error", f"{worth:,.0f}" if np.isfinite(worth) else "none"),
    ]
    for added, base, where in (
        (True, n_real, "added to the real samples"),
        (False, n, "in place of real ones"),
    ):
        largest = largest_share(setting, base, limit, added=added)
        text = "any share" if largest == 1 else f"{largest:.1%}"
        rows.append((f"share that costs < {arguments.cost:g} %", f"{text} {where}"))
    gain = float(errors.total) / alone - 1
    verdict = "help" if gain < -5e-4 else "hurt" if gain > 5e-4 else "change nothing"
    lines = [f"{name:<30}{value}" for name, value in rows]
    lines.append(f"Here synthetic data {verdict}: {gain:+.1%} beside the real samples alone.")
    return "\n".join(lines)


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
    add("--dimension", type=number(1, 1e5, whole=True), default=600, help="features; default 600")
    add("--signal", type=number(0, 1e12), default=1.0, help="power of the noiseless labels")
    add("--noise", type=number(0, 1e6), default=0.5, help="standard deviation of label noise")
    add("--noise_synthetic", type=number(0, 1e6), help="of the synthetic labels; as --noise")
    add("--penalty", type=number(0, 1e12), help="of ridge; by default the best one")
    add("--cost", type=number(0, 1e6), default=5.0, help="per cent; default 5")
    print(report(parser.parse_args()))


if __name__ == "__main__":
    cli.run(main)
