"""Drift check: what a share of synthetic text costs, for a user's own two corpora.

Small models are trained on mixtures of several shares and sizes; see `lmnoise.analyze.mixtures`.
Not one of the analyses of a checkpoint: it opens none.
"""

import shlex
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from lmnoise import config as configs
from lmnoise import storage
from lmnoise.analyze import synthetic_presets, synthetic_report
from lmnoise.analyze.mixtures import train_mixtures
from lmnoise.errors import Stopped, UserError
from lmnoise.report import provenance, write_report

TITLE = "What a share of synthetic text costs"
SECTIONS = (*configs.default_config(), "fits")


def main(arguments: list[str]) -> int:
    """The command `python -m lmnoise.analyze synthetic`; `arguments` follow that word."""
    named = _with_config(arguments)
    configs.define_config_flag()
    flags.DEFINE_string("real", None, "the real corpus", required=True)
    flags.DEFINE_string("synthetic", None, "the synthetic corpus", required=True)
    flags.DEFINE_float("cost", 5.0, "per cent of the loss that synthetic text may cost", 0.0)
    flags.DEFINE_string("workdir", "runs/synthetic", "folder of the run")
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/report")
    values = configs.parse(["synthetic", *named], sections=SECTIONS)
    workdir = storage.local_folder(values.workdir, "--workdir")
    config = values.config
    config.data.source, config.noise.source = values.real, values.synthetic
    config.data.tokenizer = config.data.tokenizer.replace(synthetic_presets.REAL, values.real)
    command = f"python -m lmnoise.analyze synthetic {shlex.join(arguments)}"
    try:
        folder = Path(values.report or workdir / "report")
        report = run(config, workdir, folder, values.cost, command)
    except Stopped:
        print(f"stopped and saved in {workdir}; the same command goes on")
        return 0
    print(f"report: {report} and {report.with_suffix('.html')}")
    return 0


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments with `--config` in place of `--size`."""
    known = ", ".join(synthetic_presets.PRESETS)
    sizes = [a.partition("=")[2] for a in arguments if a.startswith("--size=")]
    rest = [a for a in arguments if not a.startswith("--size=")]
    if len(sizes) + any(a.startswith("--config=") for a in rest) != 1:
        raise UserError(
            f"give either one --size of {known}, or --config=FILE:PRESET such as "
            "configs/synthetic.py:tiny"
        )
    if not sizes:
        return rest
    if sizes[0] not in synthetic_presets.PRESETS:
        raise UserError(f"--size={sizes[0]} is not known: choose one of {known}")
    return [f"--config={synthetic_presets.__file__}:{sizes[0]}", *rest]


def run(config: ConfigDict, workdir: Path, folder: Path, cost: float, command: str) -> Path:
    """Trains the mixtures of a config and writes the report.

    Args:
      config: of `synthetic_presets`, with `data.source` and `noise.source`.
      workdir: of the run, which the same call goes on with.
      folder: of the report.
      cost: per cent of the loss on real text that synthetic text may cost.
      command: what the report says that it was made by.

    Returns:
      The path of report.md in `folder`.

    Raises:
      Stopped: a signal came; the run is saved.
      UserError: shares, sizes or seeds that cannot be compared, or corpora that cannot be read.
    """
    _check(config)
    own = configs.default_config()
    own.update({name: config[name].to_dict() for name in own})
    curves = train_mixtures(own, workdir, "mixtures")
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [f"Made by `{command}`.", *synthetic_report.blocks(curves, config, cost, folder)]
    write_report(folder, TITLE, blocks, provenance(config, curves.seeds), config)
    return folder / "report.md"


def _check(config: ConfigDict) -> None:
    """Refuses axes from which the report could not answer; the rest `train_mixtures` checks."""
    members = config.members
    if max(members.rate) != 1 or len(set(members.rate)) < 3:
        raise UserError(
            "config.members.rate must hold 0, 1 (which measures the quality) and shares between "
            f"them, not {members.rate}"
        )
    if len(set(members.duration)) < 3:
        raise UserError(
            f"config.members.duration must hold at least 3 sizes, not {members.duration}: curves "
            "are fitted through them"
        )
