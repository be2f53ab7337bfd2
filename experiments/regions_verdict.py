"""What of the published effects shows at this scale, in sentences made from the numbers."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from regions_recover import ENGLISH, MEMBERS, STARTS

from lmnoise.analyze.defaults import label
from lmnoise.analyze.regions_report import NAMES, estimate, grouped
from lmnoise.analyze.series import percent
from lmnoise.report import Table

# Regions in the order that the papers expect of their harm, most first.
ORDER = ("core", "random", "opposite")
CONTROL = "largest"


def blocks(removed: dict[str, Any], recovered: Any, config: ConfigDict) -> list[str | Table]:
    """The first chapter of the report."""
    return [
        "## What shows, and what does not",
        _order(removed),
        *(_languages(rule, found) for rule, found in removed.items()),
        *_recovery(recovered, config),
    ]


def _order(removed: dict[str, Any]) -> Table:
    """Mean rises of the regions, and how many languages keep the expected order."""
    rows = []
    for rule, found in removed.items():
        groups, sources = grouped(found), list(found["loss"])
        for operation, share in dict.fromkeys((o, s) for o, _, s in groups):
            rise = {
                region: np.array(
                    [estimate(groups[operation, region, share], s).mean for s in sources]
                )
                for region in (*ORDER, CONTROL)
            }
            means = (float(of_region.mean()) for of_region in rise.values())
            above = [
                f"{int((rise[a] > rise[b]).sum())} of {len(sources)}"
                for a, b in itertools.pairwise(ORDER)
            ]
            above.append(f"{int((rise[ORDER[0]] > rise[CONTROL]).sum())} of {len(sources)}")
            rows.append((rule, operation, percent(share), *means, *above))
    named = ", ".join(f"{rule}: {NAMES[rule]['opposite']}" for rule in removed)
    header = ("rule", "operation", "share", *ORDER, NAMES[rule][CONTROL], "core above random",
              "random above opposite", "core above largest weights")  # fmt: skip
    return Table(
        header,
        rows,
        "Mean rise of the loss over the languages, nats per token, and in how many languages the "
        f"order holds that the papers report (core, then random, then the opposite end; {named}).",
    )


def _languages(rule: str, found: dict[str, Any]) -> str:
    own = [row for row in found["rises"] if row["region"] == "monolingual"]
    hit = [
        row["language"]
        for row in own
        if row["language"] == max(row["rises"], key=lambda s: row["rises"][s][0].mean)
    ]
    pairs = np.asarray(found["overlap"]["jaccard"])
    between = pairs[np.triu_indices(len(pairs), 1)]
    named = f" ({', '.join(hit)})" if hit else ""
    return (
        f"Regions of one language alone ({rule} rule): zeroing one hurts its own language most in "
        f"{len(hit)} of {len(own)} languages{named}. The languages' own regions overlap by "
        f"{between.min():.2f} to {between.max():.2f} (Jaccard), random ones by "
        f"{found['overlap']['expected']:.3f}."
    )


def _recovery(recovered: Any, config: ConfigDict) -> Sequence[str]:
    language = label(config.recover.language)
    for start, rows in recovered.items():
        last = max(row["step"] for row in rows)
        begun = next(row for row in rows if row["step"] == 0)
        ended = {row["member"]: row for row in rows if row["step"] == last and "member" in row}
        parts = []
        for source in (language, ENGLISH):
            losses = [f"{ended[m][f'{source}/loss']:.3f} ({MEMBERS[m]})" for m in sorted(ended)]
            difference = ended[0][f"{source}/difference"]
            error = ended[0][f"{source}/difference_error"]
            parts.append(
                f"{source} goes from {begun[f'{source}/loss']:.3f} to {' and '.join(losses)}, a "
                f"difference of {difference:+.3f} with a standard error of {error:.3f}"
            )
        yield (
            f"{STARTS[start].capitalize()}, then {last} steps on {language}: {'; '.join(parts)} "
            "nats per token."
        )
