"""python -m benchmarks.published [--check]: print the measured figures into the documents.

A document marks the place of each table by a line `<!-- figures: FILE [TABLE [ARGUMENT ...]] -->` and a line
`<!-- end -->`. What stands between them is made from benchmarks/FILE.json, or from evaluation/FILE.json where FILE is
`scores` or `hard`. With --check nothing is written, and the exit status is 1 if a document differs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable

from benchmarks import tables
from evaluation import scores
from evaluation.scores import SCORES

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(?P<open><!-- figures: (?P<words>[^>\n]+) -->\n)(?P<body>.*?)(?P<close><!-- end -->)", re.DOTALL)
UNMEASURED = "*Not measured yet.*"
TABLES: dict[str, dict[str, Callable[..., str]]] = {
    "scores": {
        "about": scores.about,
        "accuracy": scores.accuracy,
        "organs": scores.organs,
        "cases": scores.cases,
    },
    "hard": {"hard": scores.hard},
    "benchmarks": {
        "about": tables.about,
        "speed": tables.speed,
        "install": tables.install,
        "processes": tables.processes,
        "start_up": tables.start_up,
        "levers": tables.levers,
        "slices": tables.slices,
        "cases": tables.cases,
        "beside": tables.beside,
        "gpu_network": tables.gpu_network,
        "gpu_processes": tables.gpu_processes,
        "gpu_precision": tables.gpu_precision,
    },
}


def documents() -> list[pathlib.Path]:
    """Every document that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "weights").glob("*.md"))]


def path_of(file: str) -> pathlib.Path:
    """The JSON file that a mark names."""
    return SCORES.with_name(f"{file}.json") if file in TABLES else ROOT / "benchmarks" / f"{file}.json"


def figures(words: str) -> str:
    """The table that a mark names, or a line that says that it was not measured.

    Args:
        words: of the mark: a file, a table (by default of the file's name), and what else the table asks for.

    Raises:
        KeyError: there is no such table, or the file lacks what it asks for.
    """
    file, *rest = words.split()
    name, *arguments = rest or [file]
    path = path_of(file)
    if not path.exists():
        return UNMEASURED
    make = TABLES[file if file in TABLES else "benchmarks"][name]
    try:
        return make(json.loads(path.read_text()), *arguments)
    except scores.UnmeasuredError:
        return UNMEASURED


def with_figures(text: str) -> str:
    """A document's text with all its figures."""
    return MARKED.sub(lambda m: f"{m['open']}\n{figures(m['words'])}\n\n{m['close']}", text)


def outdated() -> list[pathlib.Path]:
    """The documents whose figures are not those of the JSON files."""
    return [path for path in documents() if with_figures(path.read_text()) != path.read_text()]


def main() -> None:
    """Write the documents whose figures changed, or name them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit status 1 if a document differs.")
    check = parser.parse_args().check
    changed = outdated()
    for path in changed:
        if not check:
            path.write_text(with_figures(path.read_text()))
        print(f"{path}: {'its figures differ from the JSON files; run make figures' if check else 'written'}")
    sys.exit(1 if check and changed else 0)


if __name__ == "__main__":
    main()
