"""Measures checkpoints: language, fragility, regions, single parameters, fine-tuning.

    python -m lmnoise.analyze perturb --checkpoint=smollm2 --config=configs/analyze.py:laptop

The first word is the analysis: language, perturb, regions, parameters or finetune; or features,
which writes those of labelled texts as .npz files; or synthetic, which opens no checkpoint and
says what a share of one corpus costs models that are trained on another (`--size`, see
`lmnoise.analyze.synthetic`). `--checkpoint` is a ready-made name, a Hugging Face folder, a .gguf
file or a run of ours (see `lmnoise.checkpoints.open_checkpoint`), and for features also minilm;
given several times, or as the folder of a run's checkpoints, it is a series, and the curves run
along it. Results are stored one by one in `--workdir`: the same command goes on after a stop or a
kill.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

from absl import flags

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.analyze import (
    features,
    finetune,
    language,
    parameters,
    perturb,
    regions,
    series,
    synthetic,
)
from lmnoise.analyze.subject import open_subject
from lmnoise.checkpoints import expand
from lmnoise.errors import Stopped, UserError
from lmnoise.report import provenance, write_report

ANALYSES = {
    "language": language,
    "perturb": perturb,
    "regions": regions,
    "parameters": parameters,
    "finetune": finetune,
}
FEATURES = "features"
SYNTHETIC = "synthetic"
SECTIONS = ("data", "model", "mesh", "continuation", *ANALYSES, FEATURES)


def run(name: str, specs: list[str], config, workdir: Path, folder: Path, command: str) -> Path:
    """Runs one analysis on every checkpoint and writes the report.

    Returns:
      The path of report.md in `folder`.
    """
    analysis = ANALYSES[name]
    entries, programs = [], {}
    for spec in specs:
        subject = open_subject(spec, config, analysis.names(config), config[name].windows, workdir)
        subject = dataclasses.replace(subject, programs=programs)
        entries.append(series.entry(subject, analysis.measure(subject, config)))
        del subject  # before the next one is opened
    entries = series.told_apart(entries)
    folder.mkdir(parents=True, exist_ok=True)
    section = config[name]
    origin = provenance(config, section.get("seeds", (section.seed,) if "seed" in section else ()))
    chapters = [f"Made by `{command}`.", series.header(entries)]
    chapters += analysis.blocks(entries, config, folder)
    write_report(folder, analysis.TITLE, chapters, origin, config)
    return folder / "report.md"


def main() -> int:
    name, *rest = sys.argv[1:] or [""]
    if name == SYNTHETIC:
        return synthetic.main(rest)
    if name not in (*ANALYSES, FEATURES):
        known = ", ".join((*ANALYSES, FEATURES, SYNTHETIC))
        raise UserError(
            f"the first word must be one of {known}, not {name!r}: "
            f"python -m lmnoise.analyze {next(iter(ANALYSES))} --checkpoint=smollm2 "
            "--config=configs/analyze.py:laptop"
        )
    configs.define_config_flag()
    flags.DEFINE_multi_string("checkpoint", None, "what to analyse; several make a series")
    flags.mark_flag_as_required("checkpoint")
    flags.DEFINE_string("workdir", "runs/analyze", "folder of the stored results")
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/<analysis>")
    values = configs.parse([sys.argv[0], *rest], sections=SECTIONS)
    workdir = storage.local_folder(values.workdir, "--workdir")
    specs = [spec for given in values.checkpoint for spec in expand(given)]
    command = f"python -m lmnoise.analyze {shlex.join(sys.argv[1:])}"
    folder = Path(values.report or workdir / name)
    try:
        if name == FEATURES:
            report = features.run(specs, values.config, workdir, folder, command)
        else:
            report = run(name, specs, values.config, workdir, folder, command)
    except Stopped:
        print(f"stopped and saved in {workdir}; the same command goes on")
        return 0
    print(f"report: {report} and {report.with_suffix('.html')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
