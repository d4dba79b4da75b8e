"""Published figures: documents say what the JSON files say, scores come from reports, a release is of one version."""

from __future__ import annotations

import datetime
import json
import pathlib
import shutil
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from app import __version__
from app.organs import ORGANS, Organ
from benchmarks import published
from evaluation import hard, scores, slices
from evaluation.__main__ import main as evaluation
from evaluation.metrics import Score
from phantom import write_phantom
from tests import release
from tests.conftest import ROOT


def run(monkeypatch: pytest.MonkeyPatch, documents: list[pathlib.Path], *options: str) -> int | str | None:
    monkeypatch.setattr(published, "documents", lambda: documents)
    monkeypatch.setattr("sys.argv", ["published", *options])
    with pytest.raises(SystemExit) as ended:
        published.main()
    return ended.value.code


def test_the_documents_have_the_figures_of_the_json_files() -> None:
    assert [str(path) for path in published.outdated()] == []
    marked = [path.name for path in published.documents() if published.MARKED.search(path.read_text())]
    assert {"README.md", "BENCHMARKS.md", "fast.md", "paper.md"} <= set(marked)


def test_every_mark_is_closed_and_every_table_has_one() -> None:
    used = set()
    for path in published.documents():
        text = path.read_text()
        found = list(published.MARKED.finditer(text))
        assert len(found) == text.count("<!-- figures:") == text.count("<!-- end -->"), path
        used |= {(m["words"].split() * 2)[1] for m in found}
    assert used == {name for names in published.TABLES.values() for name in names}


@pytest.mark.parametrize(
    "path", [p for p in published.documents() if "<!-- figures:" in p.read_text()], ids=lambda p: p.name
)
def test_a_figure_that_is_changed_by_hand_is_seen_and_put_right(
    path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = path.read_text()
    copy = tmp_path / path.name
    for mark in published.MARKED.finditer(before):
        digits = [i for i in range(mark.start("body"), mark.end("body")) if before[i].isdigit()]
        if not digits:
            continue
        place = digits[len(digits) // 2]
        copy.write_text(before[:place] + str((int(before[place]) + 1) % 10) + before[place + 1 :])
        assert run(monkeypatch, [copy], "--check") == 1
        assert capsys.readouterr().out == f"{copy}: its figures differ from the JSON files; run make figures\n"
        assert run(monkeypatch, [copy]) == 0
        assert capsys.readouterr().out == f"{copy}: written\n"
        assert copy.read_text() == before
    assert run(monkeypatch, [copy], "--check") == 0


def test_a_figure_that_was_not_measured_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert published.figures("no-such-machine speed") == published.UNMEASURED
    assert published.figures("scores accuracy no-such-set") == published.UNMEASURED
    assert published.figures("scores organs no-such-model quick") == published.UNMEASURED
    with pytest.raises(KeyError):
        published.figures("cpu-2-threads no_such_table")


def test_scores_come_from_a_report_and_its_run_log(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, references = tmp_path / "report" / "masks", tmp_path / "references"
    for folder in (masks, references):
        folder.mkdir(parents=True)
    write_phantom(tmp_path / "ct.nii.gz", references / "one.nii.gz", (40, 40, 12), (8.0, 8.0, 20.0))
    shutil.copy(references / "one.nii.gz", references / "two.nii.gz")
    shutil.copy(references / "one.nii.gz", masks / "one.nii.gz")
    image = nib.load(references / "two.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[labels == 4] = 0
    nib.save(nib.Nifti1Image(labels, image.affine, image.header), masks / "two.nii.gz")
    log = [
        {"case": name, "status": "done", "model": "mine", "weights_sha256": {"mine.safetensors": "ab"}}
        | {"versions": {"app": "9.9.9", "weights": "0.1"}, "precision": "float32", "device": "CPU (x86_64)"}
        for name in ("one", "two")
    ]
    (masks / "run_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    report = str(tmp_path / "report")
    shown = CliRunner().invoke(evaluation, ["accuracy", str(masks), str(references), "--out", report])
    assert shown.exit_code == 0, shown.output
    table = (tmp_path / "report" / "table.md").read_text()
    monkeypatch.setattr(scores, "SCORES", tmp_path / "scores.json")
    monkeypatch.setattr(scores.record, "__defaults__", (tmp_path / "scores.json",))
    shown = CliRunner().invoke(evaluation, ["record", "some", report])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["some"]["mine"]["cases"]["two"]["pancreas"] == [0.0, 0.0]
    assert found["some"]["mine"]["version"] == "9.9.9"
    assert f"{scores.organs(found, 'mine', 'some')}\n\n{scores.cases(found, 'mine', 'some')}\n" == table
    assert scores.accuracy(found, "some").splitlines()[2] == "| liver | 100.0 | 100.0 |"
    assert scores.accuracy(found, "some").splitlines()[5] == "| pancreas | 50.0 | 50.0 |"
    log[1]["model"] = "another"
    (masks / "run_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    shown = CliRunner().invoke(evaluation, ["record", "some", report])
    assert shown.exit_code == 1
    assert "the cases differ in model" in shown.output


def test_scores_of_separate_slices_have_no_nsd(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[str, Any] = {"version": "9.9.9", "date": "2026-12-01", "machine": "CPU"}
    facts["models"] = {"mine": {"version": "0.1", "sha256": {"m": "ab"}, "device": "CPU", "precision": "float32"}}
    dice = {
        "a": {Organ.LIVER: 0.9, Organ.KIDNEYS: 0.8, Organ.SPLEEN: 0.7, Organ.PANCREAS: 0.6},
        "b": {Organ.LIVER: 1.0},
    }
    (tmp_path / "slices.json").write_text(slices.as_json(facts, dice))
    monkeypatch.setattr(scores.record, "__defaults__", (tmp_path / "scores.json",))
    shown = CliRunner().invoke(evaluation, ["record", "slices", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "scores.json").read_text())
    assert scores.accuracy(found, "slices").splitlines()[0] == "| organ | `mine` DSC (%) |"
    assert scores.accuracy(found, "slices").splitlines()[2:4] == ["| liver | 95.0 |", "| kidneys | 80.0 |"]
    assert scores.about(found, "slices", "mine") == "`mine` 0.1, 2 scans, scored 2026-12-01 on a CPU in float32."


def test_harder_scans_are_shown_beside_the_clean_ones_and_every_model_by_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    better, worse = ({organ: Score(dice, 0.5) for organ in ORGANS} for dice in (0.9, 0.85))
    monkeypatch.setattr(scores.record_hard, "__defaults__", (tmp_path / "published.json",))
    for version, name, bad in (("1.0.0", "mine", better), ("1.0.0", "other", worse), ("1.1.0", "mine", worse)):
        model = {"version": "0.1", "sha256": {"m": "ab"}, "device": "CPU", "precision": "float32"}
        facts = {"version": version, "date": "2026-12-01", "machine": "x", "protocol": "y", "models": {name: model}}
        found = hard.as_json(facts, {name: {"clean": {"a": better}, "noise": {"a": bad}}})
        (tmp_path / "hard.json").write_text(found)
        shown = CliRunner().invoke(evaluation, ["record", "hard", str(tmp_path)])
        assert shown.exit_code == 0, shown.output
    published = json.loads((tmp_path / "published.json").read_text())
    assert [published[name]["version"] for name in ("mine", "other")] == ["1.1.0", "1.0.0"]
    lines = scores.hard(published, "mine").splitlines()
    assert lines[0] == "`mine` 0.1, scored 2026-12-01 with version 1.1.0 on a CPU in float32."
    assert lines[4] == "| clean | 90.0 | 90.0 | 90.0 | 90.0 |"
    assert lines[5] == "| noise | 85.0 (-5.0) | 85.0 (-5.0) | 85.0 (-5.0) | 85.0 (-5.0) |"
    (tmp_path / "hard.json").write_text("{}")
    assert "not a report of" in CliRunner().invoke(evaluation, ["record", "hard", str(tmp_path)]).output


@pytest.mark.parametrize(("value", "shown"), [(0.9585, "95.9"), (0.9015, "90.2"), (0.6635, "66.4"), (1.0, "100.0")])
def test_halves_are_rounded_up(value: float, shown: str) -> None:
    assert scores.percent(value) == shown


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """What a release is made of, small."""
    for folder in ("app", "weights"):
        (tmp_path / folder).mkdir()
    (tmp_path / "app" / "version.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n\n- Faster.\n")
    (tmp_path / "Dockerfile").write_text('LABEL org.opencontainers.image.version="1.2.3"\n')
    (tmp_path / "weights" / "m.safetensors").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    (tmp_path / "weights" / "SHA256SUMS").write_text(f"{digest}  m.safetensors\n")
    return tmp_path


DAY = datetime.date(2026, 12, 1)


def test_a_release_of_one_version_is_ready(tree: pathlib.Path) -> None:
    assert [*release.of_version(tree, DAY), *release.of_weights(tree)] == []


@pytest.mark.parametrize(
    ("file", "before", "after", "line"),
    [
        ("app/version.py", "1.2.3", "1.2.4", "first heading"),
        ("app/version.py", "1.2.3", "1.2", "not of the form"),
        ("CHANGELOG.md", "## 1.2.3 (2026-12-01)", "## Unreleased", "first heading"),
        ("CHANGELOG.md", "12-01", "11-30", "1.2.3 is of 2026-11-30, today is 2026-12-01"),
        ("Dockerfile", "1.2.3", "1.2.2", "the image's version is 1.2.2, expected 1.2.3"),
        ("weights/m.safetensors", "abc", "abd", "not the one in SHA256SUMS"),
        ("weights/SHA256SUMS", "m.safe", "n.safe", "lists n.safetensors, the folder has m.safetensors"),
    ],
)
def test_what_stands_in_the_way_of_a_release(tree: pathlib.Path, file: str, before: str, after: str, line: str) -> None:
    text = (tree / file).read_text()
    assert before in text
    (tree / file).write_text(text.replace(before, after))
    assert any(line in problem for problem in [*release.of_version(tree, DAY), *release.of_weights(tree)])


def test_figures_of_another_version_or_of_other_weights_stand_in_the_way(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published.path_of("cpu-2-threads")
    found = json.loads(path.read_text()) | {"version": __version__}
    for model in found["weights"].values():
        model["sha256"] = dict.fromkeys(release.checksums(ROOT), "0" * 64)
    (tmp_path / "benchmarks").mkdir()
    copy = tmp_path / "benchmarks" / path.name
    copy.write_text(json.dumps(found))
    monkeypatch.setattr(published, "path_of", lambda file: copy)
    monkeypatch.setattr(published, "outdated", list)
    monkeypatch.setattr(published, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- figures: cpu-2-threads speed -->\n<!-- end -->\n")
    for folder in ("app", "weights"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "app" / "version.py", tmp_path / "app")
    shutil.copy(ROOT / "weights" / "SHA256SUMS", tmp_path / "weights")
    assert list(release.of_figures(tmp_path)) == [
        "benchmarks/cpu-2-threads.json: of other weights than those of SHA256SUMS; measure again"
    ]
    copy.write_text(json.dumps(found | {"version": "0.0.1", "weights": {}}))
    assert list(release.of_figures(tmp_path)) == [
        f"benchmarks/cpu-2-threads.json: of version 0.0.1, not {__version__}; measure again"
    ]
    copy.unlink()
    readme.write_text(f"<!-- figures: cpu-2-threads speed -->\n\n{published.UNMEASURED}\n\n<!-- end -->\n")
    assert list(release.of_figures(tmp_path)) == ["README.md: a figure is not measured yet"]
