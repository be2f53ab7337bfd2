"""Tables and sentences of the noise study, from what its arms measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from noise_arm import LABELS, Arm, Proposition
from noise_figure import figure

from lmnoise.data.corruption import TEXTLESS
from lmnoise.report import (
    Estimate,
    Figure,
    Table,
    mean_and_error,
    savefig,
    write_csv,
    write_report,
)
from lmnoise.theory import noise as theory


def write(
    folder: Path, arms: Sequence[Arm], origin: dict[str, Any], config: ConfigDict, command: str
) -> Path:
    """Writes the report with its tables and figures; returns the path of the main figure."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks: list[Any] = [_summary(arms[0])]
    figures = []
    for arm in arms:
        figures.append(folder / f"{arm.name}.png")
        savefig(figure(arm), figures[-1])
        table = _table(arm)
        write_csv(folder / f"{arm.name}.csv", table)
        write_csv(folder / f"{arm.name}-members.csv", _members_table(arm))
        blocks += [
            f"## {arm.name.replace('_', ' ').capitalize()}\n\n{_description(arm)}",
            Figure(figures[-1], _caption(arm)),
            table,
        ]
        if any(kind in TEXTLESS for kind in arm.kinds):
            blocks.append(_theory_table(arm))
    blocks.append(
        f"## Run it\n\n```bash\n{command}\n```\n\nThe tables are beside this report as CSV; "
        "`<arm>-members.csv` has every member with all that was measured on it."
    )
    write_report(folder, "What random tokens in pre-training cost", blocks, origin, config)
    return figures[0]


def _summary(arm: Arm) -> str:
    """The answer in sentences, for the largest rate of the first arm."""
    rate, share = arm.rates[-1], _percent(arm.rates[-1])
    base = mean_and_error(arm.values(arm.own, "", 0.0))
    spread = arm.values(arm.own, "", 0.0, "standard_error").mean()
    lines = [
        f"Models of {arm.parameters:,} parameters, "
        f"{arm.config.train.steps * arm.config.train.batch_size * arm.config.data.length:,} tokens "
        f"of `{arm.own}` each, {base.n} seeds. Without noise the loss on held-out `{arm.own}` is "
        f"{base.text(3)} nats per token. Intervals are 95 % (Student's t over seeds) and are not "
        "adjusted for their number; differences are paired: the same seed, the same batches, "
        "nested noise, the same held-out documents (another sample of documents would move the "
        f"loss itself by a standard error of {spread:.3f}).\n"
    ]
    if arm.control == "dropped":
        lost = arm.rise(arm.own, "dropped", rate)
        lines.append(
            f"- **Losing {share} of the clean rows**, without any noise, changes the clean loss by "
            f"{lost.text()} nats per token ({lost.mean / base.mean:+.2%})."
        )
    for kind in arm.noise_kinds:
        rise = arm.rise(arm.own, kind, rate)
        harm = arm.rise(arm.own, kind, rate, over=arm.control)
        line = (
            f"- **{LABELS[kind].capitalize()}, {share}**: the clean loss changes by {rise.text()} "
            f"nats per token ({rise.mean / base.mean:+.2%})"
        )
        if arm.control == "dropped":
            line += f"; against the control that lost the same rows, by {harm.text()}"
        lines.append(f"{line}. Harm of the noise itself: {_verdict(harm)}.")
        for source in arm.others:
            other = arm.rise(source, kind, rate)
            lines.append(f"  - On `{source}`: {other.text()} over the clean twin.")
    lines.append(
        f"- Theory: judged token by token, the optimum gives up as much as -log(1 - share) = "
        f"{theory.largest_rise(rate):.4f} nats at {share} (Proposition 1); judged by rows of "
        f"{arm.config.data.length} tokens, "
        f"{theory.largest_rise(rate, arm.config.data.length):.4f}. The paper reports a rise of "
        "about 1 % of the loss at 20 % (GPT-2 124M on OpenWebText), and lower losses of noisy "
        "models on some other domains."
    )
    return "\n".join(lines)


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"


def _verdict(harm: Estimate) -> str:
    if harm.n < 2:
        return "one seed gives no interval"
    low, high = harm.interval
    if low > 0:
        return "shown at this scale"
    if high < 0:
        return "not shown at this scale, where the noise lowers the loss"
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
    text = (
        f"Loss on held-out {arm.own} against the share of noise rows, {seeds} seeds, 95 % "
        "intervals over seeds. Left: the loss itself, and the most that the optimum of "
        "Proposition 1 gives up. Middle: paired difference from the clean model of the same seed"
    )
    if arm.control == "dropped":
        text += " (what the control shows is the cost of the lost rows, not of noise)"
    return text + (". Right: the same on other text." if arm.others else ".")


def _table(arm: Arm) -> Table:
    rows = []
    for source in [arm.own, *arm.others]:
        base = mean_and_error(arm.values(source, "", 0.0))
        spread = f"{arm.values(source, '', 0.0, 'standard_error').mean():.4f}"
        rows.append([source, "none", "0 %", base, spread, "", "", ""])
        for kind in arm.kinds:
            for rate in arm.rates:
                rise = arm.rise(source, kind, rate)
                control = arm.control == "dropped" and kind != "dropped"
                harm = arm.rise(source, kind, rate, over="dropped") if control else ""
                spread = arm.values(source, kind, rate, "standard_error").mean()
                rows.append(
                    [
                        source,
                        kind,
                        _percent(rate),
                        mean_and_error(arm.values(source, kind, rate)),
                        f"{spread:.4f}",
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
        "its SE over documents",
        "rise over clean",
        "relative rise",
        "rise over dropped",
    )
    return Table(
        header,
        rows,
        "Mean ± half width of the 95 % interval over seeds, for the same held-out documents; the "
        "intervals are not adjusted for their number.",
    )


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
    """Proposition 1 beside the measurement, for every kind of noise whose loss is measured."""
    rows = []
    for kind in (k for k in arm.noise_kinds if k in TEXTLESS):
        for rate in arm.rates:
            numbers = Proposition.measured(arm, kind, rate)
            harm = arm.rise(arm.own, kind, rate, over=arm.control)
            traded = not np.isnan(numbers.exchange)
            arguments = (numbers.p_clean, numbers.p_noise, numbers.exchange)
            predicted = float(theory.clean_loss_rise(rate, *arguments)) if traded else None
            rows.append(
                [
                    kind,
                    _percent(rate),
                    f"{-np.log(numbers.p_noise):.3f}",
                    mean_and_error(arm.values(f"noise-{kind}", kind, rate)),
                    f"{numbers.exchange:.3g}" if traded else "nothing traded",
                    f"{float(theory.threshold(*arguments)):.2%}" if traded else "",
                    harm,
                    f"{predicted:.4f}" if traded else "",
                    f"{theory.largest_rise(rate):.4f}",
                    f"{theory.largest_rise(rate, arm.config.data.length):.4f}",
                    _place(harm, predicted),
                ]
            )
    header = (
        "noise",
        "share",
        "noise loss before",
        "noise loss after",
        "exchange rate k",
        "harmless up to",
        f"rise over {arm.control}",
        "rise at the optimum",
        "-log(1 - share)",
        "by row",
        "measured",
    )
    return Table(
        header,
        rows,
        "Proposition 1 of arXiv 2502.06604 with measured numbers, in nats per token. Before: the "
        f"control ({'rows dropped' if arm.control == 'dropped' else 'no noise'}). k: clean "
        "probability given up for noise probability won; 'nothing traded' where the clean "
        "probability did not fall. Harmless up to: the share below which the proposition's "
        "optimum does not move. The clean model gives noise so little probability that the "
        "optimum gives up nearly -log(1 - share) whatever k is. The proposition judges every "
        "token on its own; a model that tells noise rows from text by their first tokens pays "
        "-log(1 - share) / (tokens a row), the column 'by row'. Measured: where the interval of "
        "the rise lies, seen from the rise at the optimum. Uniform noise at its own optimum costs "
        f"log V = {np.log(arm.vocab_size):.3f}.",
    )


def _place(measured: Estimate, predicted: float | None) -> str:
    """Where the measured interval lies, seen from the prediction."""
    if predicted is None or measured.n < 2:
        return ""
    low, high = measured.interval
    return "below" if high < predicted else "above" if low > predicted else "agrees"
