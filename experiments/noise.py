"""Study: what random tokens in pre-training cost (arXiv 2502.06604).

    python experiments/noise.py --config=configs/noise.py:demo --workdir=runs/noise-demo

Prepares the corpora, trains every arm of the config (or resumes it), and writes a report. The
same command goes on after a stop or a kill.
"""

import sys
from pathlib import Path

import noise_report
from absl import flags
from ml_collections import ConfigDict

from lmnoise import cli
from lmnoise import config as configs
from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.report import provenance
from lmnoise.train import train
from lmnoise.training.metrics import read_rows


def arms(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of each arm: `tokens` is the study's own, the others change it."""
    base = ConfigDict({k: v for k, v in config.to_dict().items() if k != "arms"})
    named = {"tokens": base.lock()}
    for name, changes in config.arms.items():
        named[name] = ConfigDict(base.to_dict()).lock()
        try:
            named[name].update(changes)
        except (KeyError, TypeError) as error:
            raise UserError(f"config.arms.{name} does not fit the config: {error}") from error
    return named


def corpora(config: ConfigDict) -> list[str]:
    """Every corpus that an arm reads, without repetition."""
    names = [config.data.source, config.noise.source, *config.data.evaluate]
    return [name for name in dict.fromkeys(names) if name]


def run_arm(config: ConfigDict, workdir: Path, name: str) -> noise_report.Arm | None:
    """Prepares, trains and reads back one arm; None if a signal stopped it."""
    for corpus in corpora(config):
        prepare(corpus, data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)
    run, states = train(config, workdir, title=name)
    if states is None:
        return None
    final = [row for row in read_rows(workdir) if _is_final(row, config.train.steps)]
    measured = {row["member"]: row for row in final}
    return noise_report.Arm(
        name=name,
        config=config,
        members=run.members,
        parameters=run.model.parameter_count,
        vocab_size=run.data.vocab_size,
        rows=[measured[m] for m in range(len(run.members))],
    )


def _is_final(row: dict, steps: int) -> bool:
    return row["step"] == steps and any(key.startswith("eval/") for key in row)


def main() -> int:
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the runs", required=True)
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/report")
    values = configs.parse()
    workdir = Path(values.workdir)
    folder = Path(values.report or workdir / "report")
    done = []
    for name, config in arms(values.config).items():
        arm = run_arm(config, workdir / name, name)
        if arm is None:
            print(f"stopped and saved in {workdir}; the same command resumes the study")
            return 0
        done.append(arm)
    origin = provenance(values.config, sorted({m["seed"] for a in done for m in a.members}))
    command = f"python experiments/noise.py {' '.join(sys.argv[1:])}"
    figure = noise_report.write(folder, done, origin, values.config, command)
    print(f"report: {folder / 'report.md'} and {folder / 'report.html'}\nfigure: {figure}")
    return 0


if __name__ == "__main__":
    cli.run(main)
