"""Sizes of the drift check on synthetic text: what `--size` names, and configs/synthetic.py."""

from ml_collections import ConfigDict

from lmnoise.config import default_config, preset

# In `data.tokenizer`, what `--real` names.
REAL = "{real}"


def tiny() -> ConfigDict:
    """66,000 parameters and four sizes up to a million tokens: minutes on two cores."""
    config = default_config()
    config.data.update(
        dict(source="", tokenizer=f"bpe:512@{REAL}", length=64, evaluate=(), evaluate_windows=512)
    )
    # Untied, and Llama's blocks: other small models learn what follows what late and at a time that
    # depends on the seed, a steep part that no power law has.
    config.model.update(dict(family="llama", layers=2, width=32, heads=2, tied=False))
    config.members.update(
        dict(
            seed=(0, 1, 2),
            kind=("stream",),
            rate=(0.0, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
            learning_rate=(4e-3,),
            duration=tuple(2.0**-k for k in reversed(range(4))),
        )
    )
    config.optimizer.warmup_fraction = 0.05
    config.train.update(
        dict(steps=2048, batch_size=8, log_every=512, checkpoint_every=512, keep=1,
             steps_per_dispatch=16)
    )  # fmt: skip
    with config.unlocked():
        config.fits = dict(draws=1000, seed=0)  # of the bootstrap over seeds
    return config


def small() -> ConfigDict:
    """Half a million parameters and sizes up to four million tokens."""
    config = tiny()
    config.data.update(dict(tokenizer=f"bpe:1024@{REAL}", length=128))
    config.model.update(dict(layers=4, width=96, heads=4))
    config.members.learning_rate = (2e-3,)
    config.train.update(dict(steps=2048, batch_size=16))
    return config


def gpu() -> ConfigDict:
    """Twelve million parameters and sizes up to 134 million tokens, on one GPU."""
    config = tiny()
    config.data.update(dict(tokenizer=f"bpe:4096@{REAL}", length=512, evaluate_windows=1024))
    config.model.update(dict(layers=6, width=384, heads=6, dtype="bfloat16"))
    config.members.learning_rate = (1e-3,)
    config.train.update(dict(steps=4096, batch_size=64))
    return config


PRESETS = {"tiny": tiny, "small": small, "gpu": gpu}


def get_config(name: str = "tiny") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
