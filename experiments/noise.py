"""Study: what random tokens in pre-training cost (arXiv 2502.06604).

    python experiments/noise.py --config=configs/noise.py:demo --workdir=runs/noise-demo

Prepares the corpora, trains every arm of the config (or resumes it), and writes a report. The
same command goes on after a stop or a kill.
"""

import shlex
import sys
from itertools import takewhile

import jax
import noise_report
import orbax.checkpoint as ocp
from absl import flags
from etils import epath
from ml_collections import ConfigDict
from noise_arm import Arm

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.assemble import noise_sources_of
from lmnoise.data.packing import prepare
from lmnoise.errors import UserError
from lmnoise.report import provenance
from lmnoise.train import members_of, train
from lmnoise.training import processes
from lmnoise.training.metrics import read_rows

AXES = ("seed", "kind", "rate")
# Tokenising C4 takes hours. If process 0 fails or is lost, the others end at once all the same.
_PATIENCE_MS = 7 * 24 * 3600 * 1000


def arms(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of each arm: `tokens` is the study's own, the others change it.

    Raises:
      UserError: a config that is not of this study, or an arm that its report could not compare.
    """
    if "arms" not in config:
        raise UserError("this config has no arms: use one of configs/noise.py, such as its :demo")
    base = ConfigDict({k: v for k, v in config.to_dict().items() if k != "arms"})
    named = {"tokens": base.lock()}
    for name, changes in config.arms.items():
        named[name] = ConfigDict(base.to_dict()).lock()
        try:
            named[name].update(changes)
        except (KeyError, TypeError) as error:
            raise UserError(f"config.arms.{name} does not fit the config: {error}") from error
    for name, arm in named.items():
        _check(name, arm)
    return named


def _check(name: str, config: ConfigDict) -> None:
    """The report pairs members by seed with the one at rate 0 and reads the corpus's own loss."""
    rates = {member["rate"] for member in members_of(config)}
    if 0 not in rates or len(rates) < 2:
        raise UserError(f"config.members.rate of the arm {name} needs 0 and a rate above 0")
    for axis, values in config.members.items():
        if len(set(values)) < len(values) or (axis not in AXES and len(values) > 1):
            raise UserError(
                f"config.members.{axis} of the arm {name} is {values}: the study compares seeds, "
                "kinds and rates, each once; run the others one by one"
            )
    if config.data.source not in config.data.evaluate:
        raise UserError(
            f"config.data.evaluate of the arm {name} must contain config.data.source, "
            f"{config.data.source!r}: its loss is what noise is held against"
        )


def prepare_all(configs_: dict[str, ConfigDict]) -> None:
    """Prepares every corpus that an arm reads, so that nothing is missing after hours of work.

    In an object store process 0 does so while the others wait; they fetch what they read.
    """
    for config in configs_.values():
        if storage.is_remote(config.data.data_dir) and jax.process_index() > 0:
            continue
        noise = noise_sources_of(config, list(config.members.seed))
        names = [config.data.source, *noise, *config.data.evaluate]
        for name in dict.fromkeys(name for name in names if name):
            prepare(name, data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)
    # Through the processes' common service: a collective of the devices gives up sooner.
    ocp.multihost.get_barrier_sync_fn()(key="prepared", timeout_ms=_PATIENCE_MS)


def run_arm(config: ConfigDict, workdir: epath.Path, name: str) -> Arm | None:
    """Trains and reads back one arm; None if a signal stopped it."""
    run, states = train(config, workdir, title=name)
    if states is None:
        return None
    final = [row for row in read_rows(workdir) if _is_final(row, config.train.steps)]
    measured = {row["member"]: row for row in final}
    return Arm(
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
    workdir = storage.place(values.workdir)
    folder = storage.local_folder(values.report or workdir / "report", "--report")
    named = arms(values.config)
    with processes.joined():
        prepare_all(named)
        trained = (run_arm(config, workdir / name, name) for name, config in named.items())
        done = list(takewhile(bool, trained))
    if jax.process_index() > 0:
        return 0
    if len(done) < len(named):
        print(f"stopped and saved in {workdir}; the same command resumes the study")
        return 0
    origin = provenance(values.config, sorted({m["seed"] for a in done for m in a.members}))
    command = f"python experiments/noise.py {shlex.join(sys.argv[1:])}"
    figure = noise_report.write(folder, done, origin, values.config, command)
    print(f"report: {folder / 'report.md'} and {folder / 'report.html'}\nfigure: {figure}")
    return 0


if __name__ == "__main__":
    cli.run(main)
