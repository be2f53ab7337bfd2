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
from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    style,
    write_csv,
)
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


def measure(bench: Bench, section: ConfigDict) -> Found:
    """Trains once over text with the canaries planted in it, and asks for them.

    Raises:
      Stopped: a signal came; what was trained is stored.
      UserError: canaries that do not fit the vocabulary or the windows.
    """
    canaries = canaries_of(bench, section)
    planted = sum(section.repeats) * section.each
    training = Training(
        steps=-(-(section.rows + planted) // section.batch_size),
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
    losses = population.map(
        lambda own, tokens_CT: model.loss(own, {"tokens": tokens_CT}, None)[:, -secret:].sum(1)
    )
    exposure_NM = []
    for candidates_CT, planted in zip(*canaries, strict=True):
        placed = put_whole(population.mesh, candidates_CT, batch_axis=None)
        of_members = np.asarray(losses(params, placed))
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


def by_repeats(found: Found, values_RN: np.ndarray) -> dict[int, Estimate]:
    """Means with errors over seeds, of a single seed over canaries."""
    result = {}
    for repeats in np.unique(found.repeats_RN):
        own = [v[r == repeats] for v, r in zip(values_RN, found.repeats_RN, strict=True)]
        result[int(repeats)] = mean_and_error([v.mean() for v in own] if len(own) > 1 else own[0])
    return result


def blocks(found: Found, section: ConfigDict, folder: Path) -> Sequence[Block]:
    """The chapter."""
    exposure = by_repeats(found, found.exposure_RN)
    verbatim = by_repeats(found, found.verbatim_RN)
    count = section.symbols**section.secret
    table = Table(
        ("repetitions", "exposure, bits", "given away verbatim"),
        [(repeats, exposure[repeats], verbatim[repeats]) for repeats in exposure],
        f"{section.each} canaries a row and {len(found.repeats_RN)} seeds; 95 % intervals over "
        f"seeds. The largest exposure is {np.log2(count):.2f} bits.",
    )
    write_csv(folder / "canaries.csv", table)
    _draw(exposure, verbatim, count, folder / "canaries.png")
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
            "Exposure and verbatim rate against repetitions; bars: 95 % intervals over seeds; "
            "dotted: the mean exposure of a random rank; dashed: the largest exposure.",
        ),
        table,
    ]


def _draw(
    exposure: dict[int, Estimate], verbatim: dict[int, Estimate], count: int, path: Path
) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(8, 3.4))
        axes = fig.subplots(1, 2)
        labels = ("exposure, bits", "share given away verbatim")
        for ax, found, label in zip(axes, (exposure, verbatim), labels, strict=True):
            at = np.arange(len(found))
            means = [e.mean for e in found.values()]
            widths = np.nan_to_num([e.half_width for e in found.values()])
            ax.errorbar(at, means, widths, color=COLOURS[0], marker="o", capsize=3)
            ax.set_xticks(at, [str(repeats) for repeats in found])
            ax.set_xlabel("times that the canary was planted")
            ax.set_ylabel(label)
        axes[0].axhline(np.log2(count), color="k", linestyle="--", lw=0.9)
        random = np.log2(count) - np.log2(np.arange(1, count + 1)).mean()
        axes[0].axhline(random, color="k", linestyle=":", lw=0.9)
        axes[0].set_ylim(0, np.log2(count) * 1.08)
        axes[1].set_ylim(-0.05, 1.05)
        savefig(fig, path)
