"""Configs: the defaults of a training run, and how the command line changes any config file."""

import difflib
import re
import runpy
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from lmnoise.errors import UserError

# All keys of a run, with their defaults.
_DEFAULTS = dict(
    data=dict(
        source="sotu",  # a corpus that `python -m lmnoise.data prepare` knows, or a path
        tokenizer="bpe:1024@sotu",
        data_dir="data",
        length=128,  # tokens a window
        evaluate=("sotu",),  # corpora whose held-out text is evaluated
        evaluate_split="validation",
        evaluate_windows=64,  # of each corpus; 0 for all
    ),
    noise=dict(
        budget="total",  # "total": noise replaces clean rows; "clean": it comes on top
        source="",  # corpus of kind "stream": another language, or "sotu+markup"; of each seed its
        # own where the name contains {seed}
        gaussian_std=0.0,  # of kind "gaussian"; 0 is vocab_size / 8
    ),
    members=dict(
        seed=(0,),
        kind=("uniform",),
        rate=(0.0,),
        noise_weight=(1.0,),  # of the loss on a noise row, beside 1 on a clean one
        learning_rate=(1e-3,),
        weight_decay=(0.1,),
        duration=(1.0,),  # shares of train.steps that a member trains, its schedule with it
    ),
    model=dict(
        family="gpt2",
        layers=4,
        width=128,
        heads=4,
        kv_heads=0,  # 0: as many as heads; fewer for llama only
        mlp_width=0,  # 0: 4 * width
        bias=True,  # gpt2 only
        tied=True,
        vocab_size=0,  # 0: the tokenizer's; larger pads the table
        rope_theta=10_000.0,  # llama only
        dtype="float32",
        layers_as="auto",
        attention="auto",
        remat="none",  # "full", "products": compute again what memory is too small for
        logits_chunk=4096,
    ),
    optimizer=dict(
        algorithm="adamw",
        schedule="cosine",
        warmup_fraction=0.1,
        decay_fraction=0.2,
        final_fraction=0.1,
        cycle_steps=0,
        b1=0.9,
        b2=0.95,
        epsilon=1e-8,
        moment_dtype="float32",  # of adamw's first moment; "bfloat16" takes less memory
        momentum=0.0,  # of algorithm "sgd"
        clip_norm=1.0,
        decay_to="zero",  # "start": weight decay pulls towards the parameters at the start
    ),
    train=dict(
        steps=1000,
        batch_size=16,
        accumulate=1,
        log_every=50,
        evaluate_every=0,
        checkpoint_every=500,
        keep=2,
        keep_every=0,
        steps_per_dispatch=10,
        members_at_once=0,  # of those of a device, down to a divisor of their number; 0: what suits
    ),
    spikes=dict(threshold=0.0, window=100, skip=2, max_rollbacks=3),
    mesh=dict(member=0, data=0, fsdp=0, model=0),  # 0: what suits the devices and the run
)


# The least value of the keys that count something.
_LEAST = {
    "data.length": 1,
    "data.evaluate_windows": 0,
    "model.layers": 1,
    "model.width": 1,
    "model.heads": 1,
    "model.kv_heads": 0,
    "model.mlp_width": 0,
    "model.vocab_size": 0,
    "model.logits_chunk": 1,
    "noise.gaussian_std": 0,
    "train.steps": 1,
    "train.batch_size": 1,
    "train.accumulate": 1,
    "train.log_every": 0,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 0,
    "train.keep": 1,
    "train.keep_every": 0,
    "train.steps_per_dispatch": 1,
    "train.members_at_once": 0,
    "spikes.threshold": 0,
    "spikes.window": 1,
    "spikes.skip": 1,
    "spikes.max_rollbacks": 0,
}


def default_config() -> ConfigDict:
    """All keys of a run, with their defaults. Files under `configs/` change some of them.

    `members` holds the axes of the population: the run trains the product of its tuples. The
    config is locked: a key that is not there cannot be set by mistake.
    """
    return ConfigDict(_DEFAULTS).lock()


def check_least(config: ConfigDict) -> None:
    """Raises a UserError for a key of a run that counts something and is below its least value."""
    for key, least in _LEAST.items():
        section, name = key.split(".")
        if config[section][name] < least:
            raise UserError(f"config.{key} is {config[section][name]}: it must be at least {least}")


def preset(name: str | None, presets: dict[str, Callable[[], ConfigDict]]) -> ConfigDict:
    """The config of a preset; a name that is not there is a UserError that lists them."""
    if name not in presets:
        raise UserError(f"the preset {name!r} is not one of {', '.join(presets)}")
    return presets[name]()


def parse(argv: list[str] | None = None, sections: Collection[str] = ()) -> flags.FlagValues:
    """Parses the command line, `--config` and its overrides included.

    Args:
      argv: the program's name and its arguments; by default those of the process.
      sections: keys that the program needs at the top of the config. The file may have more.

    Raises:
      UserError: an unknown flag or config key (with the nearest name in the file that was
        named), a value of the wrong type, a config file that is missing or of another program.
    """
    argv = _last_wins(sys.argv if argv is None else argv)
    _check_config_file(argv)
    try:
        rest = flags.FLAGS(argv)
        for name in flags.FLAGS:
            if name == "config":
                flags.FLAGS.config.keys()
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(_sentence(error, argv)) from error
    if len(rest) > 1:
        raise UserError(f"what is {rest[1]!r}? Arguments have the form --name=value")
    if missing := [name for name in sections if name not in flags.FLAGS.config]:
        raise UserError(
            f"this config has no {', '.join(missing)}: it belongs to another program, the one in "
            "the first lines of its file"
        )
    return flags.FLAGS


def _last_wins(argv: list[str]) -> list[str]:
    """Of several values for one config key the last: by itself a tuple would take them all."""
    last = {arg.split("=")[0]: n for n, arg in enumerate(argv) if arg.startswith("--config.")}
    return [arg for n, arg in enumerate(argv) if last.get(arg.split("=")[0], n) == n]


def _check_config_file(argv: list[str]) -> None:
    for argument in argv:
        path = argument.removeprefix("--config=").split(":")[0]
        if path != argument.split(":")[0] and not Path(path).is_file():
            raise UserError(f"there is no file {path}: name a config file, configs/lm.py:laptop")


def define_config_flag() -> None:
    """Defines `--config=FILE:PRESET`."""
    config_flags.DEFINE_config_file("config", None, "a file under configs/, as FILE:PRESET")
    flags.mark_flag_as_required("config")


def _sentence(error: Exception, argv: list[str]) -> str:
    """What went wrong, on one line, with the nearest key for one that does not exist."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    known = [f"config.{key}" for key in _keys(_named_config(argv))]
    for argument in argv[1:]:
        key = argument.lstrip("-").split("=")[0]
        unknown = key.startswith("config.") and key not in known
        parts = key.split(".")[1:]
        if unknown and any(re.search(rf"\b{re.escape(part)}\b", text) for part in parts):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
            hint = f": did you mean {near[0]}?" if near else ""
            return f"there is no config key {key}{hint}"
    return text


def _named_config(argv: list[str]) -> ConfigDict:
    """The config that `--config=FILE:PRESET` names, before overrides; an empty one if none."""
    named = [arg.lstrip("-").partition("=")[2] for arg in argv if re.match("--?config=", arg)]
    path, _, name = named[-1].partition(":") if named else ("", "", "")
    if not Path(path).is_file():
        return ConfigDict()
    try:
        return runpy.run_path(path)["get_config"](*[name] if name else [])
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return ConfigDict()  # the file's own fault is the error that is being told


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
