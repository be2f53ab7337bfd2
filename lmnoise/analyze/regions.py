"""Which few parameters carry the languages: importance, removal, overlap, concentration."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lmnoise import keys
from lmnoise.analyze import importance, regions_report
from lmnoise.analyze.defaults import label
from lmnoise.analyze.series import Entry, file_name, percent
from lmnoise.analyze.subject import Subject, prepare_all, rises
from lmnoise.evaluation import masks, regions
from lmnoise.evaluation.perturb import Perturbation, sensitivity
from lmnoise.report import Figure, Table

TITLE = "Linguistic regions"
REGIONS = ("core", "opposite", "random", "largest")
# Those that no importance decides: results are the same under both rules.
BLIND = ("random", "largest")

# What was found, all of it JSON: see `measure`.
type Result = dict[str, Any]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The corpora that are scored."""
    return config.regions.sources


class Regions:
    """The regions of one checkpoint under one rule, made when they are first asked for.

    The core is the top of the summed importance under the Taylor rule (arXiv 2402.14700) and the
    least changed under the change rule (arXiv 2310.14928); the opposite is the other end. Controls
    are random entries and those of the largest magnitude.
    """

    def __init__(self, subject: Subject, section: ConfigDict, rule: str):
        self.subject, self.section, self.rule = subject, section, rule
        self.high, self.low = ("top", "bottom") if rule == "taylor" else ("bottom", "top")
        # Caches of this object: those of a class would keep its arrays for ever.
        self._mask = functools.lru_cache(maxsize=1)(self._make)
        self.own = functools.lru_cache(maxsize=1)(self._own)

    @functools.cached_property
    def _paths(self) -> dict[str, Path]:
        return importance.all_languages(self.subject, self.section, self.rule)

    def importances(self) -> Iterator[tuple[str, Any]]:
        """(language, importance), one in memory at a time."""
        for language, path in self._paths.items():
            yield language, importance.read(path, self.subject.checkpoint.params)

    @functools.cached_property
    def total(self) -> Any:
        """The importance summed over the languages."""
        return regions.add(of_language for _, of_language in self.importances())

    def mask(self, region: str, share: float, seed: int = 0, language: str = "") -> Any:
        """The mask of a region; `seed` is of the region "random", `language` of "monolingual"."""
        return self._mask(region, share, seed, language)

    def _make(self, region: str, share: float, seed: int, language: str) -> Any:
        if region == "random":
            key = keys.fold(jax.random.key(seed), "region")
            return regions.random(key, self.subject.checkpoint.params, share)
        if region == "largest":
            size = jax.tree.map(np.abs, self.subject.checkpoint.params)
            return regions.select(size, share, "top")
        if region == "monolingual":
            return regions.monolingual(self.own(share), language)
        return regions.select(self.total, share, self.high if region == "core" else self.low)

    def _own(self, share: float) -> dict[str, Any]:
        """{language: its region}: the core by the importance of that language alone."""
        return {
            name: regions.select(of_language, share, self.high)
            for name, of_language in self.importances()
        }


def measure(subject: Subject, config: ConfigDict) -> Result:
    """Removes the regions, compares them and stores the core's masks.

    Returns:
      `rises`: rows {region, share, language, rises: {source: estimates}};
      `loss`: {source: loss of the model as it is}; `overlap`: Jaccard of the languages' regions;
      `concentration`: see `regions_report`; `said`: rows of text; `masks`: the file's name.
    """
    section = config.regions
    # Its text is read when a stored result is looked up.
    prepare_all(section.languages, subject.checkpoint, subject.data)
    own = Regions(subject, section, section.rule)
    baseline = subject.baseline()
    removed = _removed(own, baseline)
    return {
        "rises": removed,
        "loss": {
            name: float(sums.losses_MD[0].sum() / sums.counts_D.sum())
            for name, sums in baseline.items()
        },
        "overlap": _overlap(own),
        "concentration": _concentration(own),
        "said": _continuations(own, config),
        "masks": _save(own),
    }


def identity(own: Regions) -> dict[str, Any]:
    """What a stored result about regions depends on besides its own setting."""
    return {
        "importance": {
            label(name): importance.setting(own.subject, own.section, own.rule, name)
            for name in own.section.languages
        }
    }


def _removed(own: Regions, baseline: dict[str, Any]) -> list[dict[str, Any]]:
    section = own.section
    languages = [label(name) for name in section.languages]
    rows = []
    for operation in section.operations:
        change = sensitivity(Perturbation(operation), own.subject.model.specs)
        evaluate = functools.cache(lambda change=change: own.subject.evaluator(change))
        settings = [
            _setting(operation, region, share, seeds)
            for share in section.shares
            for region in REGIONS
            for seeds in _seeds(section, operation, region)
        ]
        if operation == "zero":
            share = section.monolingual_share
            settings += [_setting(operation, "monolingual", share, (0,), x) for x in languages]
        settings = [
            setting if setting["region"] in BLIND else setting | identity(own)
            for setting in settings
        ]

        def work(setting, operation=operation, evaluate=evaluate):
            seeds = setting["seeds"]
            mask = own.mask(setting["region"], setting["share"], seeds[0], setting["language"])
            members = {
                "strength": np.ones(len(seeds), np.float32),
                "seed": np.asarray(seeds, np.int32),
            }
            return evaluate()(members, mask)

        results = own.subject.compute(settings, work, f"regions, {operation}")
        for setting, result in zip(settings, results, strict=True):
            found = rises(own.subject.sums(result), baseline)
            kept = ("operation", "region", "share", "language")
            rows.append({key: setting[key] for key in kept} | {"rises": found})
    return rows


def _seeds(section: ConfigDict, operation: str, region: str) -> Sequence[tuple[int, ...]]:
    """The seeds that are scored together: those of one mask.

    A random region is drawn with its values, so it has a mask a seed; of the others only the new
    values have seeds.
    """
    if region == "random":
        return [(seed,) for seed in section.seeds]
    return [tuple(section.seeds)] if operation == "reinitialise" else [(0,)]


def _setting(
    operation: str, region: str, share: float, seeds: tuple[int, ...], language: str = ""
) -> Result:
    return {"what": "region", "operation": operation, "region": region, "share": share,
            "seeds": list(seeds), "language": language}  # fmt: skip


def _overlap(own: Regions) -> Result:
    """Jaccard of every pair of languages' own regions, and that of random ones."""
    share = own.section.monolingual_share
    setting = {"what": "overlap", "share": share} | identity(own)

    def work(_):
        tops = own.own(share)
        pairs = [[regions.jaccard(a, b)[0] for b in tops.values()] for a in tops.values()]
        return {
            "languages": list(tops),
            "jaccard": [[pair.jaccard for pair in row] for row in pairs],
            "expected": pairs[0][-1].expected,
        }

    [result] = own.subject.compute([setting], work, "overlap of languages")
    return result


def _concentration(own: Regions) -> Result:
    """How the core spreads over rows and columns of each kernel, and over the residual stream.

    Returns:
      `kernels`: rows (layer, kernel, Gini of rows, expected, Gini of columns, expected); `read`
      and `write`: entries of the core by dimension of the residual stream, over all kernels whose
      input or whose output it is.
    """
    share = own.section.monolingual_share
    setting = {"what": "concentration", "share": share} | identity(own)

    def work(_):
        kernels, residual = [], {"read": 0, "write": 0}
        for name, spread in regions.concentration(own.mask("core", share)).items():
            _, layer, *parts = name.split("/")
            kind = parts[-2]
            row, column = spread["row"], spread["column"]
            kernels.append([int(layer), kind, row.gini, row.expected, column.gini, column.expected])
            if kind in ("query", "key", "value", "gate", "up"):
                residual["read"] = residual["read"] + row.counts
            else:
                residual["write"] = residual["write"] + column.counts
        return {"kernels": kernels} | {side: counts.tolist() for side, counts in residual.items()}

    [result] = own.subject.compute([setting], work, "concentration")
    return result


def _continuations(own: Regions, config: ConfigDict) -> list[list[str]]:
    """Rows (removed, prompt, continuation)."""
    if not config.continuation.prompts:
        return []
    share = own.section.shares[0]
    setting = {"what": "said", "share": share, "continuation": config.continuation.to_dict()}
    setting |= identity(own)
    apply = sensitivity(Perturbation("zero"), own.subject.model.specs)

    def work(_):
        def said(strength, region):
            members = {"strength": np.array([strength], np.float32), "seed": np.array([0])}
            mask = own.mask(region, share)
            return own.subject.continuations(config.continuation, apply, members, mask)[0]

        return {
            "nothing": said(0.0, "core"),
            f"core, {percent(share)}": said(1.0, "core"),
            f"random, {percent(share)}": said(1.0, "random"),
        }

    [result] = own.subject.compute([setting], work, "continuations")
    return [
        [removed, prompt, text]
        for removed, texts in result.items()
        for prompt, text in zip(config.continuation.prompts, texts, strict=True)
    ]


def _save(own: Regions) -> str:
    """The core's masks, for freezing; the path of the file."""
    about = {"checkpoint": own.subject.name, "rule": own.rule} | identity(own)
    about["shares"] = list(own.section.shares)
    digest = importance.digest_of(about)
    path = own.subject.workdir / "masks" / f"{file_name(own.subject.name)}-{own.rule}-{digest}.npz"
    if not path.exists():
        cores = {f"core-{share:g}": own.mask("core", share) for share in own.section.shares}
        masks.save(path, cores, about)
    return str(path)


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report, a section a checkpoint; tables also go into `folder` as CSV."""
    sections = [
        block
        for e in series
        for block in regions_report.section(e.name, e.result, config.regions, folder)
    ]
    return sections + regions_report.along_series(series, config.regions, folder)
