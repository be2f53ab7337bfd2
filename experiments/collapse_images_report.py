"""The report of the study of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from collapse_images_figures import caption, drawing, table
from collapse_images_opening import opening
from collapse_images_series import AXES, MODELS, Series
from collapse_images_verdict import (
    distances,
    floors,
    plateaus,
    small_shares,
    training,
    widths,
)
from ml_collections import ConfigDict

from lmnoise.report import COLOURS, Figure, Table, mean_and_error, savefig, write_csv

ABOUT = """\
Labels are one-hot vectors less their mean; the error is squared, summed over classes, on real
labels of images that no model has seen. A share p2 of the training images has synthetic labels,
of two kinds. A weaker network's: a two-layer network of few units trained on few other images
gives its outputs. Flips: a share q of labels is another class at random, which takes the mean
label `q O / (O - 1)` of the way to the mean of the O classes, a squared distance
c² = q² O / (O - 1), beside variance."""

THEORY = """\
Theorem 2 of arXiv 2410.04840 takes models for random projections of a space of inputs. Here that
space is spanned by many random ReLU features of training images, whose second moment gives the
eigenvalues; the coefficients of real labels and of the shift on its eigenfunctions give prior and
shift; what they leave is label noise. The theorem draws the shift independently of the real law.
On images it is not: of flips it is an exact multiple of the real labels. What this adds is not in
the paper and was derived for `lmnoise.theory.collapse` (its argument `cross`, which simulation
confirms): `2 p2 [bias(M) - sum_j M_j s_j theta / (s_j + theta)]`, with M the products of both
coefficients and theta the effective ridge; the lines have it. Images keep no mean pixel, and
labels no mean, so no intercept is fitted; features do have a mean, which is one large eigenvalue,
learned from the first samples, that carries next to nothing of centred labels. Trained networks
have no line: the theorem's features do not move."""


def blocks(
    config: ConfigDict,
    found: Sequence[Series],
    teachers: Mapping[str, Any],
    folder: Path,
) -> list[Any]:
    """Everything after the title; figures and their tables are written into the folder."""
    samples = [own for own in found if own.axis == "samples"]
    across = [own for own in found if own.axis == "widths"]
    exact = [own for own in found if own.law is not None]
    made: list[Any] = [
        *opening(found),
        ABOUT,
        "## Floors and widths",
        plateaus(samples),
        widths(across),
        _qualities(config, found, teachers),
        "## Theory and measurement",
        THEORY,
        distances(exact),
        small_shares([own for own in exact if own.axis == "samples"]),
    ]
    for images in config.images:
        for axis, model in ((a, m) for a in AXES for m in MODELS):
            pair = [s for s in found if (s.images, s.axis, s.model) == (images, axis, model)]
            made += [_title(pair[0]), *_figure(config, pair, folder)]
            if axis == "samples":
                made += [floors(own) for own in pair]
            if model == "networks":
                made.append(_training(pair))
    return made


def _title(own: Series) -> str:
    what = "size of the training set" if own.axis == "samples" else "width"
    return f"## {own.images}: {MODELS[own.model]}, {what}"


def _training(pair: Sequence[Series]) -> str:
    several = "; ".join(training(own) for own in pair)
    first, last = pair[0].size_B[0], pair[0].size_B[-1]
    what = "Images" if pair[0].axis == "samples" else "Widths"
    return (
        f"{what} {first:,} to {last:,}; {several}. All networks take the same number of steps, so "
        "where this loss is not near 0 the training has stopped before it fits all labels, which "
        "spares the test error part of what wrong labels would cost."
    )


def _figure(config: ConfigDict, pair: Sequence[Series], folder: Path) -> list[Figure]:
    path = folder / f"{pair[0].axis}-{pair[0].model}-{pair[0].images}.png"
    shares = sorted({s for model in MODELS for axis in AXES for s in config[model][axis].shares})
    colours = dict(zip(shares, COLOURS, strict=False))
    savefig(drawing(pair, config.theory.longest, colours), path)
    write_csv(path.with_suffix(".csv"), table(pair))
    return [Figure(path, caption(pair[0]))]


def _qualities(config: ConfigDict, found: Sequence[Series], teachers: Mapping[str, Any]) -> Table:
    """How wrong the synthetic labels are."""
    rows = []
    for own in found:
        if own.law is None or own.axis != "samples":
            continue
        weak = teachers[own.images]
        measured = f"{own.quality:.3f}, by the share of flips"
        if own.kind == "network":
            above = mean_and_error(np.array(weak["errors"]) - weak["reference"])
            measured = f"{mean_and_error(weak['quality']).text(3)}; excess error {above.text(3)}"
        rows.append(
            [
                own.images,
                own.kind,
                measured,
                f"{own.law.quality:.3f}",
                f"{own.law.residual:.3f}",
                f"{own.law.synthetic_residual:.3f}",
            ]
        )
    errors = ", ".join(f"{weak['reference']:.3f} ({name})" for name, weak in teachers.items())
    caption_ = (
        "c² of the weaker networks is the mean squared distance on test images from the outputs of "
        f"the reference, a network of {config.reference.width} units trained on all other training "
        f"images, whose error on real labels is {errors}; were it the real law, c² would be the "
        "excess error beside. The other columns are what the theorem uses: the part of the shift "
        f"that {config.theory.features:,} random features can express, and the variance of labels "
        "that they leave."
    )
    header = ("images", "synthetic labels", "c²", "c² that features express",
              "variance left of real labels", "of synthetic labels")  # fmt: skip
    return Table(header, rows, caption_)
