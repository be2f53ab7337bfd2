"""Fine-tuning on one language, with the checkpoint's tokens and with tokens of its own."""

import dataclasses
import functools
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import jax
import multilingual_probes
from ml_collections import ConfigDict
from multilingual_texts import Texts, documents, front, spread

from lmnoise import keys
from lmnoise.analyze.continued import Continued
from lmnoise.analyze.defaults import label
from lmnoise.analyze.importance import digest_of
from lmnoise.analyze.subject import Subject, prepare_all, subject_of
from lmnoise.checkpoints import fingerprint
from lmnoise.data.files import atomic_folder, locked
from lmnoise.data.tokenizer import Tokenizer, tokenizer_files
from lmnoise.evaluation import vocabulary
from lmnoise.evaluation.generation import generate
from lmnoise.evaluation.language import scorer
from lmnoise.evaluation.scripts import code_switched_tokens
from lmnoise.models.transformer import LanguageModel
from lmnoise.training.metrics import read_rows

DIRECT, EXTENDED = "direct", "extended"


@dataclasses.dataclass(frozen=True)
class Runs:
    """All runs with one vocabulary; they share one program."""

    subject: Subject
    config: ConfigDict
    texts: Texts
    kind: str
    identity: dict[str, Any]

    def measure(self, language: str) -> list[dict[str, Any]]:
        """One result a seed: `rows` along the training, `probes` at its end."""
        section = self.config.multilingual
        prepare_all((language,), self.subject.checkpoint, self.subject.data)
        settings = [
            self.identity
            | {"what": "run", "kind": self.kind, "language": language, "seed": seed}
            | {"training": section.training.to_dict()}
            | {"generation": section.generation.to_dict()}
            | ({"new tokens": section.new_tokens} if self.kind == EXTENDED else {})
            for seed in section.seeds
        ]
        train = functools.partial(self._train, language)
        return self.subject.compute(settings, train, f"{self.kind}, {label(language)}")

    @functools.cached_property
    def _population(self) -> Any:
        return Continued(self.subject, self.config.multilingual.training).population()

    @functools.cached_property
    def _scorers(self) -> dict[str, Callable[..., Any]]:
        """{language: sums of it and of English}."""
        sources = {
            name: vocabulary.text_source(
                name,
                texts,
                self.subject.tokenizer.encode_batch(texts),
                front=front(self.subject),
                length=self.subject.data.length,
                batch_size=self.subject.data.batch_size,
            )
            for name, texts in self.texts.scored.items()
        }
        score = functools.partial(scorer, self._population, self.subject.model.loss)
        english = next(iter(sources))
        return {n: score([sources[english], s]) for n, s in sources.items()}

    def _train(self, language: str, setting: dict[str, Any]) -> dict[str, Any]:
        subject = self.subject
        training = self.config.multilingual.training.copy_and_resolve_references()
        training.seed = setting["seed"]
        evaluate = functools.partial(self._evaluate, label(language))
        begin, folder = (
            subject.checkpoint.params,
            subject.workdir / "continued" / digest_of(setting),
        )
        rows = evaluate(self._population.start(begin).params)
        states = Continued(subject, training).run(
            self._population,
            language,
            begin,
            folder,
            setting,
            f"{self.kind}, {label(language)}, seed {training.seed}",
            evaluate,
        )
        rows = [{"step": 0} | row for row in rows] + [r for r in read_rows(folder) if "nats" in r]
        found = {"rows": rows, **self._size(language)}
        if self.kind == DIRECT:
            params = jax.tree.map(lambda leaf: leaf[0], states.params)
            found["probes"] = multilingual_probes.probe(subject, params, self.texts, self.config)
        shutil.rmtree(folder)
        return found

    def _size(self, language: str) -> dict[str, float]:
        """What a token costs, and the text in it."""
        split = self.subject.packed(language, "train").meta["splits"]["train"]
        return {
            "bytes_per_token": split["bytes"] / split["tokens"],
            "flops_per_token": self.subject.model.flops_per_token(self.subject.data.length),
        }

    def _evaluate(self, language: str, params: Any) -> list[dict[str, Any]]:
        """Nats of every held-out text, and what the model writes."""
        sums = self._scorers[language](params)
        nats = {name: of_source.losses_MD[0].tolist() for name, of_source in sums.items()}
        return [{"member": 0, "nats": nats, **self._write(language, params)}]

    def _write(self, language: str, params: Any) -> dict[str, Any]:
        """Continuations of the first halves of held-out paragraphs, and their foreign share."""
        section, tokenizer = self.config.multilingual.generation, self.subject.tokenizer
        begun = beginnings(self.texts.scored[language], section.prompts)
        prompts = [[front(self.subject), *tokenizer.encode(text)] for text in begun]
        # The training loop forbids hidden transfers, of which writing a few prompts has many.
        with jax.transfer_guard("allow"):
            found = generate(
                self.subject.model,
                jax.tree.map(lambda leaf: leaf[0], params),
                prompts,
                section.new_tokens,
                key=keys.fold(jax.random.key(0), "multilingual"),
                temperature=section.temperature,
                top_p=section.top_p,
            )
        return {
            "written": [tokenizer.decode(ids) for ids in found],
            "switched": [switched(ids, tokenizer, language) for ids in found],
        }


def switched(ids: list[int], tokenizer: Tokenizer, language: str) -> float | None:
    """The share of code-switched tokens; None where no token has a letter."""
    share = code_switched_tokens(ids, tokenizer.decode, language, {tokenizer.eos_id})
    return None if math.isnan(share) else share


def beginnings(texts: list[str], count: int) -> list[str]:
    """The first halves of some of the texts, as prompts."""
    return [text[: len(text) // 2] for text in spread(texts, count)]


def endings(texts: list[str], count: int) -> list[str]:
    """What people wrote after `beginnings`."""
    return [text[len(text) // 2 :] for text in spread(texts, count)]


def extended(subject: Subject, language: str, config: ConfigDict) -> Subject:
    """The checkpoint with `config.multilingual.new_tokens` more, learnt on the training text."""
    own, count = subject.checkpoint, config.multilingual.new_tokens
    texts = list(documents(subject, language, ("train",)).values())
    tokenizer = subject.tokenizer.as_model()
    grown = vocabulary.learn(tokenizer, texts, count, own.model.config.vocab_size)
    shape, params = vocabulary.extend(own.model.config, own.params, grown.pieces)
    digest = digest_of({"checkpoint": own.fingerprint, "pieces": grown.pieces})
    folder = subject.workdir / "vocabulary" / f"{label(language)}-{count}-{digest}"
    files = tokenizer_files(grown.tokenizer, tokenizer.id_to_token(subject.tokenizer.eos_id))
    with locked(folder):
        if not folder.exists():
            with atomic_folder(folder) as temporary:
                for name, text in files.items():
                    (temporary / name).write_text(text, encoding="utf-8")
    checkpoint = dataclasses.replace(
        own,
        name=f"{own.name}+{count}",
        model=LanguageModel(shape),
        params=params,
        tokenizer=str(folder / "tokenizer.json"),
        fingerprint=fingerprint(shape, params),
    )
    return subject_of(checkpoint, config, (), 0, subject.workdir)


def identity_of(texts: Texts, config: ConfigDict) -> dict[str, Any]:
    """What all points of the study depend on besides the checkpoint."""
    section = config.multilingual
    arrays = [rows.tokens_NS.tolist() for rows in (*texts.aligned.values(), texts.sentences)]
    heads = [parse.heads for parse in texts.parses]
    read = json.dumps([arrays, heads, texts.scored])
    return {"read": digest_of({"texts": read}), "permutations": section.permutations}
