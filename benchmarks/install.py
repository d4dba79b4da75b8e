"""python -m benchmarks.install OUT [EXTRA ...]: size and time of `pip install` in a fresh environment; install.json.

Without an EXTRA: the program alone, and with [all]. What pip downloads counts; what its cache holds does not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
import venv

from app.version import __version__
from benchmarks.processes import ROOT

SOURCES = ("app", "weights", "pyproject.toml", "README.md", "LICENSE")
PIP = ["-m", "pip", "install", "-q"]


def size_mib(folder: pathlib.Path) -> float:
    """What the files of a folder take on disk."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 2**20


def install(extra: str) -> dict[str, float]:
    """Install the program, with an extra if it is not empty: the environment's growth in MiB, and seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tree = folder / "tree"  # a copy, because the build leaves files behind
        tree.mkdir()
        for source in SOURCES:
            path = ROOT / source
            shutil.copytree(path, tree / source) if path.is_dir() else shutil.copy(path, tree)
        venv.create(folder / "venv", with_pip=True)
        before, begin = size_mib(folder / "venv"), time.monotonic()
        what = f"{tree}[{extra}]" if extra else str(tree)
        subprocess.run([folder / "venv" / "bin" / "python", *PIP, what], check=True)
        return {"mib": size_mib(folder / "venv") - before, "seconds": time.monotonic() - begin}


def main() -> None:
    """Measure each way; install.json goes to OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("extras", metavar="EXTRA", nargs="*", help="Extras of pyproject.toml; default: none, and all.")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = {
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "ways": {
            f'pip install ".[{extra}]"' if extra else "pip install .": install(extra)
            for extra in args.extras or ("", "all")
        },
    }
    (args.out / "install.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
