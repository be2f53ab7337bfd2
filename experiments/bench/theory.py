"""Benchmark: closed forms and their simulation, beside SciPy and NumPy doing the same work.

    python experiments/bench/theory.py --out=runs/bench-theory

Fixed points a second on a grid of settings, against a loop of SciPy's brentq over the same
equation; and repetitions of the Monte Carlo a second, against NumPy. All contenders take turns,
round after round, in one process, so that a machine that drifts drifts for all of them. What runs
with JAX runs on the accelerator, if there is one.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import flags
from protocol import busy_seconds
from scipy.optimize import brentq
from tqdm import tqdm

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.report import Table, provenance, write_csv, write_report
from lmnoise.theory import collapse

SEED = 0
NOISE = dict(noise_real=0.3, noise_synthetic=0.5)
N_REAL, N_SYNTHETIC, PENALTY = 400, 100, 0.1  # of the Monte Carlo


@dataclasses.dataclass(frozen=True)
class Contender:
    """`run()` does `count` units of work, and returns only when they are done."""

    name: str
    unit: str
    base: str
    count: int
    run: Callable[[], np.ndarray]


def grid(settings: int, dimension: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """A power-law spectrum, random settings on both sides of the threshold, and widths."""
    rng = np.random.default_rng(SEED)
    n = rng.integers(dimension // 12, 5 * dimension, settings).astype(float)
    share = rng.uniform(0, 1, settings)
    scalars = dict(
        n_real=n * (1 - share),
        n_synthetic=n * share,
        penalty=10 ** rng.uniform(-6, 1, settings),
    )
    widths = 10 ** rng.uniform(1, np.log10(5 * dimension), settings)
    return collapse.powerlaw(dimension, 1.5), scalars, widths


def scipy_ridge(eigenvalues_D: np.ndarray, n: float, penalty: float) -> float:
    """The effective ridge by brentq, in the bracket that the equation gives."""

    def equation(kappa):
        return kappa - kappa * (eigenvalues_D / (eigenvalues_D + kappa)).sum() / n - penalty

    return brentq(equation, penalty, penalty + eigenvalues_D.sum() / n, xtol=1e-15, rtol=1e-14)


def scipy_theta(eigenvalues_D: np.ndarray, n: float, penalty: float, width: float) -> float:
    """The effective ridge of random projections by brentq, where both factors are positive."""

    def degrees(theta):
        return (eigenvalues_D / (eigenvalues_D + theta)).sum()

    def equation(theta):
        df1 = degrees(theta)
        return theta * (1 - df1 / width) * (1 - df1 / n) - level

    level, smallest = penalty * eigenvalues_D.size / width, min(n, width)
    high = level + eigenvalues_D.sum() * (1 / n + 1 / width)
    low = 0.0
    if smallest < eigenvalues_D.size:
        low = brentq(lambda t: degrees(t) - smallest, 0.0, high, xtol=1e-15, rtol=1e-14)
    return brentq(equation, low, high, xtol=1e-15, rtol=1e-14)


def scipy_theorem_1(eigenvalues_D, n_real, n_synthetic, penalty) -> float:
    """The total error of Theorem 1, as it is printed, with brentq."""
    n, size = n_real + n_synthetic, eigenvalues_D.size
    p1, p2 = n_real / n, n_synthetic / n
    kappa = scipy_ridge(eigenvalues_D, n, penalty)
    weight_D = eigenvalues_D / (eigenvalues_D + kappa) ** 2 / size
    df2 = ((eigenvalues_D / (eigenvalues_D + kappa)) ** 2).sum()
    u = df2 / n / (1 - df2 / n)
    noise = p1 * NOISE["noise_real"] ** 2 + p2 * NOISE["noise_synthetic"] ** 2
    moved = (weight_D * (eigenvalues_D**2 + u * kappa**2)).sum()
    zeta = p2**2 * moved + p1 * p2 * u * eigenvalues_D.sum() / size
    return (1 + u) * kappa**2 * weight_D.sum() + noise * u + zeta


def scipy_theorem_2(eigenvalues_D, n_real, n_synthetic, penalty, width) -> float:
    """The total error of Theorem 2, with brentq and the closed form of what follows from it."""
    n, size = n_real + n_synthetic, eigenvalues_D.size
    p1, p2 = n_real / n, n_synthetic / n
    theta = scipy_theta(eigenvalues_D, n, penalty, width)
    kept_D = eigenvalues_D / (eigenvalues_D + theta)
    df1, df2 = kept_D.sum(), (kept_D**2).sum()
    second = df2 + (df1 - df2) ** 2 / (width - df2)
    u = second / (n - second)
    leak = (1 + u) * theta * (df1 - df2) / (width - df2)
    weight_D = eigenvalues_D / (eigenvalues_D + theta) ** 2 / size
    noise = p1 * NOISE["noise_real"] ** 2 + p2 * NOISE["noise_synthetic"] ** 2
    moved = (weight_D * (eigenvalues_D**2 + u * theta**2 + leak * eigenvalues_D)).sum()
    zeta = p2**2 * moved + p1 * p2 * u * eigenvalues_D.sum() / size
    return (weight_D * ((1 + u) * theta**2 + leak * eigenvalues_D)).sum() + noise * u + zeta


def solvers(settings: int, loop: int, dimension: int, cores: int) -> list[Contender]:
    """The theorems as a user calls them, and the fixed points alone; all of them on all cores."""
    eigenvalues_D, scalars, widths = grid(settings, dimension)
    prior_D = np.ones(dimension) / dimension
    columns = [scalars[name][:loop] for name in ("n_real", "n_synthetic", "penalty")]
    points = [columns[0] + columns[1], columns[2]]

    def theorem_1(scalars):
        return collapse.ridge(eigenvalues_D, prior_D, prior_D, **scalars, **NOISE)

    def theorem_2(scalars):
        return collapse.random_projection(eigenvalues_D, prior_D, prior_D, **scalars, **NOISE)

    def fixed_points(function, scalars):
        """The fixed points alone: parts of the grid in a thread a core, as `ridge` itself does."""
        with jax.enable_x64(True):
            compiled = jax.jit(lambda s: function(s).effective_ridge)
        size = -(-settings // cores)
        parts = [
            {name: values[start : start + size] for name, values in scalars.items()}
            for start in range(0, settings, size)
        ]

        def solve(part):
            with jax.enable_x64(True):
                return np.asarray(compiled(part))

        pool = ThreadPoolExecutor(cores)
        return lambda: np.concatenate(list(pool.map(solve, parts)))

    def looped(function, *columns):
        rows = list(zip(*columns, strict=True))
        return lambda: np.array([function(eigenvalues_D, *row) for row in rows])

    def rivals(what, unit, loop_run, own_run) -> list[Contender]:
        peer = f"{what}, SciPy"
        return [
            Contender(peer, unit, peer, loop, loop_run),
            Contender(f"{what}, lmnoise", unit, peer, settings, own_run),
        ]

    wide, few = scalars | {"width": widths}, widths[:loop]
    return [
        *rivals(
            "errors of Theorem 1",
            "errors",
            looped(scipy_theorem_1, *columns),
            lambda: theorem_1(scalars).total,
        ),
        *rivals(
            "errors of Theorem 2",
            "errors",
            looped(scipy_theorem_2, *columns, few),
            lambda: theorem_2(wide).total,
        ),
        *rivals(
            "fixed points of Theorem 1",
            "fixed points",
            looped(scipy_ridge, *points),
            fixed_points(theorem_1, scalars),
        ),
        *rivals(
            "fixed points of Theorem 2",
            "fixed points",
            looped(scipy_theta, *points, few),
            fixed_points(theorem_2, wide),
        ),
    ]


def numpy_repetitions(eigenvalues_D: np.ndarray, repetitions: int) -> np.ndarray:
    """The Monte Carlo of plain ridge in NumPy: total error and its parts, (repetitions, 4)."""
    size, n = eigenvalues_D.size, N_REAL + N_SYNTHETIC
    root_D, errors = np.sqrt(eigenvalues_D), []
    deviations_N = np.repeat([NOISE["noise_real"], NOISE["noise_synthetic"]], [N_REAL, N_SYNTHETIC])
    for number in range(repetitions):
        rng = np.random.default_rng((SEED, number))
        x_ND = rng.normal(size=(n, size)) * root_D
        truth_D, shift_D = rng.normal(size=(2, size)) / np.sqrt(size)
        shifted_N = np.where(np.arange(n) >= N_REAL, x_ND @ shift_D, 0.0)
        labels_N3 = np.stack([x_ND @ truth_D, shifted_N, deviations_N * rng.normal(size=n)], 1)
        gram_NN = x_ND @ x_ND.T + n * PENALTY * np.eye(n)
        fitted_D3 = x_ND.T @ np.linalg.solve(gram_NN, labels_N3)
        fitted_D3[:, 0] -= truth_D
        parts_D4 = np.concatenate([fitted_D3, fitted_D3.sum(1, keepdims=True)], 1)
        errors.append(((parts_D4 * root_D[:, None]) ** 2).sum(0))
    return np.array(errors)


def simulations(repetitions: int, dimension: int) -> list[Contender]:
    eigenvalues_D = collapse.powerlaw(dimension, 1.5)
    prior_D = np.ones(dimension) / dimension

    def ours():
        run = collapse.simulate(
            jax.random.key(SEED),
            eigenvalues_D,
            prior_D,
            prior_D,
            n_real=N_REAL,
            n_synthetic=N_SYNTHETIC,
            penalty=PENALTY,
            repetitions=repetitions,
            **NOISE,
        )
        return run.mean.total

    unit, base = "repetitions", "Monte Carlo, NumPy"
    return [
        Contender(
            base, unit, base, repetitions, lambda: numpy_repetitions(eigenvalues_D, repetitions)
        ),
        Contender("Monte Carlo, lmnoise", unit, base, repetitions, ours),
    ]


def measure(contenders: list[Contender], rounds: int) -> tuple[np.ndarray, list, float]:
    """Seconds a turn (contenders, rounds), the last results, and the share of others' CPU time."""
    results = [c.run() for c in tqdm(contenders, desc="compile", unit="contender")]
    seconds = np.zeros((len(contenders), rounds))
    busy, cpu, start = busy_seconds(), time.process_time(), time.perf_counter()
    turns = [(number, i) for number in range(rounds) for i in range(len(contenders))]
    for number, i in tqdm(turns, desc="measure", unit="turn"):
        since = time.perf_counter()
        results[i] = contenders[i].run()
        seconds[i, number] = time.perf_counter() - since
    own, wall = time.process_time() - cpu, time.perf_counter() - start
    return seconds, results, max(0.0, busy_seconds() - busy - own) / wall


def speed_table(contenders: list[Contender], seconds: np.ndarray) -> Table:
    """Rates, medians over the rounds, and ratios to the peer's rate in the same round."""
    index = {contender.name: i for i, contender in enumerate(contenders)}
    counts = np.array([contender.count for contender in contenders])
    rates = counts[:, None] / seconds
    rows = []
    for i, contender in enumerate(contenders):
        ratio = rates[i] / rates[index[contender.base]]
        span = f"{np.median(ratio):.3g} ({ratio.min():.3g} to {ratio.max():.3g})"
        rows.append((contender.name, contender.count, contender.unit, np.median(rates[i]), span))
    header = ("contender", "at once", "unit", "a second", "times the peer (min to max)")
    return Table(header, rows, "Medians over the rounds; ratios are of the same round.")


def differences(contenders: list[Contender], results: list) -> str:
    """The largest relative difference between our numbers and SciPy's."""
    found = {c.name: result for c, result in zip(contenders, results, strict=True)}
    lines = []
    for peer, values in found.items():
        if peer.endswith(", SciPy"):
            work = peer.removesuffix(", SciPy")
            ours = next(r for name, r in found.items() if name.startswith(f"{work}, lmnoise"))
            gap = np.max(np.abs(ours[: len(values)] / values - 1))
            lines.append(f"- {work}: largest relative difference {gap:.1e}.")
    return "\n".join(lines)


def define_flags() -> None:
    flags.DEFINE_integer("settings", 100_000, "settings of the grid", lower_bound=1)
    flags.DEFINE_integer("loop", 10_000, "of these, how many SciPy solves a turn", lower_bound=1)
    flags.DEFINE_integer("dimension", 600, "eigenvalues", lower_bound=12)
    flags.DEFINE_integer("repetitions", 32, "of the Monte Carlo, a turn", lower_bound=2)
    flags.DEFINE_integer("rounds", 5, "turns of each contender", lower_bound=1)
    flags.DEFINE_string("out", "runs/bench-theory", "folder of the report")


def main() -> None:
    define_flags()
    values = configs.parse()
    if values.loop > values.settings:
        raise UserError(f"--loop={values.loop} is more than --settings={values.settings}")
    names = ("settings", "loop", "dimension", "repetitions", "rounds")
    config = {name: values[name].value for name in names}
    origin = provenance(config, [SEED])
    cores = origin["machine"]["cores"]
    contenders = solvers(values.settings, values.loop, values.dimension, cores)
    contenders += simulations(values.repetitions, values.dimension)
    seconds, results, others = measure(contenders, values.rounds)
    table = speed_table(contenders, seconds)
    folder = Path(values.out)
    write_csv(folder / "speed.csv", table)
    blocks = [
        table,
        differences(contenders, results),
        f"{values.dimension} eigenvalues i^-1.5, penalties 1e-6 to 10, samples from "
        f"{values.dimension // 12} to {5 * values.dimension}. The Monte Carlo draws, fits and "
        f"measures {N_REAL} real and {N_SYNTHETIC} synthetic samples in float64. Other processes "
        f"used {others:.2f} of the {cores} cores meanwhile"
        + ("." if others < 0.05 * cores else ", **so the machine was not quiet**."),
    ]
    write_report(folder, "Speed of the closed forms", blocks, origin, config)
    print(
        f"{table.markdown()}\n\n{differences(contenders, results)}\nreport: {folder / 'report.md'}"
    )


if __name__ == "__main__":
    cli.run(main)
