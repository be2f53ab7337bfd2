"""Can a single number break the model? Candidates from activations, confirmed, and a scan."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lmnoise.analyze import parameters_report
from lmnoise.analyze.series import Entry
from lmnoise.analyze.subject import Subject
from lmnoise.errors import UserError
from lmnoise.evaluation import activations
from lmnoise.evaluation.language import Source
from lmnoise.evaluation.parameters import (
    Measure,
    Operation,
    Scalar,
    change,
    measurer,
    members,
    norm_leaves,
    norm_scan,
    ranked,
    scaled,
    trial,
)
from lmnoise.report import Figure, Table

TITLE = "Single parameters"
# Weights of a norm that are scanned between two saves.
_CHUNK = 48

# What was found, all of it JSON: see `measure`.
type Result = dict[str, Any]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The corpora that are scored."""
    return config.parameters.sources


def measure(subject: Subject, config: ConfigDict) -> Result:
    """Candidates, what breaking them does, and the scan.

    Returns:
      `massive` (rows of the dimensions), `largest` (L, D), `median` (L,), `super` (rows of the
      candidates for super weights), `screened` (every norm weight at a massive dimension, times
      10), `trials` (rows of the confirmed scalars and their controls), `scans` ({leaf: rows}) and
      `said` (rows of text).
    """
    section = config.parameters
    _check_width(section, subject.model.config.width)
    found = _candidates(subject, section)
    massive = [row["dimension"] for row in found["massive"]]
    norms = activations.norm_candidates(subject.checkpoint.params, massive)
    score = _measurer(subject, norm_leaves(subject.checkpoint.params), subject.sources)
    screened = _screen(subject, norms, score)
    best = [_scalar(row) for row in ranked(screened)[: section.norm_weights]]
    supers = [_scalar(row) for row in found["super"]]
    trials = _trials(subject, section, best, score)
    leaves = [scalar.leaf for scalar in supers]
    trials += _trials(subject, section, supers, _measurer(subject, leaves, subject.sources))
    return found | {
        "screened": screened,
        "trials": trials,
        "scans": {leaf: _scan(subject, section, leaf) for leaf in section.scan},
        "said": _continuations(subject, config, trials),
    }


def _check_width(section: ConfigDict, width: int) -> None:
    """A norm has `width` weights: for candidates, and as many controls that are none."""
    wanted = section.norm_weights + section.super_weights + section.matched + section.random
    for key, least in (("massive_dimensions", section.massive_dimensions), ("matched", wanted)):
        if least >= width:
            raise UserError(
                f"config.parameters.{key} asks for {least} different weights of norms that have "
                f"{width}: lower it"
            )


def _candidates(subject: Subject, section: ConfigDict) -> Result:
    """What the activations say, computed once."""
    batches = list(subject.placed(batch for source in subject.sources for batch in source.batches))

    def work(_):
        seen = activations.massive(subject.model, subject.params, batches)
        supers = activations.super_weights(
            subject.model, subject.params, batches, section.super_weights
        )
        return {
            "massive": seen.dimensions(section.massive_dimensions),
            "largest": seen.largest_LD.tolist(),
            "median": seen.median_L.tolist(),
            "super": [
                row | {"scalar": str(row["scalar"]), "leaf": row["scalar"].leaf,
                       "index": row["scalar"].index}
                for row in supers
            ],
        }  # fmt: skip

    # fmt: off
    setting = {"what": "activations", "batch_size": subject.data.batch_size,
               "dimensions": section.massive_dimensions, "super": section.super_weights}
    # fmt: on
    [result] = subject.compute([setting], work, "activations")
    return result


def _measurer(subject: Subject, leaves: Sequence[str], sources: Sequence[Source]) -> Measure:
    """A `measurer` whose program is compiled when it is first needed."""
    build = functools.cache(
        lambda: measurer(leaves, subject.model.loss, sources, mesh=subject.mesh)
    )
    return lambda params, operations: build()(params, operations)


def _screen(subject: Subject, norms: Sequence[Scalar], score: Any) -> list[dict[str, Any]]:
    """Every candidate among the norm weights times 10, layer by layer."""
    leaves = list(dict.fromkeys(scalar.leaf for scalar in norms))
    settings = [
        {"what": "screen", "leaf": leaf, "index": [s.index for s in norms if s.leaf == leaf]}
        for leaf in leaves
    ]

    def work(setting):
        scalars = [Scalar(setting["leaf"], tuple(index)) for index in setting["index"]]
        return {"rows": score(subject.params, [scaled(scalar, 10.0) for scalar in scalars])}

    results = subject.compute(settings, work, "norm weights of massive dimensions")
    return [row for result in results for row in result["rows"]]


def _trials(
    subject: Subject, section: ConfigDict, scalars: Sequence[Scalar], score: Any
) -> list[dict[str, Any]]:
    """Each scalar and its controls, with every operation of the config."""
    options = {"matched": section.matched, "random": section.random,
               "scales": tuple(section.scales), "draws": section.draws}  # fmt: skip
    settings = [
        {"what": "trial", "scalar": str(scalar), "seed": section.seed, "options": options,
         "exclude": [str(other) for other in scalars]}
        for scalar in scalars
    ]  # fmt: skip
    by_name = {str(scalar): scalar for scalar in scalars}

    def work(setting):
        operations = trial(
            jax.random.key(section.seed),
            subject.checkpoint.params,
            by_name[setting["scalar"]],
            exclude=scalars,
            **options,
        )
        return {"rows": score(subject.params, operations)}

    results = subject.compute(settings, work, "candidates and controls")
    return [
        row | {"candidate": setting["scalar"]}
        for setting, result in zip(settings, results, strict=True)
        for row in result["rows"]
    ]


def _scan(subject: Subject, section: ConfigDict, leaf: str) -> list[dict[str, Any]]:
    """Every weight of a norm times `scan_factor`, each alone, on one batch of the first source."""
    known = norm_leaves(subject.checkpoint.params)
    if leaf not in known:
        raise UserError(
            f"config.parameters.scan has {leaf!r}, which is no norm weight of {subject.name}: "
            + (f"take one such as {known[0]}" if known else "it has none, so set it to ()")
        )
    first = subject.sources[0]
    source = Source(first.name, first.batches[:1], first.bytes_per_token)
    score = _measurer(subject, known, [source])
    width = subject.model.config.width
    settings = [
        {"what": "scan", "leaf": leaf, "factor": section.scan_factor, "source": source.name,
         "batch_size": subject.data.batch_size, "from": start, "to": min(start + _CHUNK, width)}
        for start in range(0, width, _CHUNK)
    ]  # fmt: skip

    def work(setting):
        dimensions = range(setting["from"], setting["to"])
        return {"rows": norm_scan(score, subject.params, leaf, dimensions, section.scan_factor)}

    results = subject.compute(settings, work, f"scan of {leaf}")
    return [row for result in results for row in result["rows"]]


def _continuations(
    subject: Subject, config: ConfigDict, trials: Sequence[dict[str, Any]]
) -> list[list[str]]:
    """Rows (change, prompt, continuation): as it is, the worst candidate and the worst control."""
    if not config.continuation.prompts or not trials:
        return []
    worst = [
        next(row for row in ranked(trials) if (row["role"] == "candidate") == candidate)
        for candidate in (True, False)
    ]
    setting = {"what": "said", "changes": [[row["scalar"], row["new"]] for row in worst],
               "continuation": config.continuation.to_dict()}  # fmt: skip

    def work(_):
        operations = [Operation(_scalar(row), "set", 0.0, row["new"], row["role"]) for row in worst]
        leaves = list(dict.fromkeys(row["leaf"] for row in worst))
        variants = members(leaves, subject.checkpoint.params, operations)
        return {"said": subject.continuations(config.continuation, change(leaves), variants)}

    [result] = subject.compute([setting], work, "continuations")
    labels = ["as it is"] + [
        f"{row['scalar']}: {row['value']:.3g} becomes {row['new']:.3g}"
        + ("" if row["role"] == "candidate" else f" ({row['role']} control)")
        for row in worst
    ]
    return [
        [label, prompt, text]
        for label, texts in zip(labels, result["said"], strict=True)
        for prompt, text in zip(config.continuation.prompts, texts, strict=True)
    ]


def _scalar(row: dict[str, Any]) -> Scalar:
    return Scalar(row["leaf"], tuple(row["index"]))


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report, a section a checkpoint; tables also go into `folder` as CSV."""
    sections = [
        block
        for e in series
        for block in parameters_report.section(e.name, e.result, config.parameters, folder)
    ]
    return sections + parameters_report.along_series(series, folder)
