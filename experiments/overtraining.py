"""Study: over-training of language models (arXiv 2503.19206).

    python experiments/overtraining.py --config=configs/overtraining.py:laptop \\
        --workdir=runs/overtraining

Pre-trains several token budgets, each annealed to zero, and one run whose checkpoints are kept;
adds noise to the weights of every model and fine-tunes it over rates and cures; writes a report.
Results are stored one by one: the same command goes on after a stop or a kill.
"""

import shlex
import sys
from pathlib import Path

import overtraining_models_linear as linear
import overtraining_models_noise as noise
import overtraining_models_report as report
import overtraining_models_training as training
import overtraining_models_tuning as tuning
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.data.packing import prepare
from lmnoise.errors import Stopped, UserError
from lmnoise.training import mesh as meshes

SECTIONS = (*configs.default_config(), "one_run", "perturb", "tune", "linear")


def run(config: ConfigDict, workdir: Path, folder: Path, command: str) -> Path:
    """Measures everything and writes the report; the path of report.md.

    Raises:
      Stopped: a signal came while a model was trained; what was reached is saved.
      UserError: a value of the config that the study cannot use.
    """
    check(config)
    mesh = _mesh(config)
    for name in dict.fromkeys((config.data.source, *config.data.evaluate)):
        prepare(name, data_dir=config.data.data_dir, tokenizer=config.data.tokenizer)
    tasks = tuning.open_tasks(config)
    trained = training.pre_train(config, workdir)
    model = trained[0].checkpoint.model
    curves = noise.measure(trained, model, config, mesh, workdir)
    tuned = [tuning.measure(task, trained, model, config, mesh, workdir) for task in tasks]
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
    workdir = storage.local_folder(values.workdir, "--workdir")
    command = f"python experiments/overtraining.py {shlex.join(sys.argv[1:])}"
    try:
        path = run(values.config, workdir, Path(values.report or workdir / "report"), command)
    except Stopped:
        print(f"stopped and saved in {workdir}; the same command resumes the study")
        return 0
    print(f"report: {path} and {path.with_suffix('.html')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
