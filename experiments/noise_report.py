"""Tables, figures and sentences of the noise study, from what its arms measured."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as MatplotlibFigure
from ml_collections import ConfigDict

from lmnoise.report import (
    COLOURS,
    Estimate,
    Figure,
    Table,
    mean_and_error,
    paired_difference,
    savefig,
    style,
    write_csv,
    write_report,
)
from lmnoise.theory import noise as theory

LABELS = {
    "uniform": "uniform noise",
    "gaussian": "Gaussian noise",
    "shuffled": "shuffled rows",
    "repeated": "repeated spans",
    "dropped": "rows dropped (control)",
    "stream": "other text",
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One trained population: `rows[m]` holds the final `eval/...` metrics of `members[m]`."""

    name: str
    config: ConfigDict
    members: Sequence[dict[str, Any]]
    parameters: int
    vocab_size: int
    rows: Sequence[dict[str, Any]]

    @property
    def rates(self) -> list[float]:
        return sorted({m["rate"] for m in self.members if m["rate"] > 0})

    @property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(m["kind"] for m in self.members if m["rate"] > 0))

    @property
    def sources(self) -> list[str]:
        return list(self.config.data.evaluate)

    def values(self, source: str, kind: str, rate: float, metric: str = "loss") -> np.ndarray:
        """The metric of each seed, in the order of the seeds; at rate 0 the kind is ignored."""
        chosen = {
            m["seed"]: row[f"eval/{source}/{metric}"]
            for m, row in zip(self.members, self.rows, strict=True)
            if m["rate"] == rate and (rate == 0 or m["kind"] == kind)
        }
        return np.array([chosen[seed] for seed in sorted(chosen)])

    def rise(self, source: str, kind: str, rate: float, over: str = "clean") -> Estimate:
        """Paired rise of the loss, nats per token, over the clean twin or the dropped control."""
        baseline = (kind, 0.0) if over == "clean" else ("dropped", rate)
        return paired_difference(self.values(source, kind, rate), self.values(source, *baseline))


@dataclasses.dataclass(frozen=True)
class Proposition:
    """Proposition 1 of arXiv 2502.06604 with this arm's own numbers.

    `exchange` is measured between the clean models and those at the largest rate, and is nan if
    these gave up nothing; predictions at the other rates follow from it.
    """

    p_clean: float
    p_noise: float
    exchange: float

    @classmethod
    def measured(cls, arm: Arm, kind: str) -> "Proposition":
        own, noise, rate = arm.sources[0], f"noise-{kind}", arm.rates[-1]
        probability = lambda source, r: float(np.exp(-arm.values(source, kind, r).mean()))  # noqa: E731
        p_clean, p_noise = probability(own, 0.0), probability(noise, 0.0)
        after = probability(own, rate), probability(noise, rate)
        return cls(p_clean, p_noise, float(theory.exchange_rate(p_clean, p_noise, *after)))

    def predicted_rise(self, share: np.ndarray) -> np.ndarray | None:
        """Rise of the clean loss at the mixture's optimum, or None if nothing was traded."""
        if np.isnan(self.exchange):
            return None
        return theory.clean_loss_rise(share, self.p_clean, self.p_noise, self.exchange)


def write(
    folder: Path, arms: Sequence[Arm], origin: dict[str, Any], config: ConfigDict, command: str
) -> Path:
    """Writes the report with its tables and figures; returns the path of the main figure."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Any] = [_summary(arms[0])]
    figures = []
    for arm in arms:
        figures.append(folder / f"{arm.name}.png")
        savefig(_figure(arm), figures[-1])
        table = _table(arm)
        write_csv(folder / f"{arm.name}.csv", table)
        write_csv(folder / f"{arm.name}-members.csv", _members_table(arm))
        blocks += [
            f"## {arm.name.replace('_', ' ').capitalize()}\n\n{_description(arm)}",
            Figure(figures[-1], _caption(arm)),
            table,
        ]
        if any(kind in ("uniform", "gaussian") for kind in arm.kinds):
            blocks.append(_theory_table(arm))
    blocks.append(
        f"## Run it\n\n```bash\n{command}\n```\n\nThe tables are beside this report as CSV; "
        "`<arm>-members.csv` has every member with all that was measured on it."
    )
    write_report(folder, "What random tokens in pre-training cost", blocks, origin, config)
    return figures[0]


def _summary(arm: Arm) -> str:
    """The answer in sentences, for the largest rate of the first arm."""
    own, rate = arm.sources[0], arm.rates[-1]
    base = mean_and_error(arm.values(own, arm.kinds[0], 0.0))
    lines = [
        f"Models of {arm.parameters:,} parameters, "
        f"{arm.config.train.steps * arm.config.train.batch_size * arm.config.data.length:,} tokens "
        f"of `{arm.config.data.source}` each, {base.n} seeds. All intervals are 95 % (Student's t "
        "over seeds); differences are paired: the same seed, the same batches, nested noise. "
        f"Without noise the loss on held-out `{own}` is {base.text(3)} nats per token."
    ]
    for kind in arm.kinds:
        rise = arm.rise(own, kind, rate)
        verdict = _verdict(rise)
        lines.append(
            f"- **{LABELS[kind]}, {rate:.0%}**: the clean loss changes by {rise.text()} nats per "
            f"token ({rise.mean / base.mean:+.2%}): {verdict}."
        )
    if "dropped" in arm.kinds:
        for kind in (k for k in arm.kinds if k != "dropped"):
            harm = arm.rise(own, kind, rate, over="dropped")
            lines.append(
                f"- Of this, the noise itself (against the control that lost the same clean rows "
                f"and saw none): {LABELS[kind]} {harm.text()} nats: {_verdict(harm)}."
            )
    lines.append(
        f"- The bound -log(1 - share) allows {theory.largest_rise(rate):.4f} nats at {rate:.0%}. "
        "The paper reports a rise of about 1 % of the loss at 20 % (GPT-2 124M on OpenWebText)."
    )
    return "\n".join(lines)


def _verdict(rise: Estimate) -> str:
    low, high = rise.interval
    if low > 0:
        return "a rise, shown at this scale"
    if high < 0:
        return "a fall, so the published rise does not show at this scale"
    return "not distinguishable from zero at this scale"


def _description(arm: Arm) -> str:
    config = arm.config
    budget = (
        "noise replaces clean rows (fixed total tokens)"
        if config.noise.budget == "total"
        else "noise comes on top of the clean rows (fixed clean tokens)"
    )
    text = f"Trained on `{config.data.source}`; {budget}."
    if config.noise.source:
        text += f" The noise rows are text of `{config.noise.source}`."
    return text


def _caption(arm: Arm) -> str:
    seeds = len({m["seed"] for m in arm.members})
    return (
        f"Clean loss against the share of noise rows, {seeds} seeds, 95 % intervals. Left: the "
        "loss itself, with the region that the bound -log(1 - share) allows. Middle: paired "
        "difference from the clean model of the same seed. Right: the same on other text."
    )


def _table(arm: Arm) -> Table:
    rows = []
    for source in arm.sources:
        base = mean_and_error(arm.values(source, "", 0.0))
        rows.append([source, "none", "0 %", base, "", "", ""])
        for kind in arm.kinds:
            for rate in arm.rates:
                rise = arm.rise(source, kind, rate)
                control = "dropped" in arm.kinds and kind != "dropped"
                harm = arm.rise(source, kind, rate, over="dropped") if control else ""
                rows.append(
                    [
                        source,
                        kind,
                        f"{rate:.0%}",
                        mean_and_error(arm.values(source, kind, rate)),
                        rise,
                        f"{rise.mean / base.mean:+.2%}",
                        harm,
                    ]
                )
    header = (
        "held-out text",
        "noise",
        "share",
        "clean loss (nats/token)",
        "rise over clean",
        "relative rise",
        "rise over dropped",
    )
    return Table(header, rows, "Mean ± half width of the 95 % interval over seeds.")


def _members_table(arm: Arm) -> Table:
    """Every member with all that was measured on it, for a reader's own analysis."""
    hyperparameters = list(arm.members[0])
    metrics = [name for name in arm.rows[0] if name.startswith("eval/")]
    rows = [
        [*(member[name] for name in hyperparameters), *(row[name] for name in metrics)]
        for member, row in zip(arm.members, arm.rows, strict=True)
    ]
    return Table([*hyperparameters, *metrics], rows)


def _theory_table(arm: Arm) -> Table:
    rows = []
    for kind in (k for k in arm.kinds if k in ("uniform", "gaussian")):
        proposition = Proposition.measured(arm, kind)
        for rate in arm.rates:
            predicted = proposition.predicted_rise(np.asarray(rate))
            rows.append(
                [
                    kind,
                    f"{rate:.0%}",
                    mean_and_error(arm.values(f"noise-{kind}", kind, 0.0)),
                    mean_and_error(arm.values(f"noise-{kind}", kind, rate)),
                    arm.rise(arm.sources[0], kind, rate),
                    "nothing traded" if predicted is None else f"{predicted:.4f}",
                    f"{theory.largest_rise(rate):.4f}",
                ]
            )
    header = (
        "noise",
        "share",
        "noise loss of clean model",
        "noise loss",
        "rise measured",
        "rise predicted",
        "bound",
    )
    return Table(
        header,
        rows,
        "Nats per token. Predicted: Proposition 1 of arXiv 2502.06604 with p_clean and p_noise of "
        "the clean models and the exchange rate k measured at the largest share (so the "
        "prediction is free at the smaller shares only); 'nothing traded' where the clean "
        "probability did not fall. Uniform noise at its optimum costs log V = "
        f"{np.log(arm.vocab_size):.3f}.",
    )


def _figure(arm: Arm) -> MatplotlibFigure:
    own, others = arm.sources[0], arm.sources[1:]
    with style():
        figure = MatplotlibFigure(figsize=(4.2 * (2 + bool(others)), 3.8))
        axes = figure.subplots(1, 2 + bool(others))
        _draw_losses(axes[0], arm, own)
        _draw_rises(axes[1], arm, own)
        if others:
            _draw_others(axes[2], arm, others)
        for axis in axes:
            _share_axis(axis, arm.rates)
    return figure


def _share_axis(axis, rates: Sequence[float]) -> None:
    # Square root spreads the small shares without hiding zero; signed, for the left margin.
    root = lambda x: np.sign(x) * np.sqrt(np.abs(x))  # noqa: E731
    square = lambda x: np.sign(x) * np.square(x)  # noqa: E731
    axis.set_xscale("function", functions=(root, square))
    ticks = [0.0, *rates]
    axis.set_xticks(ticks, [f"{100 * r:g}" for r in ticks])
    axis.set_xlim(-0.0008, max(rates) * 1.25)
    axis.set_xlabel("share of noise rows (%)")


def _series(arm: Arm, values, *, skip_control: bool = False):
    """Per kind: label, colour, shares moved a little apart, estimates."""
    kinds = [k for k in arm.kinds if not (skip_control and k == "dropped")]
    for i, kind in enumerate(kinds):
        shares = np.square(np.sqrt(arm.rates) + 0.006 * (i - (len(kinds) - 1) / 2))
        yield kind, COLOURS[arm.kinds.index(kind)], shares, [values(kind, r) for r in arm.rates]


def _bars(axis, shares, estimates, **style_):
    axis.errorbar(
        shares,
        [e.mean for e in estimates],
        yerr=[e.half_width for e in estimates],
        capsize=3,
        marker="o",
        markersize=4,
        **style_,
    )


def _draw_losses(axis, arm: Arm, source: str) -> None:
    clean = mean_and_error(arm.values(source, "", 0.0))
    grid = np.linspace(0, max(arm.rates), 200)
    axis.fill_between(
        grid,
        clean.mean,
        clean.mean + theory.largest_rise(grid),
        color="0.88",
        label="allowed: up to $-\\log(1-a)$",
    )
    _bars(axis, [0], [clean], color="black", label="no noise", linestyle="none")
    for kind, colour, shares, estimates in _series(
        arm, lambda k, r: mean_and_error(arm.values(source, k, r))
    ):
        _bars(axis, shares, estimates, color=colour, label=LABELS[kind])
    axis.set_ylabel("clean loss (nats per token)")
    axis.set_title(f"Loss on held-out {source}")
    axis.legend(fontsize=8)


def _draw_rises(axis, arm: Arm, source: str) -> None:
    axis.axhline(0, color="black", linewidth=0.8)
    for kind, colour, shares, estimates in _series(arm, lambda k, r: arm.rise(source, k, r)):
        _bars(axis, shares, estimates, color=colour, label=LABELS[kind])
        if kind in ("uniform", "gaussian"):
            grid = np.linspace(0, max(arm.rates), 200)
            predicted = Proposition.measured(arm, kind).predicted_rise(grid)
            if predicted is not None:
                axis.plot(grid, predicted, "--", color=colour, label=f"Prop. 1, {kind}")
    axis.set_ylabel("rise over the clean twin (nats per token)")
    axis.set_title(f"Paired rise on {source}")
    axis.legend(fontsize=8)


def _draw_others(axis, arm: Arm, others: Sequence[str]) -> None:
    axis.axhline(0, color="black", linewidth=0.8)
    for source, marker in zip(others, ("-", "--", ":", "-."), strict=False):
        series = _series(arm, lambda k, r, s=source: arm.rise(s, k, r), skip_control=True)
        for kind, colour, shares, estimates in series:
            label = f"{source}, {LABELS[kind]}"
            _bars(axis, shares, estimates, color=colour, linestyle=marker, label=label)
    axis.set_ylabel("rise over the clean twin (nats per token)")
    axis.set_title("Other held-out text")
    axis.legend(fontsize=8)
