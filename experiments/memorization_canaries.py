"""Planted canaries: how often must a model see a secret before it gives it away?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from memorization_training import Bench, Rows, Training, in_groups
from ml_collections import ConfigDict

from lmnoise import keys
from lmnoise.errors import UserError
from lmnoise.evaluation import memorization
from lmnoise.evaluation.generation import generate
from lmnoise.evaluation.memorization import Share
from lmnoise.report import COLOURS, Figure, Table, savefig, style, write_csv
from lmnoise.training.mesh import put_whole
from lmnoise.training.population import Population

type Block = str | Table | Figure


class Canaries(NamedTuple):
    """n canaries of random tokens: their candidates (n, C, P + K), and which one is planted."""

    candidates_NCT: np.ndarray
    planted_N: np.ndarray

    @property
    def texts_NT(self) -> np.ndarray:
        return np.take_along_axis(self.candidates_NCT, self.planted_N[:, None, None], axis=1)[:, 0]


class Found(NamedTuple):
    """Of R seeds and n canaries: repetitions, exposures in bits, and whether it was given away."""

    repeats_RN: np.ndarray
    exposure_RN: np.ndarray
    verbatim_RN: np.ndarray


def canaries_of(bench: Bench, section: ConfigDict) -> Canaries:
    """The same for all seeds, which differ in how often they plant which."""
    subject, key = bench.subject, jax.random.key(section.draw)
    vocab = subject.tokenizer.vocab_size
    count = len(section.repeats) * section.each
    needed = count * section.prefix + section.symbols
    if needed > vocab:
        raise UserError(
            f"config.canaries needs {needed} different tokens, and there are {vocab}: plant fewer "
            "canaries or shorten their prefix"
        )
    ids = np.asarray(jax.random.permutation(keys.fold(key, "canaries"), vocab))
    symbols, ids = ids[: section.symbols], ids[section.symbols : needed]
    front = [] if subject.checkpoint.bos_id is None else [subject.checkpoint.bos_id]
    candidates_NCT = np.stack(
        [
            memorization.candidates([*front, *prefix], symbols, section.secret)
            for prefix in ids.reshape(count, section.prefix)
        ]
    )
    if candidates_NCT.shape[2] > subject.data.length + 1:
        raise UserError("config.canaries: prefix and secret are longer than config.data.length")
    chosen = keys.fold(key, "secrets")
    planted_N = jax.random.randint(chosen, (count,), 0, candidates_NCT.shape[1])
    return Canaries(candidates_NCT, np.asarray(planted_N))


def repeats_of(section: ConfigDict, seed: int) -> np.ndarray:
    """How often each canary is planted under a seed, (n,)."""
    key = keys.fold(jax.random.key(seed), "repeats")
    return np.asarray(
        jax.random.permutation(key, np.repeat(np.array(section.repeats), section.each))
    )


def windows_of(section: ConfigDict) -> int:
    """How many windows are trained on, a whole number of batches."""
    wanted = section.rows + sum(section.repeats) * section.each
    return -(-wanted // section.batch_size) * section.batch_size


def measure(bench: Bench, section: ConfigDict) -> Found:
    """Trains once over text with the canaries planted in it, and asks for them.

    Raises:
      Stopped: a signal came; what was trained is stored.
      UserError: canaries that do not fit the vocabulary or the windows.
    """
    canaries = canaries_of(bench, section)
    training = Training(
        steps=windows_of(section) // section.batch_size,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        schedule="cosine",
    )

    def work(seeds, own):
        rows = [_rows(bench, section, training, canaries, seed) for seed in seeds]
        order_K = np.arange(training.steps * training.batch_size)
        order_KB = order_K.reshape(training.steps, training.batch_size)
        return bench.tune(
            training,
            Rows(np.stack(rows), np.stack([order_KB] * len(seeds))),
            own,
            "canaries",
            lambda population, params: _asked(bench, section, canaries, population, params),
        )["after"]

    free = ("seeds", "together")
    identity = {k: v for k, v in section.to_dict().items() if k not in free}
    setting = {"what": "canaries", "section": identity}
    found = in_groups(bench, section.seeds, section.together, setting, work, "canaries")
    return Found(
        np.stack([repeats_of(section, seed) for seed in section.seeds]),
        np.concatenate([np.array(part["exposure"]) for part in found]),
        np.concatenate([np.array(part["verbatim"]) for part in found]),
    )


def _rows(
    bench: Bench, section: ConfigDict, training: Training, canaries: Canaries, seed: int
) -> np.ndarray:
    """Windows in the order of training, some of which begin with a canary."""
    total = training.steps * training.batch_size
    tokens_NT = bench.examples(section.corpus, total, seed, "canaries").copy()
    which = np.repeat(canaries.texts_NT, repeats_of(section, seed), axis=0)
    key = keys.fold(jax.random.key(seed), "places")
    places = np.asarray(jax.random.permutation(key, total))[: len(which)]
    tokens_NT[places, : which.shape[1]] = which
    return tokens_NT


def _asked(
    bench: Bench, section: ConfigDict, canaries: Canaries, population: Population, params: Any
) -> dict[str, Any]:
    """Exposures (M, n), and whether the greedy continuation of the prefix is the secret."""
    model, secret = bench.subject.model, section.secret
    losses = bench.token_losses(population)
    exposure_NM = []
    for candidates_CT, planted in zip(*canaries, strict=True):
        placed = put_whole(population.mesh, candidates_CT, batch_axis=None)
        of_members = np.asarray(losses(params, placed))[:, :, -secret:].sum(2)
        exposure_NM.append([memorization.exposure(own, planted) for own in of_members])
    texts = canaries.texts_NT.tolist()
    prompts = [text[:-secret] for text in texts]
    verbatim_MN = []
    for member in range(population.count):
        own = jax.tree.map(lambda leaf, m=member: leaf[m], params)
        said = generate(model, own, prompts, secret)
        verbatim_MN.append(
            [
                memorization.verbatim_rate([found], [text[-secret:]])
                for found, text in zip(said, texts, strict=True)
            ]
        )
    return {"exposure": np.transpose(exposure_NM).tolist(), "verbatim": verbatim_MN}


def by_repeats(found: Found, section: ConfigDict) -> dict[int, tuple[Share, Share]]:
    """By number of repetitions the mean exposure and the share given away, over all canaries."""
    largest = np.log2(section.symbols**section.secret)
    result = {}
    for repeats in np.unique(found.repeats_RN):
        own = found.repeats_RN == repeats
        away = found.verbatim_RN[own]
        result[int(repeats)] = (
            memorization.bounded_mean(found.exposure_RN[own], 0.0, largest),
            memorization.wilson(round(away.sum()), len(away)),
        )
    return result


def blocks(found: Found, section: ConfigDict, folder: Path) -> Sequence[Block]:
    """The chapter."""
    estimates = by_repeats(found, section)
    count = section.symbols**section.secret
    table = Table(
        ("repetitions", "exposure, bits", "from", "to", "given away verbatim", "share from",
         "share to"),
        [(repeats, *exposure, *away) for repeats, (exposure, away) in estimates.items()],
        f"{section.each} canaries a row and seed, {len(found.repeats_RN)} seeds. 95 % intervals "
        "over canaries, which are taken as independent, though those of one seed were learnt by "
        "one model: Student's t for the exposure, cut at 0 and the largest "
        f"({np.log2(count):.2f} bits; of no width where all canaries are there), Wilson's for the "
        "share.",
    )  # fmt: skip
    write_csv(folder / "canaries.csv", table)
    _draw(estimates, count, folder / "canaries.png")
    return [
        "## Canaries",
        f"A canary is {section.prefix} random tokens and a secret of {section.secret} out of "
        f"{section.symbols} symbols. Each stands at the beginning of so many of about "
        f"{section.rows} windows of `{section.corpus}`, which are seen once, at random places. "
        "Exposure is log2 of the number of possible secrets minus log2 of the rank of the true "
        f"one by its loss (arXiv 1802.08232), here exactly, over all {count} of them; verbatim "
        "means that the greedy continuation of the prefix is the secret. The seeds plant the same "
        "canaries, each another number of times.",
        Figure(
            folder / "canaries.png",
            "Exposure and verbatim rate against repetitions; bars: 95 % intervals over canaries; "
            "dotted: the mean exposure of a random rank; dashed: the largest exposure.",
        ),
        table,
    ]


def _draw(estimates: dict[int, tuple[Share, Share]], count: int, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(8, 3.4))
        axes = fig.subplots(1, 2)
        labels = ("exposure, bits", "share given away verbatim")
        for ax, found, label in zip(
            axes, zip(*estimates.values(), strict=True), labels, strict=True
        ):
            at = np.arange(len(found))
            mean_N, low_N, high_N = np.transpose(found)
            # What rounding leaves below zero is no error bar.
            bars = np.maximum(0, [mean_N - low_N, high_N - mean_N])
            ax.errorbar(at, mean_N, bars, color=COLOURS[0], marker="o", capsize=3)
            ax.set_xticks(at, [str(repeats) for repeats in estimates])
            ax.set_xlabel("times that the canary was planted")
            ax.set_ylabel(label)
        axes[0].axhline(np.log2(count), color="k", linestyle="--", lw=0.9)
        random = np.log2(count) - np.log2(np.arange(1, count + 1)).mean()
        axes[0].axhline(random, color="k", linestyle=":", lw=0.9)
        axes[0].set_ylim(0, np.log2(count) * 1.08)
        axes[1].set_ylim(-0.05, 1.05)
        savefig(fig, path)
