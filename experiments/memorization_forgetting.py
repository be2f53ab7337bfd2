"""What else a fine-tuning set does: its size, stages against one mixture, many epochs on little."""

from typing import Any, NamedTuple

import jax
import numpy as np
from memorization_training import Bench, Rows, Training, in_groups, shuffled_order
from ml_collections import ConfigDict

from lmnoise import keys
from lmnoise.errors import UserError
from lmnoise.evaluation import memorization
from lmnoise.evaluation.generation import generate
from lmnoise.training.mesh import put_whole
from lmnoise.training.population import Population


class Curve(NamedTuple):
    """Held-out losses {source: (R, H)} of R seeds, at `steps_H` updates; and what else was asked.

    after: {name: (R,)}, see `_probe`.
    """

    steps_H: np.ndarray
    losses: dict[str, np.ndarray]
    after: dict[str, np.ndarray]


def sizes(bench: Bench, section: ConfigDict) -> dict[str, Curve]:
    """A small and a large narrow set, for the same number of updates."""
    training = _training(section, section.steps)

    def rows(examples):
        def of_seed(seed):
            tokens_NT = bench.examples(section.corpus, section.large, seed, "sizes")[:examples]
            return tokens_NT, shuffled_order(examples, training, seed)

        return of_seed

    return {
        name: _run(bench, section, training, f"sizes {name}", rows(section[name]), _probe)
        for name in ("small", "large")
    }


def stages(bench: Bench, section: ConfigDict) -> dict[str, Curve]:
    """First one corpus and then another, each with a schedule of its own; or both mixed in one."""
    half = section.rows // section.batch_size
    if section.rows % section.batch_size:
        raise UserError("config.stages.batch_size must divide config.stages.rows")

    def tokens(seed):
        parts = (section.first, section.second)
        return np.concatenate([bench.examples(p, section.rows, seed, "stages") for p in parts])

    def staged(seed):
        order_T = np.arange(2 * section.rows)
        return tokens(seed), order_T.reshape(2 * half, section.batch_size)

    def mixed(seed):
        key = keys.fold(jax.random.key(seed), "mixed")
        order_T = np.asarray(jax.random.permutation(key, 2 * section.rows))
        return tokens(seed), order_T.reshape(2 * half, section.batch_size)

    plans = {
        "staged": (_training(section, 2 * half, half, "cyclical"), staged),
        "mixed": (_training(section, 2 * half, half), mixed),
    }
    return {
        name: _run(bench, section, training, f"stages {name}", rows)
        for name, (training, rows) in plans.items()
    }


ALONE, FRESH = "alone", "fresh windows, each once"


def mixing(bench: Bench, section: ConfigDict) -> dict[str, Curve]:
    """Many epochs over few rows, alone and among so many times as much of the original text.

    And as many windows that are seen once each: what they do comes from the other domain.
    """
    sights = section.rows * section.epochs
    if sights % section.batch_size:
        raise UserError("config.mixing.batch_size must divide its rows times its epochs")

    def plan(name, rows, epochs, times):
        steps = sights * (1 + times) // section.batch_size

        def of_seed(seed):
            own_NT = bench.examples(section.corpus, sights, seed, "little")[:rows]
            order_T = np.tile(np.arange(rows), epochs)
            if times:
                old_NT = bench.examples(section.original, sights * times, seed, "original")
                own_NT = np.concatenate([own_NT, old_NT])
                order_T = np.concatenate([order_T, np.arange(rows, len(own_NT))])
            key = keys.fold(jax.random.key(seed), "among")
            order_T = order_T[np.asarray(jax.random.permutation(key, len(order_T)))]
            return own_NT, order_T.reshape(steps, section.batch_size)

        return _run(bench, section, _training(section, steps), f"mixing {name}", of_seed, _probe)

    found = {
        ALONE: plan(ALONE, section.rows, section.epochs, 0),
        FRESH: plan(FRESH, sights, 1, 0),
    }
    for times in section.times:
        name = f"among {times} times original text"
        found[name] = plan(name, section.rows, section.epochs, times)
    return found


def _training(
    section: ConfigDict, steps: int, cycle_steps: int = 0, schedule: str = "cosine"
) -> Training:
    return Training(
        steps=steps,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        schedule=schedule,
        cycle_steps=cycle_steps if schedule == "cyclical" else 0,
        evaluate_every=cycle_steps,
    )


def _run(
    bench: Bench,
    section: ConfigDict,
    training: Training,
    name: str,
    rows_of: Any,
    probe: Any = None,
) -> Curve:
    """All seeds of one plan; `rows_of(seed)` gives tokens (N, T) and the order (K, B)."""

    def work(seeds, own):
        tokens, orders = zip(*(rows_of(seed) for seed in seeds), strict=True)
        rows = Rows(np.stack(tokens), np.stack(orders))

        def after(population, params):
            return probe(bench, section, rows, population, params)

        return bench.tune(training, rows, own, name, after if probe else None)

    free = ("seeds", "together", "times")
    identity = {k: v for k, v in section.to_dict().items() if k not in free}
    setting = {"what": name, "section": identity}
    parts = in_groups(bench, section.seeds, section.together, setting, work, name)
    curves = []
    for part in parts:
        members = {row["member"] for row in part["heldout"]}
        curves += [[r for r in part["heldout"] if r["member"] == m] for m in sorted(members)]
    names = [source.name for source in bench.subject.sources]
    return Curve(
        np.array([row["step"] for row in curves[0]]),
        {s: np.array([[row[f"{s}/loss"] for row in own] for own in curves]) for s in names},
        {
            key: np.concatenate([part["after"][key] for part in parts])
            for key in parts[0].get("after", {})
        },
    )


def _probe(
    bench: Bench, section: ConfigDict, rows: Rows, population: Population, params: Any
) -> dict[str, Any]:
    """Of rows that were trained on: their loss, and how many come back verbatim; of unseen, too.

    A row's first half is the prompt, and the next `new_tokens` tokens are asked for, greedily.
    """
    model, half = bench.subject.model, bench.subject.data.length // 2
    batches = bench.subject.sources[0].batches
    unseen_NT = np.concatenate([batch["tokens"] for batch in batches])[: section.probes]
    losses = bench.token_losses(population)

    def verbatim(own, tokens_NT):
        said = generate(model, own, tokens_NT[:, :half].tolist(), section.new_tokens)
        wanted = tokens_NT[:, half : half + section.new_tokens].tolist()
        return memorization.verbatim_rate(said, wanted)

    found = {"loss on its rows": [], "verbatim": [], "verbatim, unseen": []}
    for member, tokens_NT in enumerate(rows.tokens_RNT[:, : section.probes]):
        own = jax.tree.map(lambda leaf, m=member: leaf[m], params)
        placed = put_whole(population.mesh, tokens_NT, batch_axis=None)
        found["loss on its rows"].append(float(losses(params, placed)[member].mean()))
        found["verbatim"].append(verbatim(own, tokens_NT))
        found["verbatim, unseen"].append(verbatim(own, unseen_NT))
    return found


def changes(curve: Curve, source: str) -> np.ndarray:
    """The held-out loss at the end minus that at the start, (R,)."""
    return curve.losses[source][:, -1] - curve.losses[source][:, 0]
