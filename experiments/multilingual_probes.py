"""What heads attend to and how alike the languages are, for given parameters."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from multilingual_texts import Texts

from lmnoise.analyze.subject import Subject
from lmnoise.evaluation import crosslingual

# Patterns as the report calls them; the last two are over pairs of words that no arc links.
TOKENS = ("previous", "first", "same", "after same")
ARCS = ("head", "dependent")
MEASURES = ("cka", "rsa", "retrieval")


def probe(subject: Subject, params: Any, texts: Texts, config: ConfigDict) -> dict[str, Any]:
    """`heads` {pattern: {share, error}: (L, H)} and `similarity` {language: a row a layer}."""
    return {
        "heads": _heads(subject, params, texts),
        "similarity": _similarity(subject, params, texts, config),
    }


def _heads(subject: Subject, params: Any, texts: Texts) -> dict[str, Any]:
    length = texts.sentences.tokens_NS.shape[1]
    patterns = crosslingual.token_patterns(texts.sentences)
    patterns |= crosslingual.arc_patterns(texts.parses, length)
    patterns = {name: p for name, p in patterns.items() if p.count_N.sum()}
    sums = crosslingual.attended(
        subject.model, params, texts.sentences, patterns, subject.data.batch_size
    )
    found = {}
    for name in (*TOKENS, *ARCS):
        if name not in patterns:
            continue
        if name in ARCS:
            control = f"{name}, control"
            share_LH, error_LH = crosslingual.excess(
                sums[name], patterns[name].count_N, sums[control], patterns[control].count_N
            )
        else:
            share_LH, error_LH = crosslingual.shares(sums[name], patterns[name].count_N)
        found[name] = {
            "share": share_LH.tolist(),
            "error": error_LH.tolist(),
            "queries": float(patterns[name].count_N.sum()),
        }
    return found


def _similarity(
    subject: Subject, params: Any, texts: Texts, config: ConfigDict
) -> dict[str, list[dict[str, Any]]]:
    features = {
        language: crosslingual.paragraph_features(
            subject.model, params, rows, subject.data.batch_size
        )
        for language, rows in texts.aligned.items()
    }
    english, *others = features
    return {
        other: [
            crosslingual.compare(x_ND, y_ND, permutations=config.multilingual.permutations, seed=0)
            for x_ND, y_ND in zip(features[english], features[other], strict=True)
        ]
        for other in others
    }


def array(found: dict[str, Any], pattern: str, what: str = "share") -> np.ndarray:
    """One map of heads, (L, H)."""
    return np.array(found["heads"][pattern][what])


def curve(found: dict[str, Any], language: str, measure: str, what: str = "value") -> np.ndarray:
    """One similarity by layer, (L + 1,)."""
    return np.array([row[measure][what] for row in found["similarity"][language]])
