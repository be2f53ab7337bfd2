"""Perplexity by corpus and language, of one checkpoint or along a series."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.analyze.series import Entry, along
from lmnoise.analyze.subject import Subject, metrics
from lmnoise.report import Figure, Table, savefig, style, write_csv

TITLE = "Perplexity by corpus and language"

# {source: {metric: value}}
type Result = dict[str, dict[str, float]]


def names(config: ConfigDict) -> tuple[str, ...]:
    """The corpora that are scored."""
    return config.language.sources


def measure(subject: Subject, config: ConfigDict) -> Result:
    """Loss, its standard error over documents, perplexity and bits per byte of every corpus."""
    del config
    found = metrics(subject.baseline())
    return {
        source: {metric: float(values_M[0]) for metric, values_M in of_source.items()}
        for source, of_source in found.items()
    }


def blocks(series: Sequence[Entry], config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """The chapter of the report; tables also go into `folder` as CSV."""
    rows = [
        (e.name, source, m["loss"], m["standard_error"], m["perplexity"], m["bits_per_byte"],
         int(m["tokens"]))
        for e in series
        for source, m in e.result.items()
    ]  # fmt: skip
    header = ("checkpoint", "text", "loss, nats per token", "standard error", "perplexity",
              "bits per byte", "tokens scored")  # fmt: skip
    table = Table(
        header,
        rows,
        "The standard error is over documents. Bits per byte compare across tokenizers; between "
        "languages they differ by script as well (a Russian letter takes two bytes, a Chinese "
        "character three).",
    )
    write_csv(folder / "language.csv", table)
    found = [
        f"Held-out text (split {config.data.split}), windows of {config.data.length} tokens: the "
        "first tokens of a window have little context, so a longer window gives a lower loss.",
        table,
    ]
    if len(series) > 1:
        _draw(series, folder / "language.png")
        found.append(
            Figure(
                folder / "language.png",
                "Bits per byte along the series; bars: one standard error over documents.",
            )
        )
    return found


def _draw(series: Sequence[Entry], path: Path) -> None:
    with style():
        fig = MatplotlibFigure()
        ax = fig.subplots()
        x = along(series, ax)
        for source in series[0].result:
            found = [e.result[source] for e in series]
            ax.errorbar(
                x,
                [m["bits_per_byte"] for m in found],
                [m["standard_error"] * m["bits_per_byte"] / m["loss"] for m in found],
                marker="o",
                capsize=2,
                label=source,
            )
        ax.set_ylabel("bits per byte of held-out text")
        ax.legend()
        savefig(fig, path)
