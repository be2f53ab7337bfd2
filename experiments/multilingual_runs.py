"""Fine-tuning on one language, with the checkpoint's tokens and with tokens of its own."""

import dataclasses
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
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
from lmnoise.evaluation.scripts import code_switched, code_switched_tokens
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
        rate = self._rate(language)
        settings = [
            self._setting("run", language, rate, seed)
            | {"generation": section.generation.to_dict()}
            for seed in section.seeds
        ]
        train = functools.partial(self._train, language)
        found = self.subject.compute(settings, train, f"{self.kind}, {label(language)}")
        return [result | {"learning_rate": rate} for result in found]

    def _setting(self, what: str, language: str, rate: float, seed: int) -> dict[str, Any]:
        section = self.config.multilingual
        training = section.training.to_dict() | {"learning_rate": rate}
        setting = {"what": what, "kind": self.kind, "language": language, "seed": seed}
        more = {"new tokens": section.new_tokens} if self.kind == EXTENDED else {}
        return self.identity | setting | {"training": training} | more

    def _rate(self, language: str) -> float:
        """The best of the rates for this vocabulary, where vocabularies are compared."""
        section = self.config.multilingual
        if language not in section.extended:
            return section.training.learning_rate
        settings = [
            self._setting("rate", language, rate, section.seeds[0]) for rate in section.rates
        ]
        name = f"{self.kind}, {label(language)}"
        found = self.subject.compute(
            settings, functools.partial(self._try, language), f"{name}, rate"
        )
        nats = [result["nats"] if math.isfinite(result["nats"]) else math.inf for result in found]
        return section.rates[nats.index(min(nats))]

    @functools.cached_property
    def _population(self) -> Any:
        return Continued(self.subject, self.config.multilingual.training).population()

    @functools.cached_property
    def _score(self) -> Callable[..., Any]:
        """Sums of the held-out paragraphs, and by `tuning_name` of those for the rates."""
        texts = self.texts.scored | {tuning_name(n): t for n, t in self.texts.tuning.items()}
        sources = [
            vocabulary.text_source(
                name,
                of_name,
                self.subject.tokenizer.encode_batch(of_name),
                front=front(self.subject),
                length=self.subject.data.length,
                batch_size=self.subject.data.batch_size,
            )
            for name, of_name in texts.items()
        ]
        return scorer(self._population, self.subject.model.loss, sources)

    @functools.cached_property
    def _before(self) -> dict[str, list[float]]:
        """{language: nats of its paragraphs}, the same for all runs."""
        params = self._population.start(self.subject.checkpoint.params).params
        return _nats(self._score(params, self.texts.scored))

    def _fit(
        self, language: str, setting: dict[str, Any], folder: Path, evaluate: Callable[..., Any]
    ) -> Any:
        """The parameters at the end of a run."""
        subject = self.subject
        training = ConfigDict(setting["training"] | {"seed": setting["seed"]})
        run = Continued(subject, training)
        states = run.run(
            self._population.using(run.members()),
            language,
            subject.checkpoint.params,
            folder,
            setting,
            f"{self.kind}, {label(language)}, rate {training.learning_rate:g}, seed "
            f"{training.seed}",
            evaluate,
        )
        return states.params

    def _folder(self, setting: dict[str, Any]) -> Path:
        return self.subject.workdir / "continued" / digest_of(setting)

    def _try(self, language: str, setting: dict[str, Any]) -> dict[str, Any]:
        """How a rate does: nats of the tuning paragraphs at the end."""
        folder, name = self._folder(setting), tuning_name(label(language))
        params = self._fit(language, setting, folder, lambda params: [])
        [nats] = _nats(self._score(params, [name])).values()
        shutil.rmtree(folder)
        return {"nats": sum(nats)}

    def _train(self, language: str, setting: dict[str, Any]) -> dict[str, Any]:
        subject, name, seed = self.subject, label(language), setting["seed"]
        english = next(iter(self.texts.scored))

        def evaluate(params: Any) -> list[dict[str, Any]]:
            nats = _nats(self._score(params, (english, name)))
            return [{"member": 0, "nats": nats, **self._write(name, _first(params), seed)}]

        folder = self._folder(setting)
        start = {"step": 0, "nats": {n: self._before[n] for n in (english, name)}}
        start |= self._write(name, subject.params, seed)
        params = self._fit(language, setting, folder, evaluate)
        found = {
            "rows": [start, *(r for r in read_rows(folder) if "nats" in r)],
            **self._size(language),
        }
        if self.kind == DIRECT:
            found["probes"] = multilingual_probes.probe(
                subject, _first(params), self.texts, self.config
            )
        shutil.rmtree(folder)
        return found

    def _size(self, language: str) -> dict[str, float]:
        """What a token costs, and the text in it."""
        split = self.subject.packed(language, "train").meta["splits"]["train"]
        return {
            "train_tokens": split["tokens"],
            "bytes_per_token": split["bytes"] / split["tokens"],
            "flops_per_token": self.subject.model.flops_per_token(self.subject.data.length),
        }

    def _write(self, language: str, params: Any, seed: int) -> dict[str, Any]:
        """Continuations of the first halves of held-out paragraphs, and their foreign shares."""
        section, tokenizer = self.config.multilingual.generation, self.subject.tokenizer
        begun = beginnings(self.texts.scored[language], section.prompts)
        prompts = [[front(self.subject), *tokenizer.encode(text)] for text in begun]
        # The training loop forbids hidden transfers, of which writing a few prompts has many.
        with jax.transfer_guard("allow"):
            found = generate(
                self.subject.model,
                params,
                prompts,
                section.new_tokens,
                # The same along a run, so that what changes is the model; another for each seed.
                key=keys.fold(jax.random.key(0), "multilingual", seed),
                temperature=section.temperature,
                top_p=section.top_p,
                stop=tokenizer.eos_id,
            )
        found = [list(itertools.takewhile(tokenizer.eos_id.__ne__, ids)) for ids in found]
        return {
            "ids": found,
            "written": [tokenizer.decode(ids) for ids in found],
            "switched": [switched(ids, tokenizer, language) for ids in found],
        }


def tuning_name(language: str) -> str:
    return f"{language}, tuning"


def _first(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], params)


def _nats(sums: dict[str, Any]) -> dict[str, list[float]]:
    return {name: of_source.losses_MD[0].tolist() for name, of_source in sums.items()}


def switched(ids: list[int], tokenizer: Tokenizer, language: str) -> dict[str, float | None]:
    """Code-switched shares, of "tokens" and of "letters"; None where there is no letter.

    Neither special tokens, such as those around an answer, nor their names are text.
    """
    added = tokenizer.as_model().get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    text = tokenizer.decode([number for number in ids if number not in special])
    shares = {
        "tokens": code_switched_tokens(ids, tokenizer.decode, language, special),
        "letters": code_switched(text, language),
    }
    return {of: None if math.isnan(share) else share for of, share in shares.items()}


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
    read = json.dumps([arrays, heads, texts.scored, texts.tuning])
    return {"read": digest_of({"texts": read}), "permutations": section.permutations}
