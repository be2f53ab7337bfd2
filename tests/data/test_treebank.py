"""Treebanks: CoNLL-U read by hand, and words found again in tokens."""

import pytest

from lmnoise.data.tokenizer import load_tokenizer
from lmnoise.data.treebank import open_treebank, read_conllu, token_words
from lmnoise.errors import UserError

TEXT = """# sent_id = 1
# text = Evdekiler geldi.
1\tEv\tev\tNOUN\tNN\t_\t2\tig\t_\tSpaceAfter=No
2\tdekiler\t_\tNOUN\tNN\t_\t3\tnsubj\t_\t_
3\tgeldi\tgel\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t.\t_\t3\tp\t_\t_

# text = vámonos ya
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnos\tPRON\t_\t_\t1\tobj\t_\t_
3\tya\tya\tADV\t_\t_\t1\tadvmod\t_\t_

# text = vamos del centro hasta el mar
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2-3\tdel\t_\t_\t_\t_\t_\t_\t_\t_
2\tde\tde\tADP\t_\t_\t4\tcase\t_\t_
3\tel\tel\tDET\t_\t_\t4\tdet\t_\t_
4\tcentro\tcentro\tNOUN\t_\t_\t1\tobl\t_\t_
5\thasta\thasta\tADP\t_\t_\t7\tcase\t_\t_
6\tel\tel\tDET\t_\t_\t7\tdet\t_\t_
7\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_

# text = çok iyi
1\tçok\t_\tADV\t_\t_\t2\tadvmod\t_\t_
1.1\tnone\t_\t_\t_\t_\t_\t_\t_\t_
2\tiyi\t_\tADJ\t_\t_\t0\troot\t_\t_
"""


@pytest.fixture
def sentences(tmp_path):
    (tmp_path / "a.conllu").write_text(TEXT, encoding="utf-8")
    return list(read_conllu(tmp_path / "a.conllu"))


def test_words_and_heads(sentences):
    # The parts of "Evdekiler" are one word; "vamos" is not in the text of its sentence,
    # and the "el" of "del" must not be taken for the one that comes later.
    first, second = sentences
    assert [first.text[a:b] for a, b in first.words] == ["Evdekiler", "geldi", "."]
    assert first.heads == [1, -1, 1]
    assert second.heads == [1, -1]


@pytest.mark.parametrize("spec", ["gpt2", "bytes"])
def test_the_tokens_of_a_word_spell_it(sentences, spec):
    tokenizer = load_tokenizer(spec, "unused")
    for sentence in sentences:
        ids, positions = token_words(sentence, tokenizer)
        assert ids == tokenizer.encode(sentence.text)
        assert sorted(p for of_word in positions for p in of_word) == list(range(len(ids)))
        for (start, end), of_word in zip(sentence.words, positions, strict=True):
            assert tokenizer.decode([ids[p] for p in of_word]).strip() == sentence.text[start:end]


def test_what_is_no_treebank_is_refused(tmp_path):
    with pytest.raises(UserError, match="choose turkish_web"):
        open_treebank("sotu", tmp_path)
    with pytest.raises(UserError, match="cannot read the treebank"):
        open_treebank(str(tmp_path / "none.conllu"), tmp_path)
    (tmp_path / "b.conllu").write_text("# text = a\n1\ta\n")
    with pytest.raises(UserError, match="its sentence 1"):
        open_treebank(str(tmp_path / "b.conllu"), tmp_path)
