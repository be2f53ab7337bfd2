"""Noise rows: a pure function of (seed, step, row).

Whether row b of step k is noise is `u(seed, k, b) < rate`, with one u for all rates, so the noise
rows at a lower rate are among those at a higher one, any step can be redone, and nothing is
stored. Whole sequences are noise (arXiv 2502.06604); documents are not edited token by token.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lmnoise import keys

# `dropped` is the control of a fixed total budget: the rows that would be noise carry no loss,
# so it loses the same clean tokens and sees no noise. `stream` takes rows from a second stream
# of windows: another language, or the corpus with its text corrupted.
KINDS = ("uniform", "gaussian", "shuffled", "repeated", "dropped", "stream")

# Kinds that do not read the text.
TEXTLESS = ("uniform", "gaussian")

REPEATED_SPAN = 8


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Turns clean rows into a mixture of clean and noise rows.

    Attributes:
      vocab_size: ids are drawn from {0..vocab_size-1}.
      kinds: the kinds in use; a member's `kind` is an index into them.
      budget: "total" replaces clean rows, so the number of tokens is fixed; "clean" keeps every
        clean row and adds noise rows, so the number of clean tokens is fixed and all rates see
        the same clean rows in the same steps.
      extra_rows: with budget "clean", rows to add room for (see `extra_rows_for`).
      gaussian_std: standard deviation of `gaussian` ids around vocab_size / 2; None is
        vocab_size / 8.
    """

    vocab_size: int
    kinds: tuple[str, ...]
    budget: str = "total"
    extra_rows: int = 0
    gaussian_std: float | None = None

    def __post_init__(self):
        unknown = sorted(set(self.kinds) - set(KINDS))
        if unknown:
            raise ValueError(f"unknown kinds of noise {unknown}: choose from {KINDS}")
        if self.budget not in ("total", "clean"):
            raise ValueError(f"budget must be 'total' or 'clean', not {self.budget!r}")

    def __call__(self, batch: dict[str, jax.Array], member: dict[str, jax.Array]) -> dict:
        """Mixes noise into the rows of one step for one member.

        Args:
          batch: `tokens` (B, S+1) int32; `index` () int32, the step's position in the data;
            with kind "stream" also `noise` (B, S+1) int32.
          member: `seed` () uint32, `rate` () float32 in [0, 1], below 1 with budget "clean",
            `kind` () int32; optionally `noise_weight` () float32, 1 if it is missing.

        Returns:
          `tokens` (B', S+1), `weights` (B', 1) float32, 1 for a clean row and `noise_weight` for
          noise, and `groups`, with the (B', 1) masks `clean` and `noise`; B' = B, plus
          `extra_rows` with budget "clean".
        """
        tokens_BT = batch["tokens"]
        key = keys.fold(jax.random.key(member["seed"]), "noise", batch["index"])
        count = tokens_BT.shape[0]
        if self.budget == "total":
            noisy_B = self._uniforms(key, jnp.arange(count)) < member["rate"]
            noise_BT = self._rows(key, jnp.arange(count), batch, member["kind"])
            tokens_BT = jnp.where(noisy_B[:, None], noise_BT, tokens_BT)
            clean_B = ~noisy_B
        else:
            rows = jnp.arange(count, count + self.extra_rows)
            wanted = member["rate"] / (1 - member["rate"]) * count
            extra_E = self._uniforms(key, rows) < wanted / max(self.extra_rows, 1)
            noise_ET = self._rows(key, rows, batch, member["kind"])
            tokens_BT = jnp.concatenate([tokens_BT, noise_ET])
            clean_B = jnp.arange(tokens_BT.shape[0]) < count
            noisy_B = jnp.concatenate([jnp.zeros(count, bool), extra_E])
        if "dropped" in self.kinds:
            noisy_B &= member["kind"] != self.kinds.index("dropped")
        groups = {"clean": clean_B[:, None], "noise": noisy_B[:, None]}
        weights_B1 = (clean_B + noisy_B * member.get("noise_weight", 1.0))[:, None]
        return {"tokens": tokens_BT, "weights": weights_B1, "groups": groups}

    def held_out(self, kind: str, rows: int, length: int) -> jax.Array:
        """Noise rows that no training step draws, (rows, length + 1) int32.

        Args:
          kind: one that needs no text: "uniform" or "gaussian".
        """
        row_keys = keys.row_keys(keys.fold(jax.random.key(0), "held-out noise"), jnp.arange(rows))
        nothing_T = jnp.zeros(length + 1, jnp.int32)
        return jax.vmap(lambda key: self._row(kind, key, nothing_T))(row_keys)

    def _uniforms(self, key: jax.Array, rows_B: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.uniform)(keys.row_keys(keys.fold(key, "is noise"), rows_B))

    def _rows(self, key, rows_B, batch, kind) -> jax.Array:
        """Noise of the member's kind for each row number, (rows, S+1) int32."""
        own_BT = jnp.take(batch["tokens"], rows_B, axis=0, mode="wrap")
        row_keys = keys.row_keys(keys.fold(key, "tokens"), rows_B)

        def branch(name):
            if name == "stream":
                return lambda: jnp.take(batch["noise"], rows_B, axis=0, mode="wrap")
            return lambda: jax.vmap(lambda k, own_T: self._row(name, k, own_T))(row_keys, own_BT)

        return jax.lax.switch(kind, [branch(name) for name in self.kinds])

    def _row(self, kind: str, key: jax.Array, own_T: jax.Array) -> jax.Array:
        vocab_size, shape = self.vocab_size, own_T.shape
        if kind == "uniform":
            return jax.random.randint(key, shape, 0, vocab_size, jnp.int32)
        if kind == "gaussian":
            std = vocab_size / 8 if self.gaussian_std is None else self.gaussian_std
            draw_T = jnp.round(vocab_size / 2 + std * jax.random.normal(key, shape))
            return jnp.clip(draw_T, 0, vocab_size - 1).astype(jnp.int32)
        if kind == "shuffled":
            return jax.random.permutation(key, own_T)
        if kind == "repeated":
            return own_T[jnp.arange(shape[0]) % REPEATED_SPAN]
        return own_T


def extra_rows_for(rate: float, batch_size: int, multiple: int = 1) -> int:
    """Rows to add so that budget "clean" can reach `rate`, rounded up to a multiple."""
    rows = math.ceil(rate / (1 - rate) * batch_size - 1e-9)
    return math.ceil(rows / multiple) * multiple
