"""Text that a model writes, as a corpus.

    python -m lmnoise.synthesize --checkpoint=runs/lm --config=configs/synthesize.py:laptop \\
        --out=runs/text

`--checkpoint` and `config.judge` are what `lmnoise.checkpoints` opens. The folder is a user's
corpus like any other (`python -m lmnoise.data prepare runs/text/ ...`), and `generator.json` in
it says what wrote it; a prepared copy carries that. The same command goes on after a stop or a
kill. Several processes (see `lmnoise.training.processes`) share the work and need one folder that
all of them see.
"""

import contextlib
import dataclasses
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers
from absl import flags
from jax.experimental import multihost_utils

from lmnoise import cli, keys, storage
from lmnoise import config as configs
from lmnoise.checkpoints import Checkpoint, open_checkpoint
from lmnoise.data import generated
from lmnoise.data.files import locked
from lmnoise.data.packing import open_packed
from lmnoise.data.stream import Beginnings
from lmnoise.data.tokenizer import Tokenizer, load_tokenizer
from lmnoise.errors import Stopped, UserError
from lmnoise.evaluation import documents
from lmnoise.training import mesh as meshes
from lmnoise.training import processes, shards

# What is counted of each shard; see `generator.json`. Dropped are, in this order, documents that
# are `blank` or `short`, those that repeat themselves and those that the judge likes least.
COUNTS = (
    "rows",
    "documents",
    "tokens",
    "ended",
    "blank",
    "short",
    "repetitive",
    "poor",
    "not_utf8",
    "same_tokens",
)
# So many batches in a row of which nothing was kept are no accident.
_PATIENCE = 16


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How text is written.

    Attributes:
      tokens: least number of tokens in the folder, separators included, as the generator's
        tokenizer reads the text again.
      length: most tokens a document, without its separator; it may exceed the model's context,
        and then goes on from its own last half context.
      shortest: least tokens a document.
      temperature, top_p: see `lmnoise.evaluation.generation.extend`.
      prompt_tokens: 0 to begin at the document separator alone; k to begin with k tokens of a
        real document, from anywhere in it, which the new document keeps.
      batch_size: documents written at once, which are a shard of the folder.
      seed: of the draws.
      keep: of every batch, the share of the documents with the least mean loss under the judge.
      repetition: documents of which a larger share of 4-grams were there before are dropped.

    Raises:
      UserError: a value outside its range.
    """

    tokens: int
    length: int
    shortest: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    prompt_tokens: int = 0
    batch_size: int = 256
    seed: int = 0
    keep: float = 1.0
    repetition: float = 1.0

    def __post_init__(self):
        rules = {
            "tokens": (self.tokens >= 1, "at least 1"),
            "length": (self.length >= 1, "at least 1"),
            "shortest": (1 <= self.shortest <= self.length, f"between 1 and {self.length}"),
            "temperature": (0 < self.temperature < float("inf"), "positive; a low one is greedy"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "prompt_tokens": (
                0 <= self.prompt_tokens < self.length,
                f"at least 0 and below recipe.length, {self.length}",
            ),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**32, "between 0 and 4294967295"),
            "keep": (0 < self.keep <= 1, "in (0, 1]"),
            "repetition": (0 <= self.repetition <= 1, "between 0 and 1"),
        }
        for name, (fits, rule) in rules.items():
            if not fits:
                raise UserError(f"recipe.{name} is {getattr(self, name)}: it must be {rule}")


def synthesize(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: Path,
    *,
    data_dir: Path | str,
    prompts: str = "",
    judge: Checkpoint | None = None,
    title: str = "synthesize",
) -> dict[str, Any]:
    """Writes documents into a folder until it has as many tokens as asked for.

    Row i of all that are drawn depends on the checkpoint, the recipe and i alone, up to rounding:
    not on devices, processes or stops. So does which shards there are: the first ones that have
    the tokens. Bytes that are no text become U+FFFD, as they would in any corpus (`not_utf8` of
    the counts says in how many documents); a character that the length cuts in two is left out.

    Args:
      checkpoint: the generator.
      recipe: how it writes.
      folder: `part-00000.jsonl` and so on, one shard a batch, each whole or absent, and at the
        end `generator.json`.
      data_dir: of the tokenizer, and of the prompts.
      prompts: a corpus, prepared with the generator's tokenizer, on whose train split documents
        begin, for `prompt_tokens` > 0.
      judge: whose loss `keep` looks at; by default the generator.
      title: of the progress bar.

    Returns:
      What `generator.json` says: `generator`, `recipe`, `tokenizer`, `prompts`, `judge`,
      `counts` (documents by `COUNTS`, of all rows that were drawn), `shards` and `versions`.

    Raises:
      UserError: prompts that are not prepared, a judge with another tokenizer, a batch that the
        devices do not divide, a folder that holds the text of another recipe or generator, or
        a recipe whose filters keep nothing.
      Stopped: a signal came, and the shards under way are written; the same call goes on.
    """
    first = jax.process_index() == 0
    writer = _Writer(checkpoint, recipe, data_dir, prompts, judge)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is a file, or in one: name a folder for the text") from None
    with locked(folder) if first else contextlib.nullcontext(), processes.StopSignals() as stop:
        if not first:
            multihost_utils.sync_global_devices("the folder is claimed")
        finished = generated.claim(folder, writer.head)
        if first:
            multihost_utils.sync_global_devices("the folder is claimed")
        if finished is None:
            counts = shards.fill(
                folder, writer.shard, COUNTS, recipe.tokens, check=_check, stop=stop, title=title
            )
            finished = _record(writer.head, counts)
            if first:
                generated.finish(folder, finished, len(counts))
            multihost_utils.sync_global_devices("the folder is finished")
    return finished


def _check(first: list[dict[str, int]]) -> None:
    """Raises a UserError if the filters keep nothing."""
    last = first[-_PATIENCE:]
    if len(last) == _PATIENCE and not any(counts["documents"] for counts in last):
        why = ", ".join(
            f"{sum(counts[name] for counts in last)} {name}"
            for name in ("rows", "blank", "short", "repetitive")
        )
        raise UserError(
            f"nothing was kept of {_PATIENCE} batches ({why}): loosen recipe.shortest or "
            "recipe.repetition, or train the generator longer"
        )


def _record(head: dict[str, Any], counts: list[dict[str, int]]) -> dict[str, Any]:
    """What `generator.json` says."""
    total = {name: sum(shard[name] for shard in counts) for name in COUNTS}
    versions = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "tokenizers": tokenizers.__version__,
    }
    return head | {"counts": total, "shards": len(counts), "versions": versions}


class _Writer:
    """Writes the shard of any number."""

    def __init__(self, checkpoint, recipe, data_dir, prompts, judge):
        self.checkpoint, self.recipe = checkpoint, recipe
        self.judge = checkpoint if judge is None else judge
        self.tokenizer = load_tokenizer(checkpoint.tokenizer, data_dir)
        if self.judge is not checkpoint:
            _refuse_other_tokenizer(self.judge, checkpoint, self.tokenizer, data_dir)
        if checkpoint.model.config.context < 3:
            raise UserError(f"{checkpoint.name} has a context of less than 3 tokens: name another")
        # Every process of several writes its own shards, on its own devices.
        own = {"devices": jax.local_devices()} if jax.process_count() > 1 else {}
        self.mesh = meshes.make_mesh(**own)
        if recipe.batch_size % self.mesh.size:
            raise UserError(
                f"recipe.batch_size is {recipe.batch_size}, which {self.mesh.size} devices do not "
                "divide: make it a multiple of them"
            )
        self.prompts, origin = _prompts(checkpoint, recipe, prompts, data_dir)
        self.head = _head(checkpoint, recipe, self.tokenizer, origin, judge)
        self.params = self._placed(checkpoint)
        self.judging = self.params if self.judge is checkpoint else None
        # With draws of its own: generations with the same ones would add up the same accidents.
        self.key = keys.fold(jax.random.key(recipe.seed), "synthesize", checkpoint.fingerprint)

    def shard(self, number: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The documents of a shard, as JSON, and its counts."""
        recipe, checkpoint = self.recipe, self.checkpoint
        row_B = number * recipe.batch_size + np.arange(recipe.batch_size)
        written = documents.write(
            checkpoint.model,
            self.params,
            self.prompts(row_B),
            recipe.length,
            keys.row_keys(self.key, row_B.astype(np.uint32)),
            begin=self._begin(checkpoint),
            separator=self.tokenizer.eos_id,
            mesh=self.mesh,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
        )
        counts = dict.fromkeys(COUNTS, 0) | {"rows": len(written)}
        texts = [self._text(document) for document in written]
        chosen = []
        for i, (document, text) in enumerate(zip(written, texts, strict=True)):
            if fault := self._fault(document, text):
                counts[fault] += 1
            else:
                chosen.append(i)
        chosen, losses_B = self._best(written, chosen, counts)
        again = self.tokenizer.encode_batch([texts[i] for i in chosen])
        lines = []
        for i, token_ids in zip(chosen, again, strict=True):
            counts["documents"] += 1
            counts["tokens"] += len(token_ids) + 1
            counts["ended"] += written[i].ended
            counts["not_utf8"] += "\ufffd" in texts[i]
            counts["same_tokens"] += token_ids == written[i].tokens
            line = {"row": int(row_B[i]), "tokens": len(token_ids) + 1, "text": texts[i]}
            lines.append(line if losses_B is None else line | {"loss": round(losses_B[i], 4)})
        return lines, counts

    def _text(self, document: documents.Written) -> str:
        text = self.tokenizer.decode(document.tokens)
        return text if document.ended else text.removesuffix("\ufffd")

    def _fault(self, document: documents.Written, text: str) -> str | None:
        if not text.strip():
            return "blank"
        if len(document.tokens) < self.recipe.shortest:
            return "short"
        if documents.repeated_share(document.tokens) > self.recipe.repetition:
            return "repetitive"
        return None

    def _best(self, written, chosen, counts):
        """Those of `chosen` with the least loss, in order, and the losses of all rows if asked."""
        if self.recipe.keep == 1:
            return chosen, None
        if self.judging is None:
            self.judging = self._placed(self.judge)
        losses_B = documents.mean_losses(
            self.judge.model,
            self.judging,
            written,
            self.recipe.length,
            begin=self._begin(self.judge),
            separator=self.tokenizer.eos_id,
            mesh=self.mesh,
            skip=self.recipe.prompt_tokens,
        )
        kept = math.ceil(self.recipe.keep * len(chosen))
        counts["poor"] += len(chosen) - kept
        return sorted(sorted(chosen, key=lambda i: losses_B[i])[:kept]), losses_B.tolist()

    def _begin(self, checkpoint: Checkpoint) -> list[int]:
        """What a model reads before a document."""
        if checkpoint.bos_id is not None:
            return [checkpoint.bos_id]
        return [] if self.recipe.prompt_tokens else [self.tokenizer.eos_id]

    def _placed(self, checkpoint: Checkpoint) -> Any:
        return jax.device_put(
            checkpoint.params, meshes.parameter_shardings(self.mesh, checkpoint.params)
        )


def _refuse_other_tokenizer(judge, checkpoint, tokenizer, data_dir) -> None:
    if load_tokenizer(judge.tokenizer, data_dir).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the judge {judge.name} has the tokenizer {judge.tokenizer} and the generator "
            f"{checkpoint.name} {checkpoint.tokenizer}: name a judge with the same one"
        )


def _prompts(
    checkpoint: Checkpoint, recipe: Recipe, name: str, data_dir: Path | str
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str] | None]:
    """The beginnings (B, K) of any rows (B,), and where they come from."""
    size = recipe.prompt_tokens
    if size == 0:
        return lambda row_B: np.zeros((len(row_B), 0), np.int32), None
    if not name:
        raise UserError(
            f"recipe.prompt_tokens is {size}, but no corpus of prompts is named: name one with "
            "config.data.prompts, or set it to 0"
        )
    packed = open_packed(name, "train", data_dir=data_dir, tokenizer=checkpoint.tokenizer)
    beginnings = Beginnings(packed, size, f"synthesize/{recipe.seed}")
    return beginnings, {"corpus": name, "sha256": packed.meta["splits"]["train"]["sha256"]}


def _head(checkpoint, recipe, tokenizer: Tokenizer, prompts, judge) -> dict[str, Any]:
    """What the text depends on, as JSON."""
    fields = ("name", "fingerprint", "step", "member", "tokens", "note")
    generator = {field: getattr(checkpoint, field) for field in fields}
    same = judge is None or judge.fingerprint == checkpoint.fingerprint
    return {
        "generator": generator,
        "recipe": dataclasses.asdict(recipe),
        "tokenizer": {"spec": checkpoint.tokenizer, "fingerprint": tokenizer.fingerprint},
        "prompts": prompts,
        "judge": None if same else {"name": judge.name, "fingerprint": judge.fingerprint},
    }


def main() -> int:
    """Reads the command line and does what it says."""
    configs.define_config_flag()
    flags.DEFINE_string("checkpoint", None, "the generator", required=True)
    flags.DEFINE_string("out", None, "folder of the text", required=True)
    values = configs.parse(sections=("data", "judge", "recipe"))
    config, data_dir = values.config, values.config.data.data_dir
    folder = storage.local_folder(values.out, "--out")
    recipe = Recipe(**config.recipe)
    with processes.joined():
        checkpoint = open_checkpoint(values.checkpoint, data_dir)
        judge = open_checkpoint(config.judge, data_dir) if config.judge else None
        try:
            found = synthesize(
                checkpoint,
                recipe,
                folder,
                data_dir=data_dir,
                prompts=config.data.prompts,
                judge=judge,
            )
        except Stopped:
            found = None
    if jax.process_index() == 0:
        print(_summary(found, folder))
    return 0


def _summary(found: dict[str, Any] | None, folder: Path) -> str:
    if found is None:
        return f"stopped; what was written is in {folder}, and the same command goes on"
    counts = found["counts"]
    return (
        f"{counts['documents']:,} documents of {counts['tokens']:,} tokens are in {folder} "
        f"({counts['rows']:,} were drawn; {counts['same_tokens'] / counts['documents']:.1%} are "
        "read as the tokens that were written); prepare it with `python -m lmnoise.data prepare "
        f"{folder}/ --tokenizer={found['tokenizer']['spec']}`"
    )


if __name__ == "__main__":
    cli.run(main)
