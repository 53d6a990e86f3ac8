"""The libraries of the page: which they are, and their files.

``vendored/libraries.json`` says of each its version, licence and SHA-256. To take newer ones,
change the versions there and run ``python -m silc_bench.reports.page.libraries``: it fetches each
with ``npm pack``, writes the files and their licences, and the new sums into the list.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "vendored"
LIST = FOLDER / "libraries.json"


@dataclass(frozen=True)
class Library:
    name: str  # as its authors write it
    package: str  # of npm
    version: str
    licence: str
    url: str
    member: str  # of the package: the file that we take
    licence_member: str
    file: str  # in ``vendored/``; its licence stands beside it, with the ending .LICENSE
    sha256: str

    def text(self) -> str:
        """The file's text.

        A file that is not the one of the list would be published under a wrong version.
        """
        content = (FOLDER / self.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == self.sha256, f"{self.file} was changed"
        return content.decode()


def libraries() -> list[Library]:
    """In the order in which the page runs them."""
    return [Library(**entry) for entry in json.loads(LIST.read_text(encoding="utf-8"))]


def _refresh() -> None:
    entries = []
    for library in libraries():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", f"{library.package}@{library.version}"]
            done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
            with tarfile.open(Path(folder) / done.stdout.strip()) as package:
                content = _member(package, library.member)
                licence = _member(package, library.licence_member)

        (FOLDER / library.file).write_bytes(content)
        (FOLDER / f"{library.file}.LICENSE").write_bytes(licence)
        digest = hashlib.sha256(content).hexdigest()
        print(f"{library.package} {library.version}: {len(content)} bytes, sha256 {digest}")
        entries.append({**asdict(library), "sha256": digest})
    LIST.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _member(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    assert file is not None, f"{name} is no file of the package"
    return file.read()


if __name__ == "__main__":
    _refresh()
