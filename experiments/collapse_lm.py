"""Study: what a share of synthetic text does to scaling, and what helps (arXiv 2410.04840).

    python experiments/collapse_lm.py --config=configs/collapse_lm.py:laptop \\
        --workdir=runs/collapse-lm

Trains a generator for each seed, synthesises a corpus of each, trains models on mixtures of real
and synthetic text of every share and size, fits scaling curves with floors, compares models of
other depths and widths, tries weights, relabelling and generations, and writes a report. Whatever
is trained, synthesised or measured is stored: the same command goes on after a stop or a kill.
"""

import functools
from pathlib import Path

import collapse_lm_generations as generations
import collapse_lm_head as head
import collapse_lm_iterate as iterate
import collapse_lm_report as report
import collapse_lm_runs as runs
import collapse_lm_sizes as sizes
import collapse_lm_verdict as verdict
import collapse_lm_weights as weights
import study
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.report import provenance, write_report

# Each has `check(config)`, `run(config, workdir, study) -> result`, `seen(result, config)`, the
# sentences for the head of the report, and `blocks(result, config, folder)`, its chapter.
CHAPTERS = (sizes, weights, iterate, generations)
SECTIONS = (*configs.default_config(), "generator", "recipe", "fits", "sizes", "weights", "iterate",
            "generations")  # fmt: skip


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Measures everything and writes the report; the path of report.md.

    Raises:
      Stopped: a signal came; what was reached is saved.
      UserError: a key has no sensible value, or data cannot be had.
    """
    check(config)
    found = runs.measure(config, workdir)
    results = [(chapter, chapter.run(config, workdir, found)) for chapter in CHAPTERS]
    folder.mkdir(parents=True, exist_ok=True)
    grid = verdict.analyse(found, config)
    seen = [line for chapter, result in results for line in chapter.seen(result, config)]
    blocks = [*head.head(grid, config, seen), *report.blocks(grid, config, folder)]
    for chapter, result in results:
        blocks += chapter.blocks(result, config, folder)
    blocks.append(f"## Run it\n\n```bash\n{command}\n```")
    title = "Synthetic text in the training of language models: is there a floor?"
    write_report(folder, title, blocks, provenance(config, runs.seeds(config)), config)
    return folder / "report.md"


def check(config: ConfigDict) -> None:
    """Raises a UserError for a value that would only fail after minutes."""
    for part in (runs, *CHAPTERS):
        part.check(config)


if __name__ == "__main__":
    cli.run(functools.partial(study.main, "collapse_lm", run, SECTIONS))
