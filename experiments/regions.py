"""Study: which parameters carry the languages (arXiv 2310.14928, 2402.14700, 2411.07191).

    python experiments/regions.py --config=configs/regions.py:laptop --workdir=runs/regions-laptop

Finds the regions of a checkpoint by both rules, removes them, trains with the core frozen, breaks
single parameters, and writes a report. Results are stored one by one: the same command goes on
after a stop or a kill.
"""

import functools
from pathlib import Path
from typing import Any

import regions_recover
import regions_verdict
import study
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise.analyze import parameters, regions, series
from lmnoise.analyze.subject import Subject, open_subject
from lmnoise.errors import UserError
from lmnoise.report import provenance, write_report

SECTIONS = ("checkpoint", "rules", "recover", "data", "model", "mesh", "continuation", "regions",
            "parameters")  # fmt: skip


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Measures everything and writes the report; the path of report.md.

    Raises:
      Stopped: a signal came while a model was trained; what was found is stored.
    """
    if config.recover.rule not in config.rules:
        raise UserError(f"config.recover.rule must be one of config.rules, {config.rules}")
    folder.mkdir(parents=True, exist_ok=True)
    subject = open_subject(
        config.checkpoint, config, config.regions.sources, config.regions.windows, workdir
    )
    removed = {}
    for rule in config.rules:
        of_rule = config.copy_and_resolve_references()
        of_rule.regions.rule = rule
        removed[rule] = regions.measure(subject, of_rule)
    recovered = regions_recover.measure(subject, _own(subject, config), config)
    header = series.header([series.entry(subject, None)])
    chapters = _regions(subject.name, removed, recovered, config, folder)
    del subject
    single = _parameters(config, workdir, folder)
    verdict = regions_verdict.blocks(removed, recovered, config)
    origin = provenance(config, config.regions.seeds)
    blocks = [f"Made by `{command}`.", header, *verdict, *chapters, *single]
    write_report(folder, "Which parameters carry the languages", blocks, origin, config)
    return folder / "report.md"


def _own(subject: Subject, config: ConfigDict) -> regions.Regions:
    return regions.Regions(subject, config.regions, config.recover.rule)


def _regions(
    name: str, removed: dict[str, Any], recovered: Any, config: ConfigDict, folder: Path
) -> list[Any]:
    blocks = []
    for rule, found in removed.items():
        of_rule = config.copy_and_resolve_references()
        of_rule.regions.rule = rule
        blocks += regions.regions_report.section(name, found, of_rule.regions, folder)
    before = next(iter(removed.values()))["loss"]
    return blocks + regions_recover.blocks(recovered, config, before, folder)


def _parameters(config: ConfigDict, workdir: Path, folder: Path) -> list[Any]:
    subject = open_subject(
        config.checkpoint, config, parameters.names(config), config.parameters.windows, workdir
    )
    entry = series.entry(subject, parameters.measure(subject, config))
    return ["# Single parameters", *parameters.blocks([entry], config, folder)]


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "regions", run, SECTIONS))
