"""Work and data directories in object stores, against stores on loopback.

gs:// is a server here that speaks as much of Google's JSON API as tensorstore does, and a file
system of fsspec on the same objects in place of gcsfs. s3:// is moto's server behind s3fs, where
both are installed.
"""

import contextlib
import dataclasses
import http.server
import importlib
import io
import json
import re
import threading
import urllib.parse
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils

from lmnoise import cli, storage
from lmnoise import config as configs
from lmnoise.checkpoints import open_checkpoint
from lmnoise.data import mirror
from lmnoise.data.packing import open_packed, packed_folder, prepare
from lmnoise.data.tokenizer import load_tokenizer
from lmnoise.errors import UserError
from lmnoise.train import build, train
from lmnoise.training import checkpoint
from lmnoise.training.metrics import MetricsWriter, read_rows

ROOT = Path(__file__).parent.parent
OBJECTS = {}  # name: (generation, content) of gs://bucket
READS = []  # names of the objects that were read through fsspec


class Google(http.server.BaseHTTPRequestHandler):
    """Objects and lists of them: what tensorstore's driver `gcs` asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        del arguments

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        self.wfile.write(body)

    def asked(self):
        """The object's name, None for the bucket, and the query."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        place = re.fullmatch(r".*/storage/v1/b/bucket/o(?:/(.+))?", url.path)
        return place[1] and urllib.parse.unquote(place[1]), query

    def do_GET(self):
        name, query = self.asked()
        if name is None:
            names = [n for n in sorted(OBJECTS) if n.startswith(query.get("prefix", ""))]
            return self.answer(200, {"items": [about(n) for n in names]})
        if name not in OBJECTS:
            return self.answer(404)
        generation, content = OBJECTS[name]
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return self.answer(200, content, x_goog_generation=generation)
        size = len(content)
        first = int(part[1]) if part[1] else max(0, size - int(part[2]))
        end = min(int(part[2]) + 1, size) if part[1] and part[2] else size
        where = f"bytes {first}-{end - 1}/{size}"
        return self.answer(
            206, content[first:end], x_goog_generation=generation, Content_Range=where
        )

    def do_POST(self):
        _, query = self.asked()
        content = self.rfile.read(int(self.headers["Content-Length"]))
        wanted, name = query.get("ifGenerationMatch"), query["name"]
        if wanted is not None and int(wanted) != OBJECTS.get(name, (0,))[0]:
            return self.answer(412)
        put(name, content)
        return self.answer(200, about(name))

    def do_DELETE(self):
        name, _ = self.asked()
        return self.answer(204 if OBJECTS.pop(name, None) else 404)


def put(name, content):
    OBJECTS[name] = (1 + max((g for g, _ in OBJECTS.values()), default=0), content)


def about(name):
    generation, content = OBJECTS[name]
    return {"name": name, "generation": str(generation), "size": str(len(content))}


class Gcs(fsspec.AbstractFileSystem):
    """What stands in for gcsfs: no folders but the beginnings of names, no appending."""

    protocol = ("gs", "gcs")
    cachable = False

    def info(self, path, **kwargs):
        del kwargs
        bucket, _, name = self._strip_protocol(path).partition("/")
        if bucket != "bucket":
            raise FileNotFoundError(path)
        full = f"bucket/{name}".rstrip("/")
        if name in OBJECTS:
            return {"name": full, "size": len(OBJECTS[name][1]), "type": "file"}
        if not name or any(n.startswith(name + "/") for n in OBJECTS):
            return {"name": full, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path, detail=True, **kwargs):
        del kwargs
        folder = self.info(path)
        if folder["type"] == "file":
            return [folder] if detail else [folder["name"]]
        prefix = f"{folder['name']}/".removeprefix("bucket/")
        heads = {n[len(prefix) :].split("/")[0] for n in OBJECTS if n.startswith(prefix)}
        found = [self.info(f"bucket/{prefix}{head}") for head in sorted(heads)]
        return found if detail else [entry["name"] for entry in found]

    def _open(self, path, mode="rb", **kwargs):
        del kwargs
        name = path.partition("/")[2]
        if mode == "rb":
            self.info(path)
            READS.append(name)
            return io.BytesIO(OBJECTS[name][1])
        assert mode == "wb", mode
        return Written(name)

    def mv(self, path1, path2, **kwargs):
        del kwargs
        old, new = (path.partition("bucket/")[2] for path in (path1, path2))
        for name in [n for n in OBJECTS if n == old or n.startswith(old + "/")]:
            put(new + name.removeprefix(old), OBJECTS.pop(name)[1])

    def rm_file(self, path):
        OBJECTS.pop(path.partition("/")[2], None)  # a folder is nothing

    def mkdir(self, path, create_parents=True, **kwargs):
        del path, create_parents, kwargs

    def makedirs(self, path, exist_ok=False):
        del path, exist_ok

    def rmdir(self, path):
        del path


class Written(io.BytesIO):
    """An object comes to be, as a whole, when its file is closed."""

    def __init__(self, name):
        super().__init__()
        self.object = name

    def close(self):
        if not self.closed:
            put(self.object, self.getvalue())
        super().close()


@pytest.fixture(scope="module")
def google():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Google)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setitem(_registry, "gcs", Gcs)
        # Orbax asks Google's own package, which gcsfs brings, whether the bucket has folders.
        patch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)
        backend.fsspec_backend._get_filesystem.cache_clear()
        yield
    backend.fsspec_backend._get_filesystem.cache_clear()
    server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gs(google, cache):
    """An empty gs://bucket."""
    del google, cache
    OBJECTS.clear()
    READS.clear()
    return epath.Path("gs://bucket")


@pytest.fixture(scope="module")
def amazon():
    needs = "needs `pip install 'moto[server]' s3fs`"
    moto = pytest.importorskip("moto.server", reason=needs)
    s3fs = pytest.importorskip("s3fs", reason=needs)
    boto3 = pytest.importorskip("boto3", reason=needs)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        boto3.client("s3").create_bucket(Bucket="bucket")
        s3fs.S3FileSystem.clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()
        yield
    server.stop()


@pytest.fixture
def s3(amazon, cache, request):
    """A folder of s3://bucket of its own."""
    del amazon, cache
    return epath.Path("s3://bucket") / request.node.name


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for n in range(40):
        words = " ".join(f"word{(n * k) % 17}" for k in range(60))
        (folder / f"{n:02d}.txt").write_text(f"Document {n}: {words}.\n")
    return str(folder)


def test_a_prepared_corpus_is_the_same_from_a_bucket(gs, cache, text, tmp_path):
    tokenizer = f"bpe:300@{text}"
    prepare(text, data_dir=tmp_path / "data", tokenizer=tokenizer)
    meta = prepare(text, data_dir="gs://bucket/data", tokenizer=tokenizer)
    assert "data/tokenizers" in "".join(OBJECTS)
    forget(cache)  # another machine
    here = open_packed(text, "train", data_dir=tmp_path / "data", tokenizer=tokenizer)
    there = open_packed(text, "train", data_dir="gs://bucket/data", tokenizer=tokenizer)
    assert isinstance(there.tokens, np.memmap)
    for name in ("tokens", "ends", "bytes"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert there.ids() == here.ids()
    assert there.meta == meta
    # Only the split that was asked for, and only once.
    assert any(name.endswith("train.tokens") for name in READS)
    assert not any("test." in name for name in READS)
    READS.clear()
    open_packed(text, "train", data_dir="gs://bucket/data", tokenizer=tokenizer)
    assert {name.rpartition("/")[2] for name in READS} == {"meta.json"}
    # Another machine takes the tokenizer from there instead of training its own.
    forget(cache)
    files = [name for name in OBJECTS if name.endswith("tokenizer.json")]
    put(files[0], OBJECTS[files[0]][1] + b"\n")
    ours = load_tokenizer(tokenizer, tmp_path / "data")
    assert load_tokenizer(tokenizer, "gs://bucket/data").fingerprint != ours.fingerprint


def forget(folder):
    epath.Path(folder).rmtree(missing_ok=True)


def test_preparing_again_does_nothing_and_a_new_preparation_counts(gs, cache, text, capsys):
    options = {"data_dir": "gs://bucket/data", "tokenizer": "bytes"}
    prepare(text, **options)
    open_packed(text, "test", **options)
    before = dict(OBJECTS)
    forget(cache)
    prepare(text, **options)
    assert "already prepared" in capsys.readouterr().out
    assert before == OBJECTS
    packed_folder(text, **options).rmtree()
    with pytest.raises(UserError, match="is not prepared"):
        open_packed(text, "test", **options)
    prepare(text, on_decode_error="replace", **options)
    assert open_packed(text, "test", **options).meta["on_decode_error"] == "replace"


def test_what_arrives_damaged_is_not_used(gs, cache, text):
    options = {"data_dir": "gs://bucket/data", "tokenizer": "bytes"}
    prepare(text, **options)
    forget(cache)
    (name,) = (n for n in OBJECTS if n.endswith("validation.tokens"))
    content = OBJECTS[name][1]
    put(name, content[:-2] + b"\0\0")
    for _ in range(2):
        with pytest.raises(UserError, match=r"validation\.tokens has the SHA-256"):
            open_packed(text, "validation", **options)
    put(name, content)
    for other in ("ends.npy", "bytes.npy", "ids.jsonl"):
        damaged = name.replace("tokens", other)
        whole = OBJECTS[damaged][1]
        put(damaged, whole[:-2] + b"00")
        with pytest.raises(UserError, match=rf"validation\.{other} has the SHA-256"):
            open_packed(text, "validation", **options)
        put(damaged, whole)
    open_packed(text, "validation", **options)
    del OBJECTS[name.replace("validation.tokens", "test.ids.jsonl")]
    with pytest.raises(UserError, match=r"has no test\.ids\.jsonl"):
        open_packed(text, "test", **options)


def test_what_was_prepared_without_digests_is_still_read(gs, cache, text):
    options = {"data_dir": "gs://bucket/data", "tokenizer": "bytes"}
    meta = prepare(text, **options)
    forget(cache)
    del meta["sha256"]
    (name,) = (n for n in OBJECTS if n.endswith("meta.json"))
    put(name, json.dumps(meta).encode())
    assert len(open_packed(text, "validation", **options).ids()) > 0


def test_a_second_task_leaves_alone_what_the_first_publishes(gs, cache, text, monkeypatch):
    options = {"data_dir": "gs://bucket/data", "tokenizer": "bytes"}
    tasks = [threading.Thread(target=prepare, args=(text,), kwargs=options) for _ in range(2)]
    publish, published = mirror.publish, []

    def slowly(local, remote, marker):
        monkeypatch.setattr(mirror, "publish", publish)
        tasks[1].start()
        tasks[1].join(0.5)  # what it does while this one publishes
        assert OBJECTS == {}
        publish(local, remote, marker)
        published.append(dict(OBJECTS))

    monkeypatch.setattr(mirror, "publish", slowly)
    tasks[0].start()
    for task in tasks:
        task.join(60)
    assert published == [OBJECTS]
    assert len(open_packed(text, "train", **options).tokens) > 0


@pytest.mark.parametrize(("data_dir", "calls"), [("gs://bucket/data", 0), ("data", 1)])
def test_of_a_study_on_many_hosts_one_prepares_the_bucket(monkeypatch, data_dir, calls):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    noise = importlib.import_module("noise")
    config = run_config("sotu", data_dir)
    done, waited = [], []
    monkeypatch.setattr(noise, "prepare", lambda name, **_: done.append(name))
    monkeypatch.setattr(
        noise.ocp.multihost, "get_barrier_sync_fn", lambda: lambda **key: waited.append(key)
    )
    for number, expected in ((0, 1), (1, calls)):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        done.clear()
        noise.prepare_all({"tokens": config})
        assert done == ["sotu"] * expected
    assert len(waited) == 2


def row(step, member=0):
    return {"step": step, "member": member, "loss": float(step)}


def contents(folder):
    """The metrics files of a folder, without times."""
    files = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")}
    boards = sorted((folder / "tensorboard").glob("*/*"), key=lambda p: p.name.split(".")[-1])
    return files, [len(file.read_bytes()) for file in boards]


def write_metrics(folder):
    writer = MetricsWriter(folder, 0)
    for step in range(1, 6):
        writer.write(row(step))
        writer.flush()
    writer.rewind(3)
    writer.write({"step": 3, "event": "rollback"})
    writer.write(row(4))
    writer.close()
    writer = MetricsWriter(folder, 4)
    writer.write(row(5))
    writer.close()


def test_metrics_in_a_bucket_are_those_of_a_disk(gs, tmp_path):
    write_metrics(tmp_path)
    write_metrics(gs / "run")
    assert contents(gs / "run") == contents(tmp_path)
    assert read_rows(gs / "run") == read_rows(tmp_path)


def test_metrics_are_uploaded_now_and_then_and_before_a_checkpoint(gs):
    writer = MetricsWriter(gs / "run", 0)
    writer.write(row(1))
    writer.flush()
    assert len(read_rows(gs / "run")) == 1
    writer.write(row(2))
    writer.flush()  # within the interval
    assert len(read_rows(gs / "run")) == 1
    writer.sync()
    assert len(read_rows(gs / "run")) == 2
    writer.write(row(3))
    writer.close()
    assert len(read_rows(gs / "run")) == 3


def run_config(text, data_dir):
    config = configs.default_config()
    values = {
        "data": {"source": text, "tokenizer": "bytes", "length": 16, "evaluate": (text,)},
        "model": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "mlp_width": 32},
        "train": {"steps": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 2},
    }
    for section, keys in values.items():
        for key, value in keys.items():
            config[section][key] = value
    config.data.evaluate_windows = 4
    config.data.data_dir = str(data_dir)
    return config


def resume_elsewhere(bucket, cache, text, tmp_path):
    """Trains in a bucket, stops at step 3, goes on there; compares with a run on the disk."""
    prepare(text, data_dir=tmp_path / "data", tokenizer="bytes")
    _, expected = train(run_config(text, tmp_path / "data"), epath.Path(tmp_path / "run"))
    prepare(text, data_dir=bucket / "data", tokenizer="bytes")
    config, workdir = run_config(text, bucket / "data"), bucket / "run"
    run = build(config)

    def batches(index):
        if index == 3:
            raise ConnectionError("the machine is gone")
        return run.batches(index)

    checkpoint.claim(workdir, run.config_record)
    with contextlib.suppress(ConnectionError):
        dataclasses.replace(run, batches=batches).fit(workdir)
    assert checkpoint.kept_steps(workdir / "checkpoints") == [2]
    assert max(r["step"] for r in read_rows(workdir)) < 4
    forget(cache)
    _, states = train(config, workdir)
    for ours, theirs in zip(jax.tree.leaves(states), jax.tree.leaves(expected), strict=True):
        if not jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(ours, theirs)
    assert read_rows(workdir) == read_rows(tmp_path / "run")
    for name in ("members.csv", "config.json"):
        assert (workdir / name).read_text() == (tmp_path / "run" / name).read_text()
    local = open_checkpoint(f"{tmp_path}/run", tmp_path / "data")
    for spec in (f"{workdir}", f"{workdir}/checkpoints/4"):
        remote = open_checkpoint(spec, bucket / "data")
        assert (remote.name, remote.fingerprint) == (local.name, local.fingerprint)
    # A save that did not finish is none.
    (workdir / "checkpoints" / "6" / "states" / "manifest.ocdbt").write_text("")
    assert checkpoint.kept_steps(workdir / "checkpoints") == [2, 4]


@pytest.mark.usefixtures("compiled_once")
def test_a_run_in_a_bucket_resumes_there_to_the_numbers_of_a_local_one(gs, cache, text, tmp_path):
    resume_elsewhere(gs, cache, text, tmp_path)


@pytest.mark.usefixtures("compiled_once")
def test_a_run_on_s3_resumes_there_to_the_numbers_of_a_local_one(s3, cache, text, tmp_path):
    resume_elsewhere(s3, cache, text, tmp_path)


def test_what_cannot_be_reached_is_one_sentence(gs, monkeypatch):
    assert storage.place("gs://bucket/run") == gs / "run"
    assert storage.place("runs/lm") == epath.Path("runs/lm")
    with pytest.raises(UserError, match="gs://elsewhere that you may read: make it"):
        storage.place("gs://elsewhere/run")
    for wrong in ("http://host/x", "gs://", "ftp://bucket"):
        with pytest.raises(UserError, match="is no folder"):
            storage.place(wrong)
    with pytest.raises(UserError, match="name a local folder with --report"):
        storage.local_folder("gs://bucket/report", "--report")
    put("models/pythia/config.json", b"{}")
    with pytest.raises(UserError, match="copy other checkpoints"):
        open_checkpoint("gs://bucket/models/pythia", "data")

    def fail(error):
        def exists(path):
            raise error

        monkeypatch.setattr(type(gs), "exists", exists)

    fail(ImportError("Please install gcsfs to access Google Storage"))
    with pytest.raises(UserError, match="needs the package gcsfs: run `pip install gcsfs`"):
        storage.place("gs://bucket/run")
    fail(ImportError("Install s3fs to access S3"))
    with pytest.raises(UserError, match="needs the package s3fs: run `pip install s3fs`"):
        storage.place("s3://bucket/run")
    fail(OSError("Forbidden: b/bucket/o\nmore"))
    with pytest.raises(UserError, match=r"cannot be reached \(Forbidden: b/bucket/o\): check"):
        storage.place("gs://bucket/run")


@pytest.mark.parametrize("package", ["gcsfs", "botocore", "google/auth"])
def test_a_failure_of_a_store_is_one_sentence_wherever_it_comes(package):
    code = compile("raise RuntimeError('quota exceeded\\nand more')", f"/x/{package}/a.py", "exec")
    try:
        exec(code)
    except RuntimeError as error:
        status, sentence = cli.failure(error)
    assert status == 2
    assert "the object store failed (quota exceeded)" in sentence
    assert "\n" not in sentence


def test_other_errors_stay_bugs():
    assert cli.failure(RuntimeError("quota exceeded")) is None
    status, sentence = cli.failure(ValueError("PERMISSION_DENIED: no [http_response_code='403']"))
    assert (status, "PERMISSION_DENIED" in sentence) == (2, True)


def test_data_and_metrics_on_s3(s3, cache, text, tmp_path):
    with pytest.raises(UserError, match="no bucket s3://elsewhere"):
        storage.place("s3://elsewhere/data")
    assert storage.place(f"{s3}/data") == s3 / "data"
    for data_dir in (tmp_path / "data", s3 / "data"):
        prepare(text, data_dir=data_dir, tokenizer="bytes")
    forget(cache)
    here = open_packed(text, "train", data_dir=tmp_path / "data", tokenizer="bytes")
    there = open_packed(text, "train", data_dir=s3 / "data", tokenizer="bytes")
    np.testing.assert_array_equal(there.tokens, here.tokens)
    (tmp_path / "run").mkdir()
    write_metrics(tmp_path / "run")
    write_metrics(s3 / "run")
    assert contents(s3 / "run") == contents(tmp_path / "run")
