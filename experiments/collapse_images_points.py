"""What the study of images computes, point by point: test errors for every mixture of labels.

A mixture is a name: "real", or a kind of synthetic labels with its share. Its result is a triple:
squared error summed over classes on the test images' real labels, accuracy, and the loss on its
own training labels at the end (nan for an exact solution, which is not asked for it).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from collapse_images_data import (
    KINDS,
    Array,
    Pictures,
    Pool,
    pictures,
    pools,
    synthetic_labels,
    wrong_share,
)
from collapse_images_features import features, first_layer, nested_fits, ridge
from collapse_images_features import scores as exact_scores
from collapse_images_networks import Plan, scores, train
from collapse_images_theory import Law, basis, law_of_flips, law_of_network, mean_law
from ml_collections import ConfigDict

from lmnoise import points
from lmnoise.models.regression import TwoLayerRelu

type Setting = points.Setting
type Mixture = tuple[str, float]

REAL = "real"


def name_of(kind: str, share: float) -> str:
    """Of a mixture; without synthetic labels all kinds are one."""
    return f"{kind} {share:g}" if share else REAL


def mixtures(shares: Sequence[float]) -> dict[str, Mixture]:
    """All mixtures of these shares, each once."""
    return {name_of(kind, share): (kind, share) for kind in KINDS for share in shares}


@dataclasses.dataclass(frozen=True)
class Made:
    """One set of images with what makes its synthetic labels.

    Attributes:
      pools: by seed.
      teachers: outputs (N, O) of each seed's weaker network for images (N, P), by seed.
      wrong: the share of flips.
    """

    config: ConfigDict
    pictures: Pictures
    pools: dict[int, Pool]
    teachers: dict[int, Any]
    wrong: float

    def synthetic(self, seed: int, n: int) -> dict[str, Array]:
        """Synthetic labels (n, O) of the first n training images, by kind."""
        return {
            kind: synthetic_labels(self.pools[seed], n, kind, self.wrong, self.teachers[seed])
            for kind in KINDS
        }

    def labels(self, seed: int, n: int, shares: Sequence[float]) -> dict[str, Array]:
        """Labels (n, O) of every mixture."""
        synthetic, pool = self.synthetic(seed, n), self.pools[seed]
        return {
            name: pool.mixture(synthetic[kind], share)
            for name, (kind, share) in mixtures(shares).items()
        }


def make(config: ConfigDict, name: str, stored: dict[str, Any]) -> Made:
    """The images, and the weaker networks with the parameters that `teacher_point` returned."""
    own = pictures(name, config.data_dir, config.pool)
    model = TwoLayerRelu(own.train_NP.shape[1], config.teacher.width, own.classes)

    def teacher(params):
        arrays = {key: jnp.asarray(value, jnp.float32) for key, value in params.items()}
        return lambda x_NP: np.asarray(model.predict(arrays, jnp.asarray(x_NP)))

    teachers = {seed: teacher(stored["params"][str(seed)]) for seed in config.seeds}
    wrong = wrong_share(config.quality, own.classes)
    return Made(config, own, pools(config, name), teachers, wrong)


def base(config: ConfigDict, name: str) -> Setting:
    """What every point of these images depends on."""
    return dict(
        images=name,
        pool=config.pool,
        teacher=config.teacher.to_dict(),
        quality=config.quality,
    )


def teacher_point(config: ConfigDict, name: str, workdir: Path) -> dict[str, Any]:
    """The weaker networks of all seeds, and their c^2 against the best network of the study.

    Returns `params` by seed, `errors` on the test images, `reference` (its error there), and
    `quality`: mean squared distance from the reference's outputs on the test images.
    """
    setting = base(config, name) | dict(
        what="teachers", seeds=list(config.seeds), reference=config.reference.to_dict()
    )
    return points.compute(
        workdir, [setting], lambda _: _teachers(config, name), f"weaker networks, {name}"
    )[0]


def _teachers(config: ConfigDict, name: str) -> dict[str, Any]:
    own, of_seed = pictures(name, config.data_dir, config.pool), pools(config, name)

    def trained(section, some, rows_SN):
        plan = _plan(own, section.width, section.steps, rows_SN.shape[1])
        seeds, streams = [pool.seed for pool in some], range(len(some))
        images_SNP, labels_SNO = own.train_NP[rows_SN], own.train_NO[rows_SN]
        return plan, train(plan, section, images_SNP, labels_SNO, seeds, streams)[0]

    several = list(of_seed.values())
    small, params = trained(config.teacher, several, np.stack([p.teacher_rows for p in several]))
    first = several[0]
    large, best = trained(config.reference, [first], first.order_N[None, first.reserved :])
    x_TP = jnp.asarray(own.test_NP)
    best_TO = large.model.predict({key: value[0] for key, value in best.items()}, x_TP)
    kept, quality = {}, []
    for m, seed in enumerate(of_seed):
        one = {key: value[m] for key, value in params.items()}
        made_TO = small.model.predict(one, x_TP)
        quality.append(float(jnp.square(made_TO - best_TO).sum(1).mean()))
        kept[str(seed)] = {key: np.asarray(v, np.float64).tolist() for key, v in one.items()}
    return {
        "params": kept,
        "errors": scores(small, params, own)[0],
        "reference": scores(large, best, own)[0][0],
        "quality": quality,
    }


def _plan(own: Pictures, width: int, steps: int, room: int) -> Plan:
    return Plan(own.train_NP.shape[1], width, own.classes, steps, room)


def law_point(made: Made, workdir: Path) -> dict[str, Law]:
    """The theorem's laws of both kinds; of the weaker networks the mean over seeds."""
    config, name = made.config, made.pictures.name
    setting = base(config, name) | dict(
        what="law", theory=config.theory.to_dict(), seeds=list(config.seeds)
    )
    [found] = points.compute(workdir, [setting], lambda _: _laws(made), f"spectrum, {name}")
    return {
        kind: Law(**{k: np.asarray(v) if isinstance(v, list) else v for k, v in law.items()})
        for kind, law in found.items()
    }


def _laws(made: Made) -> dict[str, Any]:
    own = made.config.theory
    x_NP, y_NO = made.pictures.train_NP[: own.examples], made.pictures.train_NO[: own.examples]
    spectrum = basis(x_NP, own.features, own.seed)
    laws = {
        "network": mean_law(
            [law_of_network(spectrum, y_NO, t(x_NP)) for t in made.teachers.values()]
        ),
        "flips": law_of_flips(spectrum, y_NO, made.wrong),
    }
    return {
        kind: {
            field: np.asarray(value, np.float64).tolist()
            for field, value in dataclasses.asdict(law).items()
        }
        for kind, law in laws.items()
    }


def feature_points(made: Made, workdir: Path, axis: str) -> dict[int, dict[str, Any]]:
    """Random-feature models of every seed, by size along the axis, "samples" or "widths"."""
    own = made.config.features[axis].to_dict()
    settings = [
        base(made.config, made.pictures.name) | dict(what="features", axis=axis, seed=seed, **own)
        for seed in made.config.seeds
    ]
    work = {"samples": _features_by_samples, "widths": _features_by_width}[axis]
    title = f"random features, {axis}, {made.pictures.name}"
    found = points.compute(workdir, settings, lambda s: work(made, s), title)
    return dict(zip(made.config.seeds, found, strict=True))


def _features_by_samples(made: Made, of: Setting) -> dict[str, Any]:
    z_TK, z_NK = _random_features(made, of["seed"], of["width"], max(of["counts"]))
    labels = {n: made.labels(of["seed"], n, of["shares"]) for n in of["counts"]}
    columns = {n: np.concatenate(list(some.values()), 1) for n, some in labels.items()}
    found = nested_fits(z_NK, columns, of["penalty"])
    return {
        str(n): exact_scores(z_TK, found[n], made.pictures.test_NO, list(labels[n]))
        for n in of["counts"]
    }


def _features_by_width(made: Made, of: Setting) -> dict[str, Any]:
    labels = made.labels(of["seed"], of["n"], of["shares"])
    columns_NY, result = np.concatenate(list(labels.values()), 1), {}
    for width in of["widths"]:
        z_TK, z_NK = _random_features(made, of["seed"], width, of["n"])
        weights_KY = ridge(z_NK, columns_NY, of["penalty"])
        result[str(width)] = exact_scores(z_TK, weights_KY, made.pictures.test_NO, list(labels))
    return result


def _random_features(made: Made, seed: int, width: int, n: int) -> list[Array]:
    """Of the test images and of n training images."""
    own = made.pictures
    model = TwoLayerRelu(own.train_NP.shape[1], width, own.classes)
    hidden_KP = first_layer(model, seed)
    rows = made.pools[seed].rows(n)
    return [features(hidden_KP, x_NP) for x_NP in (own.test_NP, own.train_NP[rows])]


def network_points(made: Made, workdir: Path, axis: str) -> dict[int, dict[str, Any]]:
    """Trained networks of every size along the axis, by seed."""
    own = made.config.networks
    section = own[axis].to_dict()
    sizes = section.pop({"samples": "counts", "widths": "widths"}[axis])
    name = {"samples": "n", "widths": "width"}[axis]
    common = {key: own[key] for key in ("steps", "batch_size", "learning_rate")}
    settings = [
        base(made.config, made.pictures.name)
        | dict(what="networks", seeds=list(own.seeds), **common, **section, **{name: size})
        for size in sizes
    ]
    title = f"networks, {axis}, {made.pictures.name}"
    room = max(s["n"] for s in settings)
    found = points.compute(workdir, settings, lambda s: _networks(made, s, room), title)
    return {
        seed: {str(size): result[str(seed)] for size, result in zip(sizes, found, strict=True)}
        for seed in own.seeds
    }


def _networks(made: Made, of: Setting, room: int) -> dict[str, Any]:
    own, names = made.pictures, list(mixtures(of["shares"]))
    x_SNP = own.train_NP[np.stack([made.pools[seed].rows(of["n"]) for seed in of["seeds"]])]
    labels = [made.labels(seed, of["n"], of["shares"]) for seed in of["seeds"]]
    labels_MNO = np.stack([mixture[name] for mixture in labels for name in names])
    stream_M = np.repeat(np.arange(len(x_SNP)), len(names)).tolist()
    plan = _plan(own, of["width"], of["steps"], room)
    params, last_M = train(plan, ConfigDict(of), x_SNP, labels_MNO, of["seeds"], stream_M)
    triples = [list(t) for t in zip(*scores(plan, params, own), last_M.tolist(), strict=True)]
    parts = (triples[i : i + len(names)] for i in range(0, len(triples), len(names)))
    return {
        str(seed): dict(zip(names, part, strict=True))
        for seed, part in zip(of["seeds"], parts, strict=True)
    }
