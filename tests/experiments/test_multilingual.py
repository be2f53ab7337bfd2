"""The multilingual study on a tiny run and invented languages."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from loading import load

from lmnoise.analyze.subject import open_subject
from lmnoise.data.tokenizer import EOS, load_tokenizer, tokenizer_files
from lmnoise.errors import UserError
from lmnoise.models.pretrained import write_folder
from lmnoise.models.transformer import LanguageModel, llama

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import multilingual_texts  # noqa: E402

pytestmark = pytest.mark.usefixtures("compiled_once", "one_device")

FORMS = ("ab", "cd", "ef", "gh", "ij")
# What stands for each of seven meanings.
LETTERS = {
    "en-us": ("anna", "emil", "ivor", "otto", "rosa", "siri", "toni"),
    "ko": "가나다라마바사",
    "ru": "абвгдеж",
}
# Stands on every page.
COMMON = {name: " ".join([letters[0] * 3] * 5) for name, letters in LETTERS.items()}


CONFIG = load(ROOT / "configs" / "multilingual.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pages whose n-th letters say the same in every language, a treebank, and a tiny model."""
    root, generator = tmp_path_factory.mktemp("multilingual"), np.random.default_rng(0)
    words = generator.integers(0, 7, (60, 4, 4, 2))
    for name, letters in LETTERS.items():
        (root / name).mkdir()
        for page, lines in enumerate(words):
            text = [" ".join("".join(letters[i] for i in word) for word in line) for line in lines]
            text = [f"{line} {line[:9]}" for line in text]
            (root / name / f"{page}.txt").write_text(
                "\n".join([*text, COMMON[name]]), encoding="utf-8"
            )
    sentences = []
    for heads in generator.integers(0, 6, (12, 5)):
        sentences.append(f"# text = {' '.join(FORMS)}")
        for n, (form, head) in enumerate(zip(FORMS, heads, strict=True), 1):
            head = 0 if head == n else head
            sentences.append(f"{n}\t{form}\t_\tX\t_\t_\t{head}\tdep\t_\t_")
        sentences.append("")
    (root / "trees.conllu").write_text("\n".join(sentences), encoding="utf-8")
    tokenizer = load_tokenizer("bytes", root)
    model = LanguageModel(
        llama(vocab_size=257, context=80, layers=1, width=16, heads=2, kv_heads=1, mlp_width=32)
    )
    (root / "model").mkdir()
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    entries = {"bos_token_id": 256, "eos_token_id": 256}
    write_folder(root / "model", model.config, params, dtype="float32", entries=entries)
    for name, text in tokenizer_files(tokenizer.as_model(), EOS).items():
        (root / "model" / name).write_text(text, encoding="utf-8")
    return root


def small(root, preset):
    config = CONFIG.get_config(preset)
    config.update(CONFIG.SMALL)
    config.checkpoint = str(root / "model")
    config.data.data_dir = str(root / "data")
    english, korean, russian = (f"{root / name}/" for name in LETTERS)
    config.multilingual.update(
        dict(english=english, aligned=(korean, russian), languages=(korean,), extended=(korean,),
             treebank=str(root / "trees.conllu"))
    )  # fmt: skip
    return config


def rows_of(folder, **wanted):
    points = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    return [p for p in points if all(p["setting"].get(k) == v for k, v in wanted.items())]


def test_the_study_reports_and_goes_on(root, tmp_path):
    import multilingual

    config = small(root, "laptop")
    report = multilingual.run(config, tmp_path, tmp_path / "report", "the command")
    text = report.read_text()
    assert "Made by `the command`." in text
    assert "Epochs of the training text that a run takes: 0.0" in text
    drawn = set(re.findall(r"\]\(<(\S+\.png)>\)", text))
    assert drawn == {f"{name}.png" for name in ("bits", "similarity", "heads", "switched")}
    for table in ("bits", "vocabulary", "similarity", "heads", "switched"):
        assert len((report.parent / f"{table}.csv").read_text().splitlines()) > 1
    check_points(tmp_path)
    check_paragraphs(root, config)
    stored = (tmp_path / "points.jsonl").read_bytes()
    multilingual.run(config, tmp_path, tmp_path / "report", "the command")
    assert (tmp_path / "points.jsonl").read_bytes() == stored
    assert report.read_text().split("## How this")[0] == text.split("## How this")[0]


def test_presets_hold_what_the_study_asks_for():
    import multilingual

    for preset in CONFIG.PRESETS:
        config = CONFIG.get_config(preset)
        multilingual._check(config.multilingual)
        config.update(CONFIG.SMALL)
        assert len(set(config.multilingual.rates)) > 1


def check_points(folder):
    """What the two vocabularies share before any training, and what differs."""
    direct, extended = (rows_of(folder, kind=kind) for kind in ("direct", "extended"))
    tried = [[p["setting"]["training"]["learning_rate"], p["result"]["nats"]]
             for p in rows_of(folder, what="rate", kind="extended")]  # fmt: skip
    direct, extended = (
        [p for p in runs if p["setting"]["what"] == "run"] for runs in (direct, extended)
    )
    assert len(direct) == len(extended) == len(tried) == 2
    assert tried[0][1] != tried[1][1]
    best = min(tried, key=lambda t: t[1])[0]
    assert all(p["setting"]["training"]["learning_rate"] == best for p in extended)
    first, second = (p["result"]["rows"] for p in direct)
    assert [row["step"] for row in first] == [0, 1, 2]
    assert first[0]["nats"] == second[0]["nats"]
    assert first[2]["nats"] != second[2]["nats"]
    assert first[0]["ids"] != second[0]["ids"]
    assert all(set(of) == {"tokens", "letters"} for of in first[0]["switched"])
    grown = extended[0]["result"]
    assert grown["bytes_per_token"] > direct[0]["result"]["bytes_per_token"]
    assert grown["flops_per_token"] > direct[0]["result"]["flops_per_token"]
    assert "probes" not in grown
    assert set(direct[0]["result"]["probes"]["similarity"]) == {"ko", "ru"}
    shares = {n: np.array(h["share"]) for n, h in direct[0]["result"]["probes"]["heads"].items()}
    assert {"previous", "first", "head", "dependent"} <= set(shares)
    assert all(share.shape == (1, 2) for share in shares.values())
    assert all(len(row["written"]) == 2 for row in first)


def check_paragraphs(root, config):
    """What stands in the training text is not scored."""
    subject = open_subject(config.checkpoint, config, (), 0, root)
    texts = multilingual_texts.read(subject, config)
    korean = config.multilingual.languages[0]
    trained = "\n".join(multilingual_texts.documents(subject, korean, ("train",)).values())
    for paragraphs in (texts.scored["ko"], texts.tuning["ko"]):
        assert paragraphs
        assert not set(paragraphs) & set(trained.splitlines())
    assert COMMON["ko"] in trained.splitlines()
    assert COMMON["ko"] in (root / "ko" / "0.txt").read_text(encoding="utf-8")


def test_keys_without_sense_are_refused(root, tmp_path):
    import multilingual

    config = small(root, "laptop")
    config.multilingual.extended = ("libreoffice_aligned/de",)
    with pytest.raises(UserError, match="libreoffice_aligned/de, which is not among"):
        multilingual.run(config, tmp_path, tmp_path, "x")
    config = small(root, "laptop")
    config.multilingual.languages = config.multilingual.extended = ("./klingon/",)
    with pytest.raises(UserError, match="klingon, whose scripts are not known"):
        multilingual.run(config, tmp_path, tmp_path, "x")
    config = small(root, "laptop")
    config.data.length = 16
    with pytest.raises(UserError, match=r"config.data.length of 16 tokens: raise it"):
        multilingual.run(config, tmp_path, tmp_path, "x")
