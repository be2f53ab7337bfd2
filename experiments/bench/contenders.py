"""What the training benchmark can measure: shapes, contenders, and variants of our own."""

import ast
import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from lmnoise import config as configs
from lmnoise.errors import UserError
from lmnoise.models.transformer import LanguageModel, TransformerConfig, gpt2
from lmnoise.training.optimizer import OptimizerConfig

OPERANDS = {"f32": "float32", "bf16": "bfloat16"}
KINDS = ("product", "run", "population", "nanogpt", "nanogpt-compile", "nanodo")
NAMES = {
    "product": "matrix product (XLA)",
    "nanogpt": "nanoGPT (PyTorch)",
    "nanogpt-compile": "nanoGPT (PyTorch, torch.compile)",
    "nanodo": "nanodo (JAX, Flax)",
    "sweep": "lmnoise",
    "grid": "lmnoise, one population",
    "runs": "lmnoise, one rate after the other",
    "one": "lmnoise, one rate alone",
    "transformers": "PyTorch and transformers",
}
# Of bare products, which are short.
PRODUCTS = 10
SECTIONS = {
    "model": [field.name for field in dataclasses.fields(TransformerConfig)],
    "optimizer": [field.name for field in dataclasses.fields(OptimizerConfig)],
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A GPT-2 without biases and its batch.

    Attributes:
      dispatch: steps a dispatch of ours on a CPU; elsewhere it is the library's default.
      kinds, operands: the contenders that are measured if none are named.
      accelerator: for an accelerator, which the contenders' processes fill one at a time.
    """

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    dispatch: int
    vocab_size: int = 65
    kinds: tuple[str, ...] = KINDS
    operands: tuple[str, ...] = tuple(OPERANDS)
    accelerator: bool = False

    @property
    def text(self) -> str:
        return (
            f"L{self.layers} D{self.width} H{self.heads} S{self.length} B{self.batch} "
            f"V{self.vocab_size}"
        )

    def model(self, **fields) -> TransformerConfig:
        """The model with the library's own choices, but for `fields`."""
        size = {n: getattr(self, n) for n in ("layers", "width", "heads", "vocab_size")}
        return gpt2(**{**size, "context": self.length, "bias": False, **fields})

    @functools.cached_property
    def flops_per_token(self) -> float:
        """Model FLOPs, the same for all contenders; asks JAX for its devices."""
        return LanguageModel(self.model()).flops_per_token(self.length)


OURS = ("product", "run", "population")
PEERS = ("nanogpt", "nanogpt-compile", "nanodo")
SHAPES = {
    "tiny": Shape(layers=1, width=16, heads=2, length=16, batch=4, dispatch=2),
    "small": Shape(layers=4, width=128, heads=4, length=64, batch=12, dispatch=10),
    # Its population would cost a minute a round; `population10m` has the same model.
    "large": Shape(
        layers=6,
        width=384,
        heads=6,
        length=256,
        batch=16,
        dispatch=4,
        kinds=("product", "run", *PEERS),
    ),
    "population10m": Shape(
        layers=6, width=384, heads=6, length=64, batch=8, dispatch=4, kinds=OURS
    ),
    # A batch that leaves room for contenders who keep scores and logits whole in 80 GB.
    "gpt2": Shape(
        layers=12,
        width=768,
        heads=12,
        length=1024,
        batch=16,
        dispatch=1,
        vocab_size=50_304,
        kinds=("product", "run", *PEERS),
        operands=("bf16",),
        accelerator=True,
    ),
}
# Where none are named: on a CPU, and on an accelerator.
DEFAULT_SHAPES = {True: ("small", "large", "population10m"), False: ("gpt2", "population10m")}


@dataclasses.dataclass(frozen=True)
class Contender:
    """What is measured.

    Attributes:
      dispatch: steps in one call of the device.
      steps: of a turn; 0 for as many as a turn's seconds hold.
      variant: what differs from the library's own choices, as the user wrote it.
    """

    kind: str
    operands: str
    members: int
    dispatch: int
    steps: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        runs = "one run" if self.members == 1 else f"{self.members} members"
        name = NAMES.get(self.kind, f"lmnoise, {runs}")
        return f"{name}, {self.variant}" if self.variant else name


def contenders(
    shape: Shape,
    *,
    members: int,
    on_cpu: bool,
    named: Collection[str] = (),
    without: Collection[str] = (),
    variants: dict[str, dict[str, Any]],
) -> list[Contender]:
    """The contenders of a shape in the order of their turns.

    Args:
      members: of the population.
      named: `kind-operands`; empty for those of the shape.
      without: kinds that are left out, unless they are named.
      variants: see `parse_variants`; each runs beside every single run of ours.

    Raises:
      UserError: there are variants but no single run to hold them against.
    """
    dispatch = shape.dispatch if on_cpu else configs.default_config().train.steps_per_dispatch
    ours = {"product": (0, PRODUCTS), "run": (1, dispatch), "population": (members, dispatch)}
    found = [
        Contender(kind, operands, *ours.get(kind, (1, 1)))
        for kind in KINDS
        for operands in OPERANDS
        if (
            f"{kind}-{operands}" in named
            if named
            else kind in shape.kinds and operands in shape.operands and kind not in without
        )
    ]
    runs = [contender for contender in found if contender.kind == "run"]
    if variants and not runs:
        raise UserError("--variants are held against single runs: add run-f32 to --contenders")
    for text, settings in variants.items():
        for run in runs:
            its = settings.get("dispatch", run.dispatch)
            found.append(dataclasses.replace(run, dispatch=its, variant=text))
    return found


def parse_variants(text: str) -> dict[str, dict[str, Any]]:
    """From `layers_as=scan;model.remat=full,dispatch=5` to the settings of each variant.

    Returns:
      By the variant's text: `{"model": {...}, "optimizer": {...}, "dispatch": n}`, of which the
      parts that do not differ are absent.

    Raises:
      UserError: a setting that does not exist.
    """
    return {part.strip(): _settings(part) for part in text.split(";") if part.strip()}


def _settings(text: str) -> dict[str, Any]:
    settings = {}
    for setting in text.split(","):
        name, equals, value = (part.strip() for part in setting.partition("="))
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pass  # A word.
        if not equals:
            raise UserError(f"--variants: {setting.strip()!r} is not of the form name=value")
        if name == "dispatch":
            if not isinstance(value, int) or value < 1:
                raise UserError(f"--variants: dispatch={value} is no number of steps from 1 up")
            settings["dispatch"] = value
            continue
        section, _, field = name.rpartition(".")
        homes = [s for s in SECTIONS if section in ("", s) and field in SECTIONS[s]]
        if not homes:
            known = "; ".join(f"{s}: {', '.join(fields)}" for s, fields in SECTIONS.items())
            raise UserError(f"--variants: {name!r} is neither dispatch nor a field of {known}")
        settings.setdefault(homes[0], {})[field] = value
    return settings
