"""The report of the multilingual study: what shows, tables and figures."""

from pathlib import Path
from typing import Any

import multilingual_figures as figures
import multilingual_methods as methods
import numpy as np
from ml_collections import ConfigDict
from multilingual_probes import ARCS, MEASURES, array, curve
from multilingual_result import (
    Result,
    bits,
    shares,
    shown,
    similarity_change,
    steps,
    switched,
    text,
)
from multilingual_runs import DIRECT, EXTENDED
from scipy.stats import norm

from lmnoise.evaluation.vocabulary import reached
from lmnoise.report import Figure, Table, mean_and_error, paired_difference, write_csv


def blocks(result: Result, config: ConfigDict, folder: Path) -> list[str | Table | Figure]:
    """Everything below the header."""
    figures.bits(result, config, folder / "bits.png")
    figures.similarity(result, folder / "similarity.png")
    figures.heads(result, folder / "heads.png")
    figures.switched(result, folder / "switched.png")
    losses, cost = _losses(result), _cost(result, config)
    similar, heads, written = _similarity(result), _heads(result), _written(result)
    for name, table in (("bits", losses), ("vocabulary", cost), ("similarity", similar),
                        ("heads", heads), ("switched", written)):  # fmt: skip
        write_csv(folder / f"{name}.csv", table)
    training, section = config.multilingual.training, config.multilingual
    return [
        "## What shows, and what does not",
        methods.scale(result, config),
        *_verdict(result, config),
        "## Fine-tuning, and new tokens",
        f"AdamW, {training.schedule}, {training.steps} steps of {training.batch_size} windows of "
        f"{config.data.length} tokens. {methods.epochs(result, config)} `{EXTENDED}`: "
        f"{section.new_tokens} tokens more, learnt on the training text by merges on "
        "top of the checkpoint's own, each begun as the mean of the tokens it joins. Bits per "
        "byte are of the same held-out paragraphs, each whole and on its own; paragraphs that "
        f"stand in the training text too are left out. {methods.rates(result, config)}",
        Figure(
            folder / "bits.png",
            "Bits per byte of held-out text along the training; bars: 95 % interval over seeds.",
        ),
        losses,
        cost,
        "## Representations of aligned paragraphs",
        methods.how_similar(result),
        Figure(
            folder / "similarity.png",
            "Similarity to English by layer, before (shaded: 95 % interval over paragraphs) and "
            "after fine-tuning (bars: 95 % interval over paragraphs and seeds; the paragraphs are "
            "the same in both); dotted: 95 % quantile of the shuffled null.",
        ),
        similar,
        "## Heads",
        methods.how_heads(result, config),
        Figure(
            folder / "heads.png",
            "Per cent of a head's attention, before and its change (the mean over seeds), by layer "
            "(up) and head; of head and dependent the excess over pairs that no arc links.",
        ),
        heads,
        "## Code-switched output",
        "Of tokens: the share that complete a letter outside the language's scripts, of those that "
        "complete any, up to the end of the text and without special tokens. Tokens of two "
        "vocabularies hold different amounts of text, so that the two compare by the share of "
        f"letters. {section.generation.prompts} prompts (first halves of held-out paragraphs), the "
        f"same in all runs, up to {section.generation.new_tokens} tokens each, temperature "
        f"{section.generation.temperature:g}, top-p {section.generation.top_p:g}; each seed draws "
        "its own, the same ones all along its run. Between "
        "languages of one script, as Turkish and English, a switch cannot be seen in this way.",
        Figure(
            folder / "switched.png",
            "Code-switched share along the training; bars: 95 % interval over prompts and seeds; "
            "dotted: what people wrote after the same prompts (in the checkpoint's own tokens), "
            "which has Latin names of products and keys.",
        ),
        written,
        *_examples(result),
    ]  # fmt: skip


def _verdict(result: Result, config: ConfigDict) -> list[str]:
    return [
        *(_verdict_bits(result, language) for language in result.runs),
        *(_verdict_vocabulary(result, language, config) for language in result.runs
          if EXTENDED in result.runs[language]),
        *(_verdict_similarity(result, language) for language in result.runs),
        *_verdict_arcs(result),
        *(_verdict_heads(result, language) for language in result.runs),
        *(_verdict_switched(result, language) for language in result.runs),
    ]  # fmt: skip


def _verdict_bits(result: Result, language: str) -> str:
    english, runs = next(iter(result.sizes)), result.runs[language][DIRECT]
    own, other = (
        mean_and_error([curve_[-1] - curve_[0] for curve_ in (bits(result, r, n) for r in runs)])
        for n in (language, english)
    )
    return (
        f"Fine-tuning on {language} changes its bits per byte by {own.text(3)} ({shown(own)}) and "
        f"those of English by {other.text(3)} ({shown(other)})."
    )


def pairs(result: Result, language: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(direct, extended) runs of one seed."""
    kinds = result.runs[language]
    return list(zip(kinds[DIRECT], kinds[EXTENDED], strict=True))


def ratios(result: Result, language: str, unit: str | None, config: ConfigDict) -> list[float]:
    """What new tokens need for the bits per byte that direct fine-tuning ends with, by seed.

    As a share of what direct fine-tuning took, in tokens, or with `unit` in what a token costs;
    NaN where they do not get there.
    """
    found = []
    for direct, grown in pairs(result, language):
        target = float(bits(result, direct, language)[-1])
        at = reached(steps(grown), bits(result, grown, language), target)
        each = grown[unit] / direct[unit] if unit else 1.0
        found.append(at / config.multilingual.training.steps * each)
    return found


def _verdict_vocabulary(result: Result, language: str, config: ConfigDict) -> str:
    found = pairs(result, language)
    ends = [[bits(result, r, language)[-1] for r in runs] for runs in zip(*found, strict=True)]
    difference = paired_difference(ends[1], ends[0])
    needed = np.array(ratios(result, language, None, config))
    got = int(np.isfinite(needed).sum())
    begun = (
        f"With {config.multilingual.new_tokens} new tokens of {language} a token holds "
        f"{found[0][1]['bytes_per_token'] / found[0][0]['bytes_per_token']:.2f} times the bytes; "
        f"after as many tokens the bits per byte differ from direct fine-tuning by "
        f"{difference.text(3)} ({shown(difference)}). "
    )
    if got < len(needed):
        return begun + (
            f"What direct fine-tuning ends with is reached in {got} of {len(needed)} seeds, so the "
            "tokens needed have no mean."
        )
    if not needed.any():
        return begun + "It is at what direct fine-tuning ends with before any training."
    return begun + f"It takes {mean_and_error(needed).text(2)} times the tokens to end as well."


def _verdict_similarity(result: Result, language: str) -> str:
    runs = result.runs[language][DIRECT]
    parts = []
    for other in result.before["similarity"]:
        value, high = (curve(result.before, other, "cka", w) for w in ("value", "null_high"))
        change = similarity_change(result.before, runs, other, "cka")
        parts.append(
            f"{other} lies above the shuffled null in {int((value > high).sum())} of {len(value)} "
            f"layers before, and changes by {text(change, 3)} ({shown(change)})"
        )
    return (
        f"CKA with English, fine-tuning on {language}: {'; '.join(parts)} (means over "
        "layers; intervals over paragraphs and seeds)."
    )


def _verdict_arcs(result: Result) -> list[str]:
    """How many heads attend along arcs more than to words in the same place; Bonferroni's bound."""
    found = []
    for name in ARCS:
        if name not in result.before["heads"]:
            continue
        excess, error = (array(result.before, name, what) for what in ("share", "error"))
        bound = float(norm.isf(0.025 / excess.size))
        above = int((excess > bound * error).sum())
        layer, head = np.unravel_index(np.argmax(excess / np.maximum(error, 1e-12)), excess.shape)
        found.append(
            f"{above} of {excess.size} heads attend from a word to its {name} more than to "
            f"unlinked words in the same place, by more than {bound:.1f} standard errors; the "
            f"clearest is head {head} of layer {layer}, by {excess[layer, head]:.3f} with a "
            f"standard error of {error[layer, head]:.3f} over sentences."
        )
    return found


def _verdict_heads(result: Result, language: str) -> str:
    runs, parts = result.runs[language][DIRECT], []
    for name in result.before["heads"]:
        before = array(result.before, name)
        change = mean_and_error([float((array(r["probes"], name) - before).mean()) for r in runs])
        same = np.mean(
            [np.corrcoef(array(r["probes"], name).ravel(), before.ravel())[0, 1] for r in runs]
        )
        parts.append(f"{name} {change.text(4)} ({shown(change)}; correlation of maps {same:.3f})")
    return f"Heads, change of the mean share by fine-tuning on {language}: {'; '.join(parts)}."


def _verdict_switched(result: Result, language: str) -> str:
    parts = []
    for kind, runs in result.runs[language].items():
        for of in ("tokens", "letters"):
            before, change = switched(runs, of, 0), switched(runs, of, -1, since=0)
            parts.append(
                f"{kind}, of {of}, {before.mean:.2f} before, change {text(change, 2)} "
                f"({shown(change)})"
            )
    people = [np.nanmean(shares(result.people[language], of)) for of in ("tokens", "letters")]
    return (
        f"Code-switched share in {language}, intervals over prompts and seeds: "
        f"{'; '.join(parts)}; people {people[0]:.2f} of tokens and {people[1]:.2f} of letters."
    )


def _losses(result: Result) -> Table:
    rows = []
    for language, kinds in result.runs.items():
        for kind, runs in kinds.items():
            for name in (language, next(iter(result.sizes))):
                curves = [bits(result, run, name) for run in runs]
                ends = [mean_and_error([c[at] for c in curves]) for at in (0, -1)]
                rows.append((language, kind, name, ends[0].mean, ends[1]))
    header = ("trained on", "vocabulary", "text", "bits per byte before", "after")
    return Table(header, rows, "After: mean over seeds with 95 % interval.")


def _cost(result: Result, config: ConfigDict) -> Table:
    rows = []
    for language, kinds in result.runs.items():
        if EXTENDED not in kinds:
            continue
        for name, unit in (("tokens", None), ("bytes of text", "bytes_per_token"),
                           ("FLOPs", "flops_per_token")):  # fmt: skip
            needed = np.array(ratios(result, language, unit, config))
            got = np.isfinite(needed)
            cell = mean_and_error(needed).text(3) if got.all() else "no mean"
            rows.append((language, name, cell, f"{int(got.sum())} of {len(got)}"))
    header = ("language", "in", "new tokens need, over direct", "seeds that get there")
    return Table(
        header,
        rows,
        "What training with new tokens needs for the bits per byte that direct fine-tuning ends "
        "with, as a share of what direct fine-tuning took; mean over seeds with 95 % interval, "
        "where all get there.",
    )


def _similarity(result: Result) -> Table:
    rows = []
    for other in result.before["similarity"]:
        for measure in MEASURES:
            value = curve(result.before, other, measure)
            best = int(np.nanargmax(value))
            error = curve(result.before, other, measure, "standard_error")[best]
            changes = [
                text(similarity_change(result.before, kinds[DIRECT], other, measure), 3)
                for kinds in result.runs.values()
            ]
            rows.append((other, measure, value[0], best, f"{value[best]:.3f} ± {1.96 * error:.3f}",
                         curve(result.before, other, measure, "null_high")[best],
                         *changes))  # fmt: skip
    changes = (f"change, on {language}" for language in result.runs)
    header = ("with English", "measure", "embedding", "best layer", "there, before",
              "null there, 95 %", *changes)  # fmt: skip
    return Table(
        header,
        rows,
        "Best layer ± 1.96 standard errors over paragraphs; changes are means over layers with "
        "95 % intervals over paragraphs and seeds.",
    )


def _heads(result: Result) -> Table:
    rows = []
    for name in result.before["heads"]:
        of_head, error = (array(result.before, name, what) for what in ("share", "error"))
        for number in np.argsort(-of_head, axis=None)[:3]:
            layer, head = np.unravel_index(number, of_head.shape)
            changes = [
                mean_and_error(
                    [
                        array(r["probes"], name)[layer, head] - of_head[layer, head]
                        for r in k[DIRECT]
                    ]
                )
                for k in result.runs.values()
            ]
            before = f"{of_head[layer, head]:.3f} ± {1.96 * error[layer, head]:.3f}"
            rows.append((name, int(layer), int(head), before, *changes))
    header = ("attends to", "layer", "head", "before",
              *(f"change, on {language}" for language in result.runs))  # fmt: skip
    return Table(
        header,
        rows,
        "The three heads that do it most: chosen by this very number, so that their shares lean "
        "high. Before ± 1.96 standard errors over sentences; changes over seeds, 95 % intervals.",
    )


def _written(result: Result) -> Table:
    rows = [
        (
            language,
            kind,
            int(step),
            *(text(switched(runs, of, n), 3) for of in ("tokens", "letters")),
        )
        for language, kinds in result.runs.items()
        for kind, runs in kinds.items()
        for n, step in enumerate(steps(runs[0]))
    ]
    header = ("language", "vocabulary", "step", "code-switched share of tokens", "of letters")
    return Table(header, rows, "Mean with 95 % interval over prompts and seeds.")


def _examples(result: Result) -> list[str]:
    lines = [
        f"- {language}, {kind}, step {row['step']}: {result.prompts[language][0]!r}"
        f" -> {row['written'][0]!r}"
        for language, kinds in result.runs.items()
        for kind, runs in kinds.items()
        for row in (runs[0]["rows"][0], runs[0]["rows"][-1])
    ]
    return ["Examples, the first prompt and what follows:", "\n".join(lines)]
