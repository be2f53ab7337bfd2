"""A user's files: every format, every way in which they can be broken."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmnoise.data.user_files import UserFiles, fingerprint
from lmnoise.errors import UserError


def read(base, on_decode_error="error"):
    files = UserFiles(str(base), on_decode_error)
    return {document.id: document.text for document in files.documents()}, files.counts


def test_a_folder_holds_all_formats(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    (tmp_path / "a.jsonl").write_text('{"text": "three"}\n\n{"text": "four", "x": 1}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["five", None]}), tmp_path / "c.parquet")
    (tmp_path / "ignored.md").write_text("no")
    (tmp_path / ".hidden.txt").write_text("no")
    documents, counts = read(tmp_path)
    expected = {"a.jsonl#1": "three", "a.jsonl#3": "four", "c.parquet#0": "five"}
    assert documents == expected | {"sub/b.txt": "one\ntwo\n"}
    assert list(documents) == sorted(documents)
    assert counts == {"blank": 2}


@settings(deadline=None)
@given(st.lists(st.text("ab \n\r\té", max_size=900), max_size=12))
def test_one_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("t") / "all.txt"
    text = "\n\n".join(parts)
    path.write_bytes(text.encode())
    documents, _ = read(path)
    kept = "".join(documents.values())
    assert "".join(kept.split()) == "".join(text.split())
    for document in list(documents.values())[:-1]:
        assert len(document) >= 2000
        assert not document.splitlines()[-1].strip()


@pytest.mark.parametrize("whole", [True, False])
def test_text_that_is_not_utf8(tmp_path, whole):
    path = tmp_path / "bad.txt"
    block = b"x" * 2000 + b"\n\n"
    path.write_bytes(block + b"caf\xe9 au lait\n" + block + b"end\n")
    base = tmp_path if whole else path
    with pytest.raises(UserError, match=rf"bad.txt is not UTF-8 at byte {len(block) + 3}"):
        read(base)
    documents, counts = read(base, "replace")
    assert "caf\ufffd au lait" in "".join(documents.values())
    assert counts["replaced"] == 1
    documents, counts = read(base, "skip")
    assert list(documents) == ([] if whole else ["bad.txt#0", "bad.txt#2"])
    assert counts["skipped"] == 1
    with pytest.raises(UserError, match="must be one of"):
        UserFiles(str(base), "ignore")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2: not JSON"),
        (b'{"body": "a"}', "line 2: no string under the key 'text'"),
        (b'{"text": 3}', "line 2: no string"),
        (b'["text"]', "line 2: no string"),
        (b'{"text": "\\ud800"}', "is not UTF-8"),
        (b'{"text": "\xff"}', "is not UTF-8 at byte 32"),
    ],
)
def test_a_broken_json_line_is_named(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "good"}     \n' + line + b"\n")
    with pytest.raises(UserError, match=f"x.jsonl.*{message}"):
        read(path)


def test_another_key_or_column(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"body": "hello"}) + "\n")
    assert read(f"{tmp_path}/x.jsonl#body")[0] == {"x.jsonl#1": "hello"}
    table = pyarrow.table({"body": pyarrow.array(["hé"], pyarrow.large_string()), "n": [1]})
    pyarrow.parquet.write_table(table, tmp_path / "y.parquet")
    assert read(f"{tmp_path}/y.parquet#body")[0] == {"y.parquet#0": "hé"}
    with pytest.raises(UserError, match="no column 'text'"):
        read(tmp_path / "y.parquet")
    with pytest.raises(UserError, match="holds int64"):
        read(f"{tmp_path}/y.parquet#n")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="no parquet file"):
        read(tmp_path / "z.parquet")


def test_parquet_strings_that_are_not_utf8(tmp_path):
    values = pyarrow.array([b"good", b"caf\xe9"], pyarrow.binary())
    column = pyarrow.StringArray.from_buffers(2, values.buffers()[1], values.buffers()[2])
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), path)
    with pytest.raises(UserError, match=r"x\.parquet is not UTF-8 at row 1"):
        read(path)
    assert read(path, "replace")[0]["x.parquet#1"] == "caf\ufffd"
    assert list(read(path, "skip")[0]) == ["x.parquet#0"]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        UserFiles(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds no \.txt"):
        UserFiles(str(tmp_path))


def test_the_fingerprint_sees_a_change(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint(str(tmp_path))
    assert fingerprint(str(tmp_path)) == before
    path.write_text("other")
    assert fingerprint(str(tmp_path)) != before


def test_labels_of_a_jsonl(tmp_path):
    lines = [{"text": "a", "label": "x"}, {"text": "b", "label": 0}, {"text": "c"}]
    lines.append({"text": "d", "label": ["no"]})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = UserFiles(str(tmp_path / "a.jsonl"))
    assert [document.label for document in files.documents()] == ["x", "0", "", ""]
