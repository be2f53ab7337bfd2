"""What Orbax is taught about s3://, and that it keeps what it knew."""

import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from lmnoise.errors import UserError
from lmnoise.training import orbax_s3


@pytest.fixture
def untaught(monkeypatch):
    """Undoes afterwards what `enable` changes."""
    for module, names in (
        (gcs_utils, ("is_gcs_path", "is_hierarchical_namespace_enabled", "get_kvstore_for_gcs")),
        (tensorstore_utils, ("_use_gcs_driver", "_normalize_path")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    orbax_s3.enable.cache_clear()
    yield
    orbax_s3.enable.cache_clear()


def spec(folder):
    return tensorstore_utils.build_kvstore_tspec(folder, "params", use_ocdbt=True)


@pytest.mark.usefixtures("untaught")
@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9000"])
def test_arrays_go_to_s3_and_other_places_stay(monkeypatch, tmp_path, endpoint):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    others = (str(tmp_path), "gs://bucket/run/2/states")
    before = [spec(folder) for folder in others]
    for _ in range(2):
        orbax_s3.enable()
    assert [spec(folder) for folder in others] == before
    base = spec("s3://bucket/run/2/states/")["base"]
    expected = {"driver": "s3", "bucket": "bucket", "path": "run/2/states"}
    assert base == expected | ({"endpoint": endpoint} if endpoint else {})
    # Without renames a checkpoint is whole when its last object is there.
    assert gcs_utils.is_gcs_path(epath.Path("s3://bucket/run"))
    assert not gcs_utils.is_hierarchical_namespace_enabled(epath.Path("s3://bucket/run"))
    assert not gcs_utils.is_gcs_path(epath.Path(tmp_path))


@pytest.mark.usefixtures("untaught")
def test_another_orbax_is_told_by_name(monkeypatch):
    monkeypatch.delattr(tensorstore_utils, "_use_gcs_driver")
    before = gcs_utils.is_gcs_path
    with pytest.raises(UserError, match=r"Orbax 0\.\d+\.\d+ cannot keep checkpoints in s3://"):
        orbax_s3.enable()
    assert gcs_utils.is_gcs_path is before
