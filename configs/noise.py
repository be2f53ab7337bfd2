"""What do random tokens in pre-training cost? (arXiv 2502.06604)

Command:
    python experiments/noise.py --config=configs/noise.py:demo --workdir=runs/noise-demo

Cost: `demo` about 4 minutes on two cores; `laptop` about an hour on two busy cores. Not yet run,
and planned at 40 % of the peak, evaluation aside: `gpu` 21 minutes on one H100 of 80 GB; `pod`
1.6 hours on 64 H100, 2 on 256 chips of TPU v5e, 3.4 on 64 of v5p. `--dry_run` plans any machine.
Expected of `laptop`: 20 % of uniform noise raises the clean loss by 0.13 nats per token, and so
does the control that loses the same rows without noise; with the clean tokens fixed nothing moves.
The report says for each run whether a harm of the noise itself shows.

The study trains its arms one after the other: the config itself (`tokens`), and the config with
the changes under each `config.arms.<name>`. Every arm compares its members with the clean member
of the same seed.
"""

from ml_collections import ConfigDict

from lmnoise.config import default_config, preset

RATES = (0.0, 0.01, 0.05, 0.2)
# `dropped` is the paired control: the same rows carry no loss instead of noise.
KINDS = ("uniform", "gaussian", "dropped")
LANGUAGES = ("libreoffice_help/de", "libreoffice_help/fr")


def _study() -> ConfigDict:
    config = default_config()
    config.members.update(dict(seed=(0, 1, 2), kind=KINDS, rate=RATES))
    config.train.log_every = 100
    with config.unlocked():
        config.arms = ConfigDict()
    return config


def _laptop_sized() -> ConfigDict:
    """Models of 0.14M parameters on the embedded corpus."""
    config = _study()
    config.data.update(dict(tokenizer="bpe:512@sotu", length=64))
    config.model.update(dict(layers=2, width=64))
    config.train.batch_size = 8
    return config


def demo() -> ConfigDict:
    """30 members and 0.4M tokens each."""
    config = _laptop_sized()
    config.data.update(dict(evaluate=("sotu", "stdlib"), evaluate_windows=512))
    config.members.learning_rate = (3e-3,)
    config.train.update(dict(steps=800, checkpoint_every=400))
    return config


def laptop() -> ConfigDict:
    """40 members and 1.5M tokens each; both budgets, and two languages as each other's noise."""
    config = _laptop_sized()
    config.data.update(dict(evaluate=("sotu", "imdb", "stdlib"), evaluate_windows=1024))
    config.members.update(dict(learning_rate=(4e-3,), seed=(0, 1, 2, 3)))
    config.train.update(dict(steps=3000, checkpoint_every=500))
    with config.unlocked():
        config.arms.update(_arms())
    return config


def _arms() -> dict:
    """The other budget, and each language as the other's noise."""

    def language(own: str, other: str) -> dict:
        return dict(
            data=dict(
                source=own,
                tokenizer=f"bpe:512@{','.join(LANGUAGES)}",
                evaluate=LANGUAGES,
            ),
            noise=dict(source=other),
            members=dict(kind=("stream", "dropped"), rate=(0.0, 0.05, 0.2)),
        )

    first, second = LANGUAGES
    return dict(
        clean_budget=dict(noise=dict(budget="clean"), members=dict(kind=("uniform", "gaussian"))),
        german_with_french=language(first, second),
        french_with_german=language(second, first),
    )


def gpu() -> ConfigDict:
    """The shape of GPT-2 124M at a context of 1024, on film reviews; 57 GB by `--dry_run`."""
    config = _study()
    config.data.update(
        dict(
            source="imdb",
            tokenizer="gpt2",
            length=1024,
            evaluate=("imdb", "sotu", "stdlib"),
            evaluate_windows=0,
        )
    )
    _gpt2_124m(config)
    config.train.update(dict(steps=600, batch_size=32, checkpoint_every=200, evaluate_every=200))
    # Of 80 GB the members' weights and moments take 45, and the activations of 8 rows 9.
    config.train.accumulate = 4
    # One member's optimizer state and logits at a time fit beside the others' weights.
    config.train.members_at_once = 1
    return config


def pod() -> ConfigDict:
    """GPT-2 124M on OpenWebText-scale text: 10 billion tokens of C4 for each member.

    Prepare first, on a shared disk:
        python -m lmnoise.data prepare tfds:c4/en tfds:wiki40b/en sotu --tokenizer=gpt2
    16 members go over the mesh axis `member` and rows over what is left. A device then holds, by
    `--dry_run`: 22 GB on 128 chips of v5p, 39 GB on 64 of v5p or H100, 13 GB on 256 of v5e. Where
    libtpu is installed a test asks the compiler for TPUs about 128 of v5p and 256 of v5e, and
    allows 15 %.
    """
    config = _study()
    config.data.update(
        dict(
            source="tfds:c4/en",
            tokenizer="gpt2",
            length=1024,
            evaluate=("tfds:c4/en", "tfds:wiki40b/en", "sotu"),
            evaluate_windows=4096,
        )
    )
    _gpt2_124m(config)
    config.members.update(dict(seed=(0, 1, 2, 3), kind=("uniform",)))
    config.train.update(
        dict(
            steps=20_000,
            batch_size=512,
            accumulate=4,  # fits in 16 GB, with 256 of them
            checkpoint_every=1000,
            evaluate_every=1000,
            keep_every=5000,
        )
    )
    return config


def _gpt2_124m(config: ConfigDict) -> None:
    config.model.update(dict(layers=12, width=768, heads=12, dtype="bfloat16", vocab_size=50_304))
    config.members.learning_rate = (6e-4,)
    config.optimizer.update(dict(warmup_fraction=0.05))


PRESETS = {"demo": demo, "laptop": laptop, "gpu": gpu, "pod": pod}


def get_config(name: str = "demo") -> ConfigDict:
    """The config of a preset."""
    return preset(name, PRESETS)
