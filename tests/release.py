"""python -m tests.release: what stands in the way of a release, a line each; exit status 1 if anything does.

Version, changelog and image label must agree, no weights file may be altered, and every published figure must be
measured with this version and these weights.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import published
from tests.conftest import ROOT

HEADING = re.compile(r"^## (?P<version>\S+)(?: \((?P<date>[^)]*)\))?$", re.MULTILINE)


def version_of(root: pathlib.Path) -> str:
    """What app/version.py says."""
    (version,) = re.findall(r'^__version__ = "([^"]+)"$', (root / "app" / "version.py").read_text(), re.MULTILINE)
    return str(version)


def of_version(root: pathlib.Path, today: datetime.date) -> Iterator[str]:
    """Whether changelog and image are of the version, and whether its tag is free."""
    version = version_of(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"app/version.py: {version} is not of the form X.Y.Z"
    heading = HEADING.search((root / "CHANGELOG.md").read_text())
    if heading is None or heading["version"] != version:
        yield f"CHANGELOG.md: its first heading is {heading and heading[0]}, expected '## {version} ({today})'"
    elif heading["date"] != str(today):
        yield f"CHANGELOG.md: {version} is of {heading['date']}, today is {today}"
    labels = re.findall(r'image\.version="([^"]*)"', (root / "Dockerfile").read_text())
    if labels != [version]:
        yield f"Dockerfile: the image's version is {', '.join(labels) or 'missing'}, expected {version}"
    tags = subprocess.run(["git", "tag", "-l", f"v{version}"], cwd=root, capture_output=True, text=True, check=False)
    if tags.stdout.strip():
        yield f"v{version} is tagged already; raise the version in app/version.py"


def checksums(root: pathlib.Path) -> dict[str, str]:
    """The sha256 of each weights file by name, as SHA256SUMS has it."""
    lines = (root / "weights" / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def of_weights(root: pathlib.Path) -> Iterator[str]:
    """Whether the weights are those of SHA256SUMS, and each model has a card."""
    listed, files = checksums(root), sorted((root / "weights").glob("*.safetensors"))
    if set(listed) != {path.name for path in files}:
        names = ", ".join(path.name for path in files)
        yield f"weights/SHA256SUMS: lists {', '.join(sorted(listed))}, the folder has {names}"
    for path in files:
        if path.name in listed and hashlib.sha256(path.read_bytes()).hexdigest() != listed[path.name]:
            yield f"weights/{path.name}: its sha256 is not the one in SHA256SUMS"


def of_figures(root: pathlib.Path) -> Iterator[str]:
    """Whether the documents say what the JSON files do, and whether README's files are of this version and weights."""
    for path in published.outdated():
        yield f"{path.relative_to(root)}: its figures differ from the JSON files; run make figures"
    for path in published.documents():
        if published.UNMEASURED in path.read_text():
            yield f"{path.relative_to(root)}: a figure is not measured yet"
    version, listed = version_of(root), checksums(root)
    for name in sorted({m["words"].split()[0] for m in published.MARKED.finditer((root / "README.md").read_text())}):
        path = published.path_of(name)
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        results = [one for models in found.values() for one in models.values()] if name == "scores" else [found]
        for result in results:
            if result["version"] != version:
                yield f"{path.relative_to(root)}: of version {result['version']}, not {version}; measure again"
        sums = [result.get("sha256", {}) for result in results]
        sums += [model.get("sha256", {}) for result in results for model in _models(result)]
        if any(listed.get(file) != digest for files in sums for file, digest in files.items()):
            yield f"{path.relative_to(root)}: of other weights than those of SHA256SUMS; measure again"


def _models(result: dict[str, object]) -> list[dict[str, dict[str, str]]]:
    weights = result.get("weights")
    return list(weights.values()) if isinstance(weights, dict) else []


def main() -> None:
    """Print what stands in the way."""
    problems = [*of_version(ROOT, datetime.date.today()), *of_weights(ROOT), *of_figures(ROOT)]
    print("\n".join(dict.fromkeys(problems)) or f"version {version_of(ROOT)} is ready to be tagged v{version_of(ROOT)}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
