"""The keys of an analysis, with their defaults: minutes on two cores for 135M parameters."""

import re
from typing import Any

from ml_collections import ConfigDict

from lmnoise.errors import UserError
from lmnoise.evaluation.perturb import UNITS

RULES = ("taylor", "change")
# What is done to a region.
OPERATIONS = ("zero", "reinitialise")
LANGUAGES = tuple(
    f"libreoffice_aligned/{x}" for x in ("en-us", "de", "es", "ru", "zh-cn", "ko", "vi")
)
ENGLISH = ("sotu", "stdlib")


def default_config() -> ConfigDict:
    """All keys of an analysis. Files under `configs/` change some of them; the config is locked."""
    sections = dict(
        data=dict(
            data_dir="data",
            split="validation",
            length=128,  # tokens a window
            batch_size=4,  # windows at once
        ),
        model=dict(
            dtype="float32",  # of the operands of the large products
            logits_chunk=512,  # tokens whose logits are held at once
        ),
        mesh=dict(member=1, data=0, model=1),
        continuation=dict(
            prompts=(
                "The capital of France is",
                "Water boils at a temperature of",
                "My fellow citizens, the state of the union",
            ),
            new_tokens=16,
        ),
        language=dict(sources=(*ENGLISH, *LANGUAGES), windows=16),
        perturb=_perturb(),
        regions=_regions(),
        parameters=_parameters(),
    )
    return ConfigDict(sections).lock()


def _perturb() -> dict[str, Any]:
    return dict(
        sources=ENGLISH,
        windows=8,  # of each source; 0 for all
        pattern=r"blocks/.*",  # of the names of the tensors that are touched
        unit="weight_rms",  # of Gaussian noise; or init_std, absolute
        seeds=(0, 1, 2),
        strengths=dict(  # an empty tuple leaves a kind out
            gaussian=(0.01, 0.03, 0.1, 0.2, 0.4),
            zero=(0.003, 0.01, 0.03, 0.1),
            reinitialise=(0.003, 0.01, 0.03, 0.1),
            scale=(0.8, 0.9, 1.1, 1.25),
            quantise=(3, 4, 5, 6, 8),
        ),
    )


def _regions() -> dict[str, Any]:
    return dict(
        sources=LANGUAGES,  # scored
        windows=4,
        languages=LANGUAGES[1:],  # whose importance is summed
        rule="taylor",  # or change
        importance_windows=32,  # of each language's train split, for the Taylor rule
        shares=(0.01, 0.03, 0.05),
        monolingual_share=0.03,
        operations=OPERATIONS,
        seeds=(0, 1, 2, 3, 4),  # of random regions, and of new values
        training=dict(  # of the change rule, for each language
            steps=40,
            batch_size=4,
            learning_rate=2e-5,
            weight_decay=0.0,
            schedule="constant",
            seed=0,
            evaluate_every=0,
        ),
    )


def _parameters() -> dict[str, Any]:
    return dict(
        sources=ENGLISH,
        windows=4,
        massive_dimensions=2,  # whose norm weights are tried, in every layer
        norm_weights=3,  # the worst of them, held against controls
        super_weights=3,  # candidates in down projections, held against controls
        matched=3,  # controls of the same tensor and magnitude
        random=2,  # controls of the same tensor
        scales=(0.0, 2.0, 10.0),  # what a number is multiplied with
        draws=2,  # of the number anew
        seed=0,
        scan=("blocks/0/attention_norm/scale",),  # each of whose weights is changed alone
        scan_factor=10.0,
    )


# The least value of the keys that count something.
_LEAST = {
    "data.length": 1,
    "data.batch_size": 1,
    "model.logits_chunk": 1,
    "continuation.new_tokens": 1,
    "language.windows": 0,
    "perturb.windows": 0,
    "regions.windows": 0,
    "regions.importance_windows": 1,
    "regions.training.steps": 1,
    "regions.training.batch_size": 1,
    "regions.training.evaluate_every": 0,
    "parameters.windows": 0,
    "parameters.massive_dimensions": 1,
    "parameters.norm_weights": 1,
    "parameters.super_weights": 1,
    "parameters.matched": 1,
    "parameters.random": 1,
    "parameters.draws": 0,
}
_CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "perturb.unit": UNITS,
    "regions.rule": RULES,
}
_NOT_EMPTY = (
    *(f"{analysis}.sources" for analysis in ("language", "perturb", "regions", "parameters")),
    *("perturb.seeds", "regions.seeds", "regions.shares", "regions.operations"),
)


def check(config: ConfigDict) -> None:
    """Raises a UserError that names the first key whose value makes no sense, and the remedy."""
    for key, least in _LEAST.items():
        if (value := config[key]) < least:
            raise UserError(f"config.{key} is {value}: it must be at least {least}")
    for key, choices in _CHOICES.items():
        if config[key] not in choices:
            raise UserError(
                f"config.{key} must be one of {', '.join(choices)}, not {config[key]!r}"
            )
    for key in _NOT_EMPTY:
        if not config[key]:
            raise UserError(f"config.{key} is empty: it needs a value or more")
    section = config.regions
    for operation in section.operations:
        if operation not in OPERATIONS:
            raise UserError(
                f"config.regions.operations has {operation!r}: take {' or '.join(OPERATIONS)}"
            )
    for key, shares in (
        ("shares", section.shares),
        ("monolingual_share", (section.monolingual_share,)),
    ):
        if not all(0 < share <= 0.5 for share in shares):
            raise UserError(f"config.regions.{key} must lie above 0 and up to 0.5, not {shares}")
    if len(section.languages) < 2:
        raise UserError(f"config.regions.languages needs two or more, not {section.languages}")
    try:
        re.compile(config.perturb.pattern)
    except re.error as error:
        raise UserError(
            f"config.perturb.pattern {config.perturb.pattern!r} is no regular expression ({error})"
        ) from None
