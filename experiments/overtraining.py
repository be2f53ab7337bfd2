"""Study: over-training of language models (arXiv 2503.19206).

    python experiments/overtraining.py --config=configs/overtraining.py:laptop \\
        --workdir=runs/overtraining

Pre-trains several token budgets, each annealed to zero, and one run whose checkpoints are kept;
adds noise to the weights of every model and fine-tunes it over rates and cures; writes a report.
Results are stored one by one: the same command goes on after a stop or a kill.

Several processes pre-train as one, into a disk that they share, and end there: noise and
fine-tuning are measured by one process, which the same command starts afterwards, on all devices
of one machine.
"""

import shlex
import sys
from pathlib import Path

import jax
import overtraining_models_linear as linear
import overtraining_models_noise as noise
import overtraining_models_report as report
import overtraining_models_training as training
import overtraining_models_tuning as tuning
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from noise import prepare_all

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.errors import Stopped, UserError
from lmnoise.training import mesh as meshes
from lmnoise.training import processes

SECTIONS = (*configs.default_config(), "one_run", "perturb", "tune", "linear")


def run(config: ConfigDict, workdir: epath.Path, folder: Path, command: str) -> Path | None:
    """Measures everything and writes the report; the path of report.md.

    None if several processes pre-trained: they only do that.

    Raises:
      Stopped: a signal came while a model was trained; what was reached is saved.
      UserError: a value of the config that the study cannot use.
    """
    check(config)
    with processes.joined():
        several = jax.process_count() > 1
        mesh = None if several else _mesh(config)
        prepare_all({"pre-training": training.training_config(config)})
        training.pre_train(config, workdir)
    if several:
        return None
    trained = training.open_all(config, workdir)
    # The report is on a local disk; what it is made from lies beside it where the runs do not.
    place = folder if storage.is_remote(workdir) else Path(workdir)
    tasks = tuning.open_tasks(config)
    model = trained[0].checkpoint.model
    curves = noise.measure(trained, model, config, mesh, place)
    tuned = [tuning.measure(task, trained, model, config, mesh, place) for task in tasks]
    return report.write(folder, trained, curves, tuned, config, command)


def check(config: ConfigDict) -> None:
    """Refuses what would fail after minutes of work."""
    training.check(config)
    noise.check(config)
    tuning.check(config)
    linear.check(config)


def _mesh(config: ConfigDict) -> Mesh:
    """All devices; rows of noise and fine-tuning go over them."""
    mesh = meshes.make_mesh()
    for section in ("train", "tune"):
        if config[section].batch_size % mesh.size:
            raise UserError(
                f"config.{section}.batch_size is {config[section].batch_size}, which the "
                f"{mesh.size} devices do not divide: change it"
            )
    return mesh


def main() -> int:
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the runs and results", required=True)
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/report")
    values = configs.parse(sections=SECTIONS)
    workdir = storage.place(values.workdir)
    folder = storage.local_folder(values.report or workdir / "report", "--report")
    command = f"python experiments/overtraining.py {shlex.join(sys.argv[1:])}"
    try:
        path = run(values.config, workdir, folder, command)
    except Stopped:
        if jax.process_index() == 0:
            print(f"stopped and saved in {workdir}; the same command resumes the study")
        return 0
    if path is None:
        if jax.process_index() == 0:
            print(f"pre-trained in {workdir}; the same command as one process measures and reports")
        return 0
    print(f"report: {path} and {path.with_suffix('.html')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
