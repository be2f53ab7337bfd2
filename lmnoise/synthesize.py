"""Text that a model writes, as a corpus.

    python -m lmnoise.synthesize --checkpoint=runs/lm --config=configs/synthesize.py:laptop \\
        --out=synthetic

`--checkpoint` is what `lmnoise.checkpoints` opens. The folder is a user's corpus like any other,
and `generator.json` in it says what wrote it; a prepared copy carries that. The same command goes
on after a stop or a kill.
"""

import dataclasses
from pathlib import Path
from typing import Any

from lmnoise.checkpoints import Checkpoint


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
        real document, which the new document keeps.
      batch_size: documents written at once, which are a shard of the folder.
      seed: of the draws.
      keep: of every batch, the share of the documents with the least mean loss under the judge.
      repetition: documents of which a larger share of 4-grams were there before are dropped.
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
    not on devices, processes or stops.

    Args:
      checkpoint: the generator.
      recipe: how it writes.
      folder: `part-00000.jsonl` and so on, one shard a batch, and at the end `generator.json`.
      data_dir: of the tokenizer, and of the prompts.
      prompts: a corpus, prepared with the generator's tokenizer, on whose train split documents
        begin; for `prompt_tokens` > 0.
      judge: whose loss `keep` looks at; by default the generator.
      title: of the progress bar.

    Returns:
      What `generator.json` says.

    Raises:
      UserError: a value outside its range, prompts that are not prepared, a judge with another
        tokenizer, or a folder that holds the text of another recipe or generator.
      Stopped: a signal came; the same call goes on.
    """
    raise NotImplementedError
