"""Losses after Gaussian noise on the weights, for every checkpoint of the over-training study."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from overtraining_models_curves import Curve, by_seed_and_budget
from overtraining_models_training import SERIES, Trained, digest_of, packed

from lmnoise import points
from lmnoise.data.packing import Packed
from lmnoise.data.stream import evaluation_batches
from lmnoise.errors import UserError
from lmnoise.evaluation import variants
from lmnoise.evaluation.language import Source, summarise
from lmnoise.evaluation.perturb import UNITS, Perturbation, sensitivity
from lmnoise.models.transformer import LanguageModel


def check(config: ConfigDict) -> None:
    """Refuses strengths and seeds that could not be compared."""
    gammas, seeds = config.perturb.gammas, config.perturb.seeds
    rising = all(a < b for a, b in itertools.pairwise((0.0, *gammas)))
    if not gammas or not rising:
        raise UserError(f"config.perturb.gammas must hold strengths that rise above 0: {gammas}")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"config.perturb.seeds must hold seeds, each once, not {seeds}")
    if config.perturb.unit not in UNITS:
        raise UserError(f"config.perturb.unit must be one of {UNITS}: {config.perturb.unit!r}")


def heldout(config: ConfigDict) -> tuple[Packed, Source]:
    """Held-out text of pre-training, which every modification is judged by."""
    data = config.data
    text = packed(config, data.evaluate_split)
    read = evaluation_batches(
        text, data.length, config.train.batch_size, config.perturb.windows or None
    )
    tokens_D = np.diff(text.ends, prepend=0)
    return text, Source("pretraining", list(read), text.bytes / tokens_D)


def measure(
    trained: Sequence[Trained],
    model: LanguageModel,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
) -> list[Curve]:
    """Loss against tokens after noise of every strength, weakest first, for each series.

    One program scores all checkpoints: the parameters are its argument.
    """
    section = config.perturb
    text, source = heldout(config)
    of_kind = sensitivity(Perturbation("gaussian", section.unit), model.specs)
    evaluate = functools.cache(lambda: variants.evaluator(of_kind, model.loss, [source], mesh=mesh))
    # Strength 0 is the checkpoint as it is.
    strengths = [0.0, *np.repeat(section.gammas, len(section.seeds))]
    seeds = [0, *section.seeds * len(section.gammas)]
    members = {"strength": np.asarray(strengths, np.float32), "seed": np.asarray(seeds, np.int32)}
    identity = {
        "what": "noise",
        "section": section.to_dict(),
        "text": digest_of(text),
        "length": config.data.length,
    }
    of_print = {t.checkpoint.fingerprint: t.checkpoint for t in trained}

    def work(setting):
        sums = evaluate()(of_print[setting["checkpoint"]].params, members)["pretraining"]
        return {"losses": summarise(*sums)["loss"].tolist()}

    settings = [identity | {"checkpoint": t.checkpoint.fingerprint} for t in trained]
    results = points.compute(workdir, settings, work, "Gaussian noise")
    losses = [np.asarray(result["losses"]) for result in results]
    means = [of[1:].reshape(len(section.gammas), -1).mean(1) for of in losses]
    return [
        Curve(
            series=series,
            kind="noise",
            name=f"γ = {gamma:g}",
            strength=gamma,
            tokens_B=tokens_B,
            before_RB=before_RB,
            after_RB=after_RB,
        )
        for series in SERIES
        for g, gamma in enumerate(section.gammas)
        for tokens_B, (before_RB, after_RB) in [
            by_seed_and_budget(
                trained, series, [[of[0], mean[g]] for of, mean in zip(losses, means, strict=True)]
            )
        ]
    ]
