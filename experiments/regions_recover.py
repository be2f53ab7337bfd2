"""Freeze and recover: train on one language with the core frozen and not, from two starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze import regions
from lmnoise.analyze.continued import Continued
from lmnoise.analyze.defaults import label
from lmnoise.analyze.importance import digest_of
from lmnoise.analyze.series import percent
from lmnoise.analyze.subject import Subject, to_json
from lmnoise.errors import UserError
from lmnoise.evaluation.language import Sums, paired, scorer, summarise
from lmnoise.evaluation.perturb import Perturbation, perturb
from lmnoise.report import COLOURS, Estimate, Figure, Table, savefig, style, write_csv
from lmnoise.training.metrics import read_rows

# What the members of a population have frozen, in their order.
MEMBERS = ("core frozen", "nothing frozen")
STARTS = {"perturbed": "core perturbed first", "intact": "core intact"}
ENGLISH = "en-us"

# {start: rows {step, member, <source>/loss, /error, /difference, /difference_error}}; a difference
# is that of the frozen member to the free one.
type Result = dict[str, list[dict[str, Any]]]


def measure(subject: Subject, own: regions.Regions, config: ConfigDict) -> Result:
    """Losses along the training from both starts; both members see the same batches.

    Raises:
      UserError: the language or English is not among the texts that are scored.
      Stopped: a signal came; the training is saved and goes on with the same command.
    """
    section = config.recover
    names = [source.name for source in subject.sources]
    for name in (label(section.language), ENGLISH):
        if name not in names:
            raise UserError(
                f"config.regions.sources has no {name}, which config.recover compares: add it"
            )
    found = {}
    for start in STARTS:
        setting = {"what": "recover", "start": start, "section": section.to_dict()}
        setting |= regions.identity(own)
        [result] = subject.compute(
            [setting],
            lambda setting: {"rows": _train(subject, own, section, setting)},
            f"{STARTS[start]}, then {label(section.language)}",
        )
        found[start] = result["rows"]
    return found


def _train(
    subject: Subject, own: regions.Regions, section: ConfigDict, setting: dict[str, Any]
) -> list[dict[str, Any]]:
    """Both members, one after the other: two at once would need twice the memory."""
    core = own.mask("core", section.share)
    begin = subject.checkpoint.params
    if setting["start"] == "perturbed":
        begin = _perturbed(subject, core, section)
    # Not frozen is a mask too, so that both run the same program.
    masks = (core, jax.tree.map(np.zeros_like, core))
    found = [
        _train_one(subject, begin, mask, section, setting | {"member": name})
        for mask, name in zip(masks, MEMBERS, strict=True)
    ]
    return [
        {"step": step} | row for step in found[0] for row in _rows([sums[step] for sums in found])
    ]


def _train_one(
    subject: Subject, begin: Any, frozen: Any, section: ConfigDict, setting: dict[str, Any]
) -> dict[int, dict[str, Any]]:
    """{step: {source: sums of one member}}, step 0 before any training."""
    continued = Continued(subject, section.training, frozen=(frozen,))
    population = continued.population()
    score = scorer(population, subject.model.loss, subject.sources)

    def sums(params):
        # The writer of metrics keeps what is no number of its own as it is.
        return [{"member": 0, "sums": to_json(score(params))}]

    found = {0: sums(population.start(begin).params)[0]["sums"]}
    workdir = subject.workdir / "continued" / digest_of(setting)
    title = f"{setting['start']}, {setting['member']}"
    record = setting | {"text": subject.identity}
    continued.run(population, section.language, begin, workdir, record, title, sums)
    found |= {row["step"]: row["sums"] for row in read_rows(workdir) if "sums" in row}
    shutil.rmtree(workdir)
    return {step: subject.sums(of_step) for step, of_step in found.items()}


def _perturbed(subject: Subject, core: Any, section: ConfigDict) -> Any:
    """The checkpoint with its core perturbed whole."""
    kind = Perturbation(section.operation)
    change = jax.jit(
        lambda params, mask: perturb(
            params, jax.random.key(section.training.seed), 1.0, kind,
            specs=subject.model.specs, mask=mask,
        )
    )  # fmt: skip
    return jax.device_get(change(subject.params, core))


def _rows(members: Sequence[dict[str, Sums]]) -> list[dict[str, Any]]:
    """A row a member: losses, and differences to the last member, by source."""
    rows = []
    for m, sums in enumerate(members):
        row = {"member": m}
        for source, of_source in sums.items():
            found = summarise(*of_source)
            losses_D, last_D = of_source.losses_MD[0], members[-1][source].losses_MD[0]
            difference, error = paired(losses_D, last_D, of_source.counts_D)
            row |= {
                f"{source}/loss": float(found["loss"][0]),
                f"{source}/error": float(found["standard_error"][0]),
                f"{source}/difference": difference,
                f"{source}/difference_error": error,
                f"{source}/documents": int(np.count_nonzero(of_source.counts_D)),
            }
        rows.append(row)
    return rows


def blocks(
    result: Result, config: ConfigDict, before: dict[str, float], folder: Path
) -> list[str | Table | Figure]:
    """The chapter; `before` is the loss of the checkpoint as it is, by source."""
    section, training = config.recover, config.recover.training
    language = label(section.language)
    table = _table(result, before)
    write_csv(folder / "recover.csv", table)
    _draw(result, before, language, folder / "recover.png")
    return [
        "## Freeze and recover",
        f"The core ({section.rule} rule, {percent(section.share)} of each tensor of the blocks) "
        f"is perturbed (`{section.operation}`) or left, and the model trained on {language} for "
        f"{training.steps} steps of {training.batch_size} windows (AdamW, learning rate "
        f"{training.learning_rate:g}, {training.schedule}), once with the core frozen and once "
        "with nothing frozen, on the same batches. One seed; the errors are over documents.",
        Figure(
            folder / "recover.png",
            f"Loss on {language} and English along the training; bars: one standard error over "
            "documents; dotted: before anything was done.",
        ),
        table,
    ]


def _table(result: Result, before: dict[str, float]) -> Table:
    rows = []
    for start, measured in result.items():
        last = max(row["step"] for row in measured)
        at = {(row["step"], row["member"]): row for row in measured if row["step"] in (0, last)}
        for source, loss in before.items():
            frozen, free = at[last, 0], at[last, 1]
            difference = Estimate(
                frozen[f"{source}/difference"],
                frozen[f"{source}/difference_error"],
                frozen[f"{source}/documents"],
            )
            rows.append(
                (STARTS[start], source, loss, at[0, 1][f"{source}/loss"],
                 frozen[f"{source}/loss"], free[f"{source}/loss"], difference)
            )  # fmt: skip
    header = ("start", "text", "as it is", "at the start", *MEMBERS, "frozen - free")
    return Table(
        header, rows, "Loss in nats per token at the end; the difference with 95 % interval."
    )


def _draw(result: Result, before: dict[str, float], language: str, path: Path) -> None:
    with style():
        fig = MatplotlibFigure(figsize=(9, 3.8))
        axes = fig.subplots(1, len(result), squeeze=False)[0]
        for ax, (start, rows) in zip(axes, result.items(), strict=True):
            for colour, source in zip(COLOURS, (language, ENGLISH), strict=False):
                for member, line in zip(range(len(MEMBERS)), ("-", "--"), strict=True):
                    own = [row for row in rows if row["member"] == member]
                    ax.errorbar(
                        [row["step"] for row in own],
                        [row[f"{source}/loss"] for row in own],
                        [row[f"{source}/error"] for row in own],
                        color=colour,
                        linestyle=line,
                        marker="o",
                        markersize=3,
                        capsize=2,
                        label=f"{source}, {MEMBERS[member]}",
                    )
                ax.axhline(before[source], color=colour, linestyle=":", lw=0.9)
            ax.set_title(STARTS[start])
            ax.set_xlabel(f"steps of training on {language}")
        axes[0].set_ylabel("loss on held-out text, nats per token")
        axes[-1].legend()
        savefig(fig, path)
