"""The command of a study: its flags, its report, and what it says when a signal stops it."""

import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from lmnoise import config as configs
from lmnoise import storage
from lmnoise.errors import Stopped


def main(
    name: str,
    run: Callable[[ConfigDict, Path, Path, str], Path],
    sections: Collection[str],
) -> int:
    """Runs the study `experiments/<name>.py` as the command line says; its exit status.

    Args:
      name: of its file.
      run: `run(config, workdir, folder of the report, command) -> report.md`; it may raise
        `Stopped`.
      sections: keys that its config must have.

    Raises:
      UserError: see `lmnoise.config.parse`, or a work directory that is not on this machine.
    """
    configs.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the stored results", required=True)
    flags.DEFINE_string("report", None, "folder of the report; by default <workdir>/report")
    values = configs.parse(sections=sections)
    workdir = storage.local_folder(values.workdir, "--workdir")
    command = f"python experiments/{name}.py {shlex.join(sys.argv[1:])}"
    try:
        report = run(values.config, workdir, Path(values.report or workdir / "report"), command)
    except Stopped:
        print(f"stopped and saved in {workdir}; the same command resumes the study")
        return 0
    print(f"report: {report} and {report.with_suffix('.html')}")
    return 0
