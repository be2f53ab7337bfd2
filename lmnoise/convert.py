"""Converts any checkpoint to a Hugging Face folder that transformers loads, tokenizer and all.

    python -m lmnoise.convert SRC DST [--dtype=float32] [--data_dir=data]

SRC is a ready-made model (smollm2), a Hugging Face folder, a .gguf file or a run of ours; see
`lmnoise.checkpoints`.
"""

import argparse
import json
from pathlib import Path

from lmnoise import cli
from lmnoise.checkpoints import ORIGIN, Checkpoint, open_checkpoint, read_origin
from lmnoise.data.files import atomic_folder, locked
from lmnoise.data.tokenizer import load_tokenizer, tokenizer_files
from lmnoise.errors import UserError
from lmnoise.models.pretrained import DTYPES, write_folder


def convert(checkpoint: Checkpoint, folder: Path, *, dtype: str, data_dir: str) -> bool:
    """Writes a checkpoint as a Hugging Face folder, which appears whole or not at all.

    Returns:
      Whether it was written; False if the folder holds this very conversion already.

    Raises:
      UserError: the folder holds something else, or no class of Hugging Face's computes the
        model.
    """
    origin = {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "dtype": dtype,
        "tokens": checkpoint.tokens,
        "note": checkpoint.note,
    }
    with locked(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file: name a folder that is new or empty")
        if folder.exists() and any(folder.iterdir()):
            if read_origin(folder) == origin:
                return False
            raise UserError(f"{folder} is not empty: remove it, or name another folder")
        tokenizer = load_tokenizer(checkpoint.tokenizer, data_dir)
        model, eos = tokenizer.as_model(), tokenizer.eos_id
        bos = eos if checkpoint.bos_id is None else checkpoint.bos_id
        files = tokenizer_files(model, model.id_to_token(eos))
        files[ORIGIN] = json.dumps(origin, indent=1) + "\n"
        with atomic_folder(folder) as temporary:
            write_folder(
                temporary,
                checkpoint.model.config,
                checkpoint.params,
                dtype=dtype,
                entries={"bos_token_id": bos, "eos_token_id": eos},
            )
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
    return True


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        "python -m lmnoise.convert", description="Any checkpoint as a Hugging Face folder."
    )
    parser.add_argument("src", metavar="SRC", help="smollm2, a folder, a .gguf file, or a run")
    parser.add_argument("dst", metavar="DST", type=Path, help="a new folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the tensors")
    parser.add_argument("--data_dir", default="data")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.src, arguments.data_dir)
    written = convert(checkpoint, arguments.dst, dtype=arguments.dtype, data_dir=arguments.data_dir)
    what = f"{checkpoint.model.parameter_count:,} parameters as {arguments.dtype}"
    print(f"{arguments.dst} {'now' if written else 'already'} holds {checkpoint.name}: {what}")


if __name__ == "__main__":
    cli.run(main)
