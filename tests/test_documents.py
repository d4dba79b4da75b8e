"""What the documents refer to exists: links, anchors, files, command lines; their Python runs; they stay readable."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import re
import runpy
import shlex
import shutil
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence

import click
import pytest

import app
from app import segmenter
from app.options import Request
from tests.conftest import ROOT

LONGEST_LINE, MOST_WORDS = 120, 900
README = ROOT / "README.md"
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "weights/*.md", "cluster/**/*.md") for path in ROOT.glob(pattern)
)
# Documents of what was: they name files and options that are gone.
HISTORY = {ROOT / "CHANGELOG.md", *(ROOT / "docs" / "experiments").glob("*.md")}
FOLDERS = "app|benchmarks|cluster|docs|evaluation|phantom|tests|training|weights"
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\((?P<inline>[^)\s]+)\)|^\[[^\]]+\]: (?P<reference>\S+)$", re.MULTILINE)
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    """The text outside of blocks and spans of code."""
    prose = "\n".join(line for line in FENCE.sub("", text).split("\n") if not line.startswith("    "))
    return re.sub(r"`[^`]*`", "", prose)


def anchors(path: pathlib.Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(text: str) -> Iterator[str]:
    """The blocks of a document that are indented by four spaces, or fenced and of a shell."""
    for fence in FENCE.finditer(text):
        if fence["language"] in ("", "sh", "bash", "console"):
            yield fence["body"]
    for block in re.findall(r"(?:(?<=\n\n)|\A)(?: {4}.*\n)+", FENCE.sub("", text)):
        yield re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line in a document's blocks, comments and an ellipsis at the end left out."""
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:\||&&)\s", line):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    continue  # a drawing or output, not a command
                yield words[:-1] if words[-1:] == ["..."] else words


def program(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The module of ours that a command line runs, or `make`, with its arguments; None for another program's."""
    for i, word in enumerate(words):
        rest = list(words[i + 1 :])
        if word == "hrnet-ocr-abdomen":
            return "app", rest
        if word == "predict.sh":
            return ("app", rest) if rest else None
        if word == "make":
            return word, rest
        if word == "-m" and re.fullmatch(rf"(?:{FOLDERS})(?:\.\w+)?", rest[0]):
            return rest[0], rest[1:]
    return None


class ParsedError(Exception):
    """A command line was parsed; nothing more is wanted."""


def parse_click(command: click.Command, arguments: list[str]) -> None:
    while isinstance(command, click.Group):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    params = command.make_context("documents", arguments).params
    if "paths" in params:  # of the program and the cluster, which take INPUT and OUTPUT
        Request.taken_from(dict(params))


def parse_argparse(module: str, arguments: list[str]) -> None:
    """Run a module up to where it has parsed its arguments."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    if "parse_args" not in pathlib.Path(str(spec.origin)).read_text():
        assert not arguments, f"python -m {module} takes no arguments"
        return
    sys.argv = [module, *arguments]
    # Another test may have imported it, which runpy warns of.
    with pytest.raises(ParsedError), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        runpy.run_module(module, run_name="__main__")


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsers that take paths that do not exist, and stop when they have parsed."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, args: Sequence[str] | None = None) -> None:
        parse_args(self, args)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: pathlib.Path(value))
    monkeypatch.setattr(sys, "argv", list(sys.argv))


def targets() -> set[str]:
    """What `make` can make."""
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def check(module: str, arguments: list[str]) -> None:
    """Parse a command line as the program would."""
    if module == "make":
        assert {word for word in arguments if "=" not in word} <= targets()
    elif module in ("app", "cluster", "evaluation", "training"):
        path = "app.cli" if module == "app" else f"{module}.__main__"
        parse_click(importlib.import_module(path).main, arguments)
    else:
        is_package = (ROOT / module.replace(".", "/")).is_dir()
        parse_argparse(f"{module}.__main__" if is_package else module, arguments)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(path: pathlib.Path) -> None:
    for match in LINK.finditer(without_code(path.read_text())):
        target = match["inline"] or match["reference"]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = path.parent / file if file else path
        assert where.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(where), f"{target}: no such heading"


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p not in HISTORY], ids=name)
def test_files_that_are_named_exist(path: pathlib.Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", path.read_text())
    assert [file for file in named if not (ROOT / file).exists()] == []


@pytest.mark.usefixtures("parsers")
@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p not in HISTORY], ids=name)
def test_command_lines_are_parsed_by_the_program(path: pathlib.Path) -> None:
    for words in commands(path.read_text()):
        if found := program(words):
            try:
                check(*found)
            except (click.UsageError, SystemExit) as error:
                pytest.fail(f"{shlex.join(words)}: {getattr(error, 'message', 'not parsed')}")


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p not in HISTORY], ids=name)
def test_extras_that_are_installed_exist(path: pathlib.Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [
        extra for names in re.findall(r'pip install "\.\[([\w,]+)\]"', path.read_text()) for extra in names.split(",")
    ]
    assert set(asked) <= set(extras)


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if p not in HISTORY], ids=name)
def test_commands_that_the_text_names_exist(path: pathlib.Path) -> None:
    text = path.read_text()
    for module in re.findall(rf"`python -m ((?:{FOLDERS})(?:\.\w+)?)\b", text):
        assert importlib.util.find_spec(module), module
    assert set(re.findall(r"`make ([a-z][a-z-]*)", text)) <= targets()


@pytest.mark.parametrize(
    ("block", "module"),
    [
        ("\n\n    python -m app IN OUT --no-such  # a comment\n", "app"),
        ("\n\n    x -y | hrnet-ocr-abdomen IN --shard 1/2\n", "app"),
        ("\n\n    docker run -v a:b image \\\n        sh predict.sh IN OUT --save no-such\n", "app"),
        ("\n```sh\npython -m evaluation accuracy P\n```\n", "evaluation"),
        ("\n```\ntorchrun --n=2 -m training train fast RUN --minutes M\n```\n", "training"),
        ("\n\n    python -m benchmarks OUT --rounds x\n", "benchmarks"),
        ("\n\n    python -m benchmarks.trials OUT\n", "benchmarks.trials"),
        ("\n\n    make no-such A=b\n", "make"),
    ],
)
@pytest.mark.usefixtures("parsers")
def test_wrong_commands_are_found_and_refused(block: str, module: str) -> None:
    found = [found for words in commands(f"Text.{block}\nText.\n") if (found := program(words))]
    assert [one for one, _ in found] == [module]
    with pytest.raises((click.UsageError, SystemExit, AssertionError)):
        check(*found[0])


PYTHON = [
    pytest.param(fence["body"], id=name(path))
    for path in DOCUMENTS
    for fence in FENCE.finditer(path.read_text())
    if fence["language"] == "python"
]


@pytest.mark.parametrize("code", PYTHON)
def test_python_in_a_document_runs(
    code: str,
    phantom_path: pathlib.Path,
    tiny_weights: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a scan of the name that the documents use; the smallest model stands in for the default one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "hrnet_ocr_abdomen", app)  # as it is called where it is installed
    monkeypatch.setattr(segmenter, "DEFAULT_MODEL", dict.fromkeys(segmenter.DEFAULT_MODEL, tiny_weights))
    shutil.copy(phantom_path, "scan_0000.nii.gz")
    exec(compile(code, "a document", "exec"), {})
    saved = re.findall(r'\.save\("([^"]+)"', code)
    assert {path.name for path in tmp_path.iterdir()} == {"scan_0000.nii.gz", *saved}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_line_is_too_long_to_read(path: pathlib.Path) -> None:
    lines = path.read_text().splitlines()
    assert [i for i, line in enumerate(lines, start=1) if len(line) > LONGEST_LINE] == []


def test_the_readme_is_short() -> None:
    text = re.sub(r"<!--.*?-->", "", README.read_text())
    assert sum(bool(re.search(r"\w", word)) for word in text.split()) < MOST_WORDS
