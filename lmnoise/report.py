"""A result as a folder: tables, figures, one report in Markdown and HTML, and how it was made.

Nothing that is written names the machine's folders or its host, so a result can be committed.
"""

import contextlib
import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MatplotlibFigure
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from lmnoise.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
# Colours of Okabe and Ito: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


class Estimate(NamedTuple):
    """A mean over `n` independent values with its standard error, both in the values' unit."""

    mean: float
    standard_error: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of Student's t with n - 1 degrees of freedom; NaN for n = 1."""
        if self.n < 2:
            return math.nan
        return float(stdtrit(self.n - 1, 0.975) * self.standard_error)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return self.mean - self.half_width, self.mean + self.half_width

    def text(self, digits: int = 4) -> str:
        """`mean ± half width of the 95 % interval`, to `digits` decimals."""
        if self.n < 2:
            return f"{self.mean:.{digits}f} (n = 1)"
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def mean_and_error(values: ArrayLike) -> Estimate:
    """Mean and standard error of one value a run or a seed, `values` of shape [n].

    The standard error is NaN for n = 1. Raises ValueError if `values` is empty or not a vector.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values must be a vector that is not empty, got shape {values.shape}")
    n = values.size
    error = values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(values.mean()), float(error), n)


def paired_difference(values: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Mean of `values - baseline` with the standard error of the paired differences.

    Entry i of both must share what is varied at random (the seed), so that it cancels. Raises
    ValueError if the shapes differ.
    """
    values, baseline = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if values.shape != baseline.shape:
        raise ValueError(f"values {values.shape} and baseline {baseline.shape} are not paired")
    return mean_and_error(values - baseline)


@dataclass(frozen=True)
class Table:
    """Rows under a header; cells are text, numbers or `Estimate`s. `caption` is Markdown."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"{len(row)} cells under {len(self.header)} columns: {row}")

    def markdown(self) -> str:
        """The table in Markdown, numbers to four significant digits and aligned to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        numeric = [all(not isinstance(cell, str) for cell in column) for column in columns]
        lines = [
            [_escape_cell(name) for name in self.header],
            ["---:" if right else "---" for right in numeric],
            *([_escape_cell(_format_cell(cell)) for cell in row] for row in self.rows),
        ]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{text}\n\n{self.caption}".rstrip()


@dataclass(frozen=True)
class Figure:
    """An image file that `savefig` wrote inside the report's folder."""

    path: Path
    caption: str


def write_csv(path: Path, table: Table) -> None:
    """Writes `table` as CSV with full precision; an `Estimate` becomes three columns."""
    split = [
        any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.header))
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = [
        (name, f"{name} standard error", f"{name} n") if three else (name,)
        for name, three in zip(table.header, split, strict=True)
    ]
    writer.writerow([name for names in header for name in names])
    for row in table.rows:
        cells = [
            (cell if isinstance(cell, Estimate) else (cell, "", "")) if three else (cell,)
            for cell, three in zip(row, split, strict=True)
        ]
        writer.writerow([cell for several in cells for cell in several])
    _write(path, buffer.getvalue().encode())


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Inside, figures get the project's fonts, colours, grid and constrained layout.

    `matplotlib.figure.Figure()` is enough to make one; neither pyplot nor a display is needed.
    """
    parameters = {
        "axes.grid": True,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.figsize": (6.4, 4.0),
        "font.size": 10,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
    with matplotlib.rc_context(parameters):
        yield


def savefig(fig: MatplotlibFigure, path: Path) -> None:
    """Writes `fig` as PNG of 150 dots per inch without a display."""
    buffer = io.BytesIO()
    FigureCanvasAgg(fig)
    fig.savefig(buffer, format="png", dpi=150, facecolor="white")
    _write(path, buffer.getvalue())


def provenance(config: Any, seeds: Sequence[int]) -> dict[str, Any]:
    """Where a result comes from: code, configuration, versions, machine; no paths, no host name.

    Args:
        config: the configuration as run, an ml_collections.ConfigDict or a nested dict.
        seeds: every seed that the result depends on.

    Returns:
        A JSON-able dict. `commit` and `dirty` are None outside a git checkout; `dirty` says
        whether Python files or requirements.lock differ from the commit.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_commit(),
        "config_sha256": hashlib.sha256(_json(config).encode()).hexdigest(),
        "seeds": [int(seed) for seed in seeds],
        "versions": {"python": platform.python_version()} | _versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu_model(),
            "cores": _cores(),
            "devices": _devices(),
        },
    }


def write_report(
    folder: Path,
    title: str,
    blocks: Sequence[str | Table | Figure],
    provenance: Mapping[str, Any],
    config: Any,
) -> None:
    """Writes report.md, report.html, config.json and provenance.json into `folder`.

    Args:
        folder: made if missing; files of these four names are replaced, each in one step.
        title: plain text.
        blocks: Markdown text, tables and figures in reading order.
        provenance: what the function of that name returned.
        config: the configuration as run.

    Raises:
        ValueError: a figure is missing or not inside `folder`.
        UserError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the report")
    parts = [f"# {title}", *(_render(block, folder) for block in blocks), _origin(provenance)]
    markdown = _portable("\n\n".join(parts)) + "\n"
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _json(config).encode())
    _write(folder / "provenance.json", _json(provenance).encode())
    _write(folder / "report.md", markdown.encode())
    page = _PAGE.substitute(title=escape(title), body=body)
    _write(folder / "report.html", page.encode())


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .75rem; }
img { max-width: 100%; }
code, pre { font-size: .9em; background: #f4f4f4; }
pre { padding: .75rem; overflow-x: auto; }
</style>
</head>
<body>
$body</body>
</html>
""")


def _render(block: str | Table | Figure, folder: Path) -> str:
    if isinstance(block, str):
        return block.strip()
    if isinstance(block, Table):
        return block.markdown()
    path = Path(os.path.abspath(block.path))
    if not path.is_file() or not path.is_relative_to(os.path.abspath(folder)):
        raise ValueError(f"figure {block.path} is not a file inside {folder}")
    relative = path.relative_to(os.path.abspath(folder)).as_posix()
    alternative = re.sub(r"[\[\]\\*_`$]", "", block.caption)
    return f"![{alternative}](<{relative}>)\n\n*{block.caption}*"


def _origin(provenance: Mapping[str, Any]) -> str:
    machine, versions = provenance["machine"], provenance["versions"]
    commit = provenance["commit"] or "outside a git checkout"
    rows = [
        ("commit", commit + (" with uncommitted changes" if provenance["dirty"] else "")),
        ("date", provenance["date"]),
        ("seeds", ", ".join(map(str, provenance["seeds"]))),
        ("machine", f"{machine['system']}, {machine['cpu']}, {machine['cores']} cores"),
        ("devices", ", ".join(f"{n} x {kind}" for kind, n in machine["devices"].items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    links = "Configuration: [config.json](config.json). All of this: "
    return "\n\n".join(
        [
            "## How this was obtained",
            Table(("what", "value"), rows).markdown(),
            links + "[provenance.json](provenance.json).",
        ]
    )


def _format_cell(cell: Any) -> str:
    if isinstance(cell, Estimate):
        return cell.text()
    if isinstance(cell, float | np.floating):
        return f"{cell:.4g}"
    return str(cell)


def _escape_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _git(*arguments: str) -> str | None:
    """What a git command says about the folder of this file, or None if it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _commit() -> dict[str, Any]:
    # An installed copy may lie in the checkout of another project, which does not track it.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    commit = _git("rev-parse", "HEAD") if tracked else None
    if commit is None:
        return {"commit": None, "dirty": None}
    sources = (":(top)*.py", ":(top)requirements.lock")
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "-uall", "--", *sources))}


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _devices() -> dict[str, int]:
    kinds = [device.device_kind for device in jax.devices()]
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _json(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """`value` in JSON's types, without the machine's paths; what JSON lacks becomes text."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return _cut(str(value)) if os.path.isabs(str(value)) else _portable(str(value))


def _portable(text: str) -> str:
    """`text` with the absolute paths in it cut, but not the paths of web addresses."""
    text = text.replace("file://", "")
    return re.sub(r"(?<![\w.~:/<\\-])/(?:[\w.+@~-]+/)+[\w.+@~-]*", lambda at: _cut(at[0]), text)


def _cut(path: str) -> str:
    """An absolute path relative to the working folder if inside it, else its last name only."""
    here = Path.cwd()
    if here != Path("/") and Path(path).is_relative_to(here):
        return str(Path(path).relative_to(here))
    return "~" if Path(path) == Path.home() else f"…/{Path(path).name}"


def _write(path: Path, content: bytes) -> None:
    """Replaces the file in one step, so that a killed run leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
