"""Which few parameters carry the languages, and what does touching one of them do?

Command:
    python experiments/regions.py --config=configs/regions.py:laptop --workdir=runs/regions-laptop

Cost of `laptop`: about an hour on two cores of which other work took half; 10 GB of memory, and
3.2 GB of disk for each rule. `gpu`: an estimate, not yet run: half an hour on one GPU of 80 GB.
Expected of `laptop` (SmolLM2-135M, 4-bit weights): zeroing the top 1 % by the Taylor rule costs
14.9 nats per token, random entries 1.1, the bottom 0.1, but the largest weights 14.0 as well; the
change rule does not find the core; one entry of a down projection costs 2 nats.
"""

from ml_collections import ConfigDict

from lmnoise.analyze.defaults import default_config
from lmnoise.config import preset

# What makes the whole study run in seconds on any small model; see tests/analyze/test_configs.py.
SMALL = dict(
    data=dict(length=16, batch_size=8),
    model=dict(logits_chunk=64),
    continuation=dict(prompts=("once",), new_tokens=2),
    regions=dict(
        windows=8,
        importance_windows=8,
        shares=(0.05,),
        monolingual_share=0.05,
        seeds=(0, 1),
        training=dict(steps=2, batch_size=8),
    ),
    parameters=dict(
        windows=8,
        massive_dimensions=1,
        norm_weights=1,
        super_weights=1,
        matched=2,
        random=1,
        scales=(0.0,),
        draws=1,
        scan=("blocks/0/attention_norm/scale",),
    ),
    recover=dict(share=0.05, training=dict(steps=2, batch_size=8, evaluate_every=1)),
)


def laptop() -> ConfigDict:
    """SmolLM2-135M, six languages, both rules."""
    config = default_config()
    with config.unlocked():
        config.checkpoint = "smollm2"
        config.rules = ("taylor", "change")
        config.recover = dict(
            language="libreoffice_aligned/zh-cn",  # what the model is trained on afterwards
            rule="taylor",  # whose core is perturbed and frozen
            share=0.03,
            operation="reinitialise",
            training=dict(
                steps=60,
                batch_size=4,
                learning_rate=2e-4,
                weight_decay=0.0,
                schedule="cosine",
                seed=0,
                evaluate_every=10,
            ),
        )
    # Where a norm weight at a massive dimension breaks SmolLM2.
    config.parameters.scan = ("blocks/8/mlp_norm/scale",)
    return config


def gpu() -> ConfigDict:
    """Longer windows, more text and more training."""
    config = laptop()
    config.data.update(dict(length=512, batch_size=16))
    config.model.update(dict(dtype="bfloat16", logits_chunk=8192))
    config.regions.update(dict(windows=32, importance_windows=512))
    config.regions.training.update(dict(steps=2000, batch_size=32))
    config.parameters.update(dict(windows=16, matched=8, random=4, draws=4))
    config.recover.training.update(dict(steps=4000, batch_size=32, evaluate_every=400))
    return config


PRESETS = {"laptop": laptop, "gpu": gpu}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
