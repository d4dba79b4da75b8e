"""The training loop, its resumption, validation, export and command line."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.distributed.run import get_args_parser

from app.checkpoint import Checkpoint, find_model, load_checkpoint
from app.engines.torch_engine import TorchEngine, load_onto
from app.inference.grid import network_grid
from app.inference.labelling import Labelling
from app.network import HrnetOcrLogits, tensors_of
from app.organs import IGNORE, Organ
from phantom import make_phantom
from tests.conftest import ROOT
from tests.tiny import TINY, largest_rounding, tiny
from training.__main__ import alone_in, main, with_batch
from training.cache import CachedCase
from training.engine import Every, Run, Timing, learning_rate, noted_signals
from training.export import export
from training.log import TrainingLog
from training.recipes import Recipe
from training.recipes.paper import RECIPE as PAPER
from training.sampling import SliceSampler
from training.state import Progress, RunState
from training.validation import grid_dice
from training.weights import BEST, LAST, TrainingError, build_network, trained_weights


def test_the_papers_recipe() -> None:
    rates = [learning_rate(Progress(step), replace(PAPER.optimiser, steps=10), None) for step in range(10)]
    expected = [1e-3 * (1 - epoch / 1000) ** 0.9 for epoch in range(5) for _ in range(2)]
    assert rates == pytest.approx(expected)
    with torch.device("meta"):
        network = build_network(PAPER)
    assert sum(p.numel() for p in network.parameters()) == 70_354_170


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(Progress(step), TINY.optimiser, None) for step in range(TINY.optimiser.steps + 1)]
    assert rates[0] == pytest.approx(TINY.optimiser.learning_rate / 2, rel=0.01)
    assert rates[-1] == 0
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(Progress(50, seconds=30), TINY.optimiser, 1) == pytest.approx(TINY.optimiser.learning_rate / 2)


def train(folder: pathlib.Path, cases: list[CachedCase], recipe: Recipe) -> RunState:
    state = RunState(folder, recipe, torch.device("cpu"))
    state.resume()
    Run(state, Timing(validate_minutes=1e9)).train(SliceSampler(cases, [1.0, 1.0], recipe, state.progress.step), cases)
    return state


def test_training_learns_resumes_and_exports(cases: list[CachedCase], tmp_path: pathlib.Path) -> None:
    recipe = tiny(steps=40, learning_rate=1e-2, ema_decay=0.9)
    half = train(tmp_path, cases, tiny(steps=20, learning_rate=1e-2, ema_decay=0.9))
    before = {name: tensor.clone() for name, tensor in half.network.state_dict().items()}
    resumed = RunState(tmp_path, recipe, torch.device("cpu"))
    resumed.resume()
    assert resumed.progress.step == 20
    assert learning_rate(resumed.progress, recipe.optimiser, None) == pytest.approx(recipe.optimiser.learning_rate / 2)
    for name, tensor in resumed.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    run = train(tmp_path, cases, recipe)
    assert run.progress.step == 40
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    losses = [float(row[3]) for row in rows[1:]]
    assert losses[-1] < 0.8 * losses[0]

    export(tmp_path, "mine", "1", "two phantoms", tmp_path / "weights")
    model = load_onto(load_checkpoint(find_model("mine", tmp_path / "weights")), torch.device("cpu"), torch.float32)
    # A phantom as it learnt them: in noise, the rounding to 8 bits decides more voxels. So it does in a small network.
    volume = make_phantom((128, 128, 16), (4.0, 4.0, 16.0), seed=0)[0].transpose(2, 1, 0)
    folded, plain = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.uint8)
    for placed, labels in ((model, folded), (replace(model, network=run.average.module.eval()), plain)):
        with TorchEngine(placed, {}).session(network_grid((128, 128), (4.0, 4.0), TINY.model.spacing_mm)) as session:
            Labelling(session, placed.config, (16.0, 4.0, 4.0), labels).run(enumerate(volume))
    assert np.mean(folded == plain) > 0.99


def test_a_run_starts_from_another_with_its_weights_and_norms(cases: list[CachedCase], tmp_path: pathlib.Path) -> None:
    recipe = tiny(steps=2, frozen_norm="all")
    first = train(tmp_path / "first", cases, tiny(steps=2))
    run = RunState(tmp_path / "second", recipe, torch.device("cpu"))
    run.start_from(str(tmp_path / "first"))
    started, averaged = run.network.state_dict(), run.average.module.state_dict()
    for name, tensor in first.average.module.state_dict().items():
        assert torch.equal(started[name], tensor), name
        assert torch.equal(averaged[name], tensor), name
    stem = "backbone.stem.0.norm.running_mean"
    frozen = started[stem].clone()
    Run(run).step(SliceSampler(cases, [1.0, 1.0], recipe, seed=0).batch())
    assert torch.equal(run.network.state_dict()[stem], frozen)
    wider = RunState(tmp_path / "third", tiny(channels_in=7), torch.device("cpu"))
    wider.start_from(str(tmp_path / "first"))
    image = torch.rand(1, 7, 64, 64)
    narrow, widened = (n.get_submodule("backbone.stem.0.conv") for n in (first.average.module, wider.network))
    torch.testing.assert_close(widened(image), narrow(image[:, 2:5]))  # new neighbours count for nothing yet
    with pytest.raises(TrainingError, match=r"nowhere/last\.pt: no checkpoint there"):
        run.start_from(str(tmp_path / "nowhere"))
    with pytest.raises(TrainingError, match="fast: its network is not the recipe's"):
        run.start_from("fast")


@pytest.mark.parametrize(("which", "moving"), [("none", True), ("regions", False), ("all", False)])
def test_the_recipe_says_which_norms_are_frozen(
    cases: list[CachedCase], tmp_path: pathlib.Path, which: Literal["none", "regions", "all"], moving: bool
) -> None:
    run = RunState(tmp_path, tiny(frozen_norm=which), torch.device("cpu"))
    Run(run).step(SliceSampler(cases, [1.0, 1.0], run.recipe, seed=0).batch())
    moved = {name: bool(norm.num_batches_tracked) for name, norm in run.network.named_modules() if is_norm(norm)}
    assert {moved[name] for name in moved if ".key." in name or ".value." in name} == {moving}
    assert {moved[name] for name in moved if ".query." in name or "backbone" in name} == {which != "all"}


def is_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.BatchNorm2d)


def test_the_same_seed_gives_the_same_losses(
    cases: list[CachedCase], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network that stands still, in float32: it pins weights, draws, augmentation and loss.

    With a learning rate, rounding alone (one thread or two) moves the loss by some percent within eight steps.
    """
    monkeypatch.setattr("training.engine.best_dtype", lambda *_: torch.float32)
    recipe = tiny(learning_rate=0.0)
    run, sampler = Run(RunState(tmp_path, recipe, torch.device("cpu"))), SliceSampler(cases, [1.0, 1.0], recipe, seed=0)
    pinned = [6.0672, 5.7362, 6.1515, 6.0195, 5.5102, 5.8896, 6.2932, 6.0044]
    assert [run.step(sampler.batch()) for _ in pinned] == pytest.approx(pinned, rel=1e-3)


@pytest.mark.parametrize(
    ("period", "times"), [(20, [20, 40, 60]), (7, [7, 14, 21, 28, 35, 42, 49, 56, 63]), (0, []), (1e-9, range(4, 64))]
)
def test_every_is_due_at_each_multiple_of_its_period(period: float, times: Sequence[int]) -> None:
    every = Every(period, start=3)
    assert [now for now in range(4, 64) if every.due(now)] == list(times)


def test_every_is_due_once_after_a_long_step() -> None:
    every = Every(300.0, start=250.0)
    assert [every.due(now) for now in (299.0, 1000.0, 1199.0, 1200.0)] == [False, True, False, True]


def test_grid_dice_of_a_network_that_knows_the_answer(cases: list[CachedCase]) -> None:
    """It answers with the label of the slice that it is shown, but calls the spleen pancreas."""
    case = cases[1]

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, image: torch.Tensor) -> HrnetOcrLogits:
            height, width = case.images.shape[1:]
            shown = (image[0, 1, :height, :width] * 255).round().byte().numpy()
            z = next(z for z, plane in enumerate(case.images) if np.array_equal(plane, shown))
            labels = np.array(case.labels[z])
            labels[labels == Organ.SPLEEN] = Organ.PANCREAS
            labels[labels == IGNORE] = Organ.LIVER  # must not count
            known = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 5).movedim(2, 0).float()
            padded = torch.nn.functional.pad(known, (0, image.shape[3] - width, 0, image.shape[2] - height))
            return HrnetOcrLogits(padded[None], padded[None])

    scores = grid_dice(Oracle(), [case], TINY.model, every=1)
    assert scores[Organ.LIVER] == scores[Organ.KIDNEYS] == 1.0
    assert scores[Organ.SPLEEN] == 0.0
    assert 0 < scores[Organ.PANCREAS] < 1


def test_a_loss_that_is_no_number_stops(
    cases: list[CachedCase], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "step", lambda *_: float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 0; lower the learning rate"):
        train(tmp_path, cases, TINY)


def test_the_command_line_names_the_recipes_there_are(tmp_path: pathlib.Path) -> None:
    result = CliRunner().invoke(main, ["train", "none", str(tmp_path), "--data", str(tmp_path)])
    assert result.exit_code == 2
    recipes = "fast, fast_tune, paper, paper_coarse, paper_ours, paper_tune"
    assert f"no recipe 'none'; there are {recipes}, or give a file.py" in result.output


def test_the_command_line_names_what_is_wrong(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    arguments = ["train", "fast", str(tmp_path / "run"), "--data", str(data), "--cache", str(tmp_path / "cache")]
    result = CliRunner().invoke(main, [*arguments, "--hold-out", "nobody"])
    assert result.exit_code == 1
    assert "held-out case nobody is in none of the data folders" in result.output


@pytest.mark.parametrize("missing", ["own.py", "empty.py"])
def test_a_file_without_a_recipe_is_named(tmp_path: pathlib.Path, missing: str) -> None:
    (tmp_path / "empty.py").write_text("RECIPE = None\n")
    result = CliRunner().invoke(main, ["train", str(tmp_path / missing), str(tmp_path), "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert f"{tmp_path / missing}: no such file, or no RECIPE in it" in result.output


def test_a_run_of_the_flat_layout_is_refused_by_export_and_can_go_on(
    cases: list[CachedCase], tmp_path: pathlib.Path
) -> None:
    train(tmp_path, cases, tiny(steps=1))
    state = torch.load(tmp_path / LAST, weights_only=True)
    recipe = state["recipe"]
    state["recipe"] = {**recipe.pop("model"), **recipe.pop("crops"), **recipe}
    torch.save(state, tmp_path / LAST)
    arguments = ["export", str(tmp_path), "--name", "mine", "--version", "1", "--trained-on", "phantoms"]
    result = CliRunner().invoke(main, [*arguments, "--to", str(tmp_path / "weights")])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {tmp_path}: a run of version 0.6.1 or older, whose recipe has another")
    assert result.output.count("\n") == 1
    train(tmp_path, cases, tiny(steps=2))
    assert export(tmp_path, "mine", "1", "phantoms", tmp_path / "weights")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--minutes", "0"),
        ("--minutes", "-3"),
        ("--validate-minutes", "-1"),
        ("--keep-minutes", "-1"),
        ("--sampling-weight", "btcv=-1"),
        ("--sampling-weight", "btcv=nan"),
        ("--sampling-weight", "btcv=inf"),
        ("--device", "gpu"),
        ("--device", "cuda:99"),
        ("--device", "mps"),
    ],
)
def test_an_impossible_value_is_a_usage_error(tmp_path: pathlib.Path, option: str, value: str) -> None:
    arguments = ["train", "fast", str(tmp_path / "run"), "--data", str(tmp_path), option, value]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert option in result.output
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_folder_are_refused(tmp_path: pathlib.Path) -> None:
    with alone_in(tmp_path / "run", rank=0):
        with pytest.raises(TrainingError, match="run: another run is training there"), alone_in(tmp_path / "run", 0):
            pass
        with alone_in(tmp_path / "run", rank=1):  # another process of the same run
            pass
    with alone_in(tmp_path / "run", rank=0):
        pass


@pytest.mark.parametrize("name", ["my model", "../mine", "a/mine", "", "-mine"])
def test_a_name_that_the_manifest_cannot_hold_is_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(TrainingError, match=f"'{name}': not a model's name"):
        export(tmp_path, name, "1", "phantoms", tmp_path)


@pytest.mark.parametrize("name", ["fast", "FAST"])
def test_a_bundled_model_is_not_replaced(cases: list[CachedCase], tmp_path: pathlib.Path, name: str) -> None:
    train(tmp_path / "run", cases, tiny(steps=1))
    bundled = tmp_path / "weights"
    path = export(tmp_path / "run", "fast", "1", "phantoms", bundled)  # there is no card yet
    (bundled / "fast.md").write_text("# Model card")
    before = path.read_bytes()
    command = ["export", str(tmp_path / "run"), "--name", name, "--version", "2", "--trained-on", "phantoms"]
    result = CliRunner().invoke(main, [*command, "--to", str(bundled)])
    assert result.exit_code == 1
    line = f"error: {bundled}/{name}.safetensors: would replace the bundled model; choose another name, or a folder"
    assert result.output.startswith(line)
    assert path.read_bytes() == before
    result = CliRunner().invoke(main, ["convert", str(path), "--to", str(bundled)])
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {path}: would replace the bundled model")
    assert CliRunner().invoke(main, [*command, "--to", str(tmp_path / "mine")]).exit_code == 0
    assert export(tmp_path / "run", "mine", "2", "phantoms", bundled) == bundled / "mine.safetensors"


@pytest.mark.parametrize("seen", [{"spacing_mm": 4.0}, {"window_hu": (-100.0, 200.0)}, {"neighbour_mm": 5.0}])
def test_a_recipe_that_sees_scans_otherwise_does_not_resume(tmp_path: pathlib.Path, seen: dict[str, Any]) -> None:
    """Its tensors would fit."""
    RunState(tmp_path, TINY, torch.device("cpu")).save()
    with pytest.raises(TrainingError, match=r"last\.pt: of another recipe"):
        RunState(tmp_path, tiny(**seen), torch.device("cpu")).resume()
    RunState(tmp_path, tiny(learning_rate=1e-4, batch=3), torch.device("cpu")).resume()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    state = RunState(tmp_path, TINY, torch.device("cpu"))
    state.save()
    before = state.checkpoint.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(TrainingError, match=r"last\.pt: cannot be written \(.*\); free disk space"):
        state.save()
    assert state.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


@pytest.mark.parametrize("left", [0, 10, -8, -1])
def test_a_log_that_was_cut_goes_on(tmp_path: pathlib.Path, left: int) -> None:
    """By a crash, in its header or in its last row."""
    for step in (1, 2):
        log = TrainingLog(tmp_path, batch=2)
        log.add(loss=0.5, seconds=1.0, waited=0.1)
        log.write(Progress(step, 60.0 * step), 1e-3, torch.device("cpu"), {})
        if step == 1:
            whole = log.path.read_bytes()
            log.path.write_bytes(whole[:left])
    assert log.path.read_text().splitlines()[-1].startswith("2,2.0,0.001,0.5,")
    assert log.picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"no checkpoint", "last.pt: not a readable checkpoint of a run"),
        (b"", "last.pt: not a readable checkpoint of a run"),
        (None, "last.pt: of another recipe; choose another folder, or the recipe that began it"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(
    cases: list[CachedCase], tmp_path: pathlib.Path, content: bytes | None, line: str
) -> None:
    state = RunState(tmp_path, tiny(width=6), torch.device("cpu"))
    if content is None:
        state.save()
    else:
        state.checkpoint.write_bytes(content)
    with pytest.raises(TrainingError, match=line):
        RunState(tmp_path, TINY, torch.device("cpu")).resume()


def test_stops_when_validation_gets_no_better_and_exports_the_best(
    cases: list[CachedCase], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(steps=50, patience=2)
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr("training.engine.grid_dice", lambda *_: {Organ.LIVER: next(scores)})
    run = RunState(tmp_path, recipe, torch.device("cpu"))
    every_step = Timing(validate_minutes=1e-9)
    assert Run(run, every_step).train(SliceSampler(cases, [1.0, 1.0], recipe, seed=0), cases) is None
    assert run.progress == Progress(4, run.progress.seconds, best_dice=0.5, validations_since_best=2)
    best, last = (torch.load(tmp_path / name, weights_only=True) for name in (BEST, LAST))
    assert (best["progress"]["step"], last["progress"]["step"]) == (2, 4)
    exported = load_checkpoint(export(tmp_path, "mine", "1", "phantoms", tmp_path / "weights"))
    name = "fcn_head.classify.bias"
    assert np.array_equal(exported.tensors[name], best["average"][f"module.{name}"])
    assert torch.equal(trained_weights(str(tmp_path), TINY.model.channels_in)[name], best["average"][f"module.{name}"])


def test_torchrun_takes_no_option_of_ours_for_its_own() -> None:
    """It would, were one the beginning of one of its own."""
    options = [parameter.opts[0] for parameter in main.commands["train"].params if parameter.opts[0].startswith("--")]
    words = ["train", "fast", "run", *(f"{option}=1" for option in options)]
    parsed = get_args_parser().parse_args(["--nproc-per-node=2", "-m", "training", *words])
    assert parsed.training_script_args == words


@pytest.fixture
def own_recipe(tmp_path: pathlib.Path) -> Callable[[int], list[str]]:
    """Writes a recipe of one's own, of so many steps, that logs every other; gives the arguments of `train` for it."""

    def write(steps: int) -> list[str]:
        path = tmp_path / "own.py"
        lines = [
            "import training.engine",
            "from tests.tiny import tiny",
            "training.engine.LOG_STEPS = 2",
            f"RECIPE = tiny(steps={steps})",
        ]
        path.write_text("\n".join(lines) + "\n")
        return ["train", str(path), str(tmp_path / "run"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]

    return write


def test_two_processes_train_together(
    data: pathlib.Path, tmp_path: pathlib.Path, own_recipe: Callable[[int], list[str]]
) -> None:
    """Started by torchrun with a recipe of one's own; one of them logs and saves."""
    torchrun = ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    shown = subprocess.run(
        [sys.executable, "-m", *torchrun, "-m", "training", *own_recipe(4), "--data", str(data)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["step=2", "step=4"]
    assert torch.load(tmp_path / "run" / LAST, weights_only=True)["progress"]["step"] == 4
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_stopped_is_saved_and_does_not_look_finished(
    data: pathlib.Path, tmp_path: pathlib.Path, own_recipe: Callable[[int], list[str]], number: signal.Signals
) -> None:
    """What comes after it, as in training/bundled.sh, must not begin."""
    command = [sys.executable, "-m", "training", *own_recipe(1_000_000), "--data", str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline().startswith("step=2 ")
            process.send_signal(number)
            assert process.wait(60) == 128 + number
            line = process.stderr.read()
        finally:
            process.kill()  # or the end of the block waits for it
    step = torch.load(tmp_path / "run" / LAST, weights_only=True)["progress"]["step"]
    assert step >= 2
    assert line == f"{tmp_path / 'run'}: stopped by {number.name} at step {step} and saved; the same command goes on\n"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU])
def test_signals_that_come_during_a_run_are_noted(number: signal.Signals) -> None:
    """A second one, during the save of the first, does no harm; but nobody has to wait for the end of a step."""
    numbers = [number, signal.SIGTERM, signal.SIGINT]
    before = [signal.signal(one, signal.default_int_handler) for one in numbers]
    with noted_signals() as noted:
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert noted == [number, signal.SIGTERM]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.signal(*pair) for pair in zip(numbers, before, strict=True)] == [signal.default_int_handler] * 3


class Gone(io.StringIO):
    """A closed pipe or terminal."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_of_its_lines_that_is_gone_ends_no_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    log = TrainingLog(tmp_path, batch=2)
    for step in (1, 2):
        log.add(loss=0.5, seconds=1.0, waited=0.1)
        log.write(Progress(step, 60.0 * step), 1e-3, torch.device("cpu"), {})
    assert log.path.read_text().splitlines()[-1].startswith("2,2.0,0.001,0.5,")
    sys.stdout.close()


def test_processes_that_cannot_be_joined_are_one_line(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WORLD_SIZE may be left over from another program."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    result = CliRunner().invoke(main, ["train", "fast", str(tmp_path / "run"), "--data", str(data)])
    assert result.exit_code == 1
    assert "error: the processes of WORLD_SIZE=2 cannot be joined" in result.output
    assert "torchrun, or unset WORLD_SIZE" in result.output


def test_held_out_cases_without_an_organ_do_not_end_a_run(cases: list[CachedCase], tmp_path: pathlib.Path) -> None:
    empty = [replace(case, images=case.images[:1], labels=np.zeros_like(case.labels[:1])) for case in cases[:1]]
    run = Run(RunState(tmp_path, tiny(patience=1), torch.device("cpu")), Timing(validate_minutes=1.0))
    assert run.validate(empty) == {}
    assert run.state.progress == Progress()


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The network of a model `start` that takes the place of the bundled ones."""
    network = build_network(TINY)
    monkeypatch.setattr("training.weights.bundled_models", lambda: ["start"])
    start = Checkpoint(TINY.model, tensors_of(network.state_dict()), {})
    monkeypatch.setattr("training.weights.find_model", lambda name: pathlib.Path(f"{name}.safetensors"))
    monkeypatch.setattr("training.weights.load_checkpoint", lambda path: start)
    return network


def test_a_run_starts_from_a_bundled_model_as_it_is(
    cases: list[CachedCase], tmp_path: pathlib.Path, bundled: torch.nn.Module
) -> None:
    run = RunState(tmp_path, TINY, torch.device("cpu"))
    run.start_from("start")
    wanted = bundled.state_dict()
    for network in (run.network, run.average.module):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, wanted[name])  # statistics of batch norm too


def test_weights_are_kept_along_a_run_and_average_like_runs(cases: list[CachedCase], tmp_path: pathlib.Path) -> None:
    run = RunState(tmp_path / "run", tiny(steps=4), torch.device("cpu"))
    sampler = SliceSampler(cases, [1.0, 1.0], run.recipe, seed=0)
    every_step = Timing(keep_minutes=1e-9)
    Run(run, every_step).train(sampler)
    kept = sorted((tmp_path / "run").glob("minute-*"))
    assert kept  # steps within a tenth of a minute share a folder, the last one has it
    single = load_checkpoint(export(kept[-1], "one", "1", "phantoms", tmp_path / "weights"))
    for name, tensor in tensors_of(run.average.module.state_dict()).items():
        np.testing.assert_allclose(single.tensors[name], tensor, rtol=0, atol=largest_rounding(tensor))
    arguments = tmp_path / "run", "mine", "1", "phantoms", tmp_path / "weights"
    mean = load_checkpoint(export(*arguments, average_with=[str(kept[-1])]))
    assert mean.config.version == "1"
    Run(run, every_step).train(sampler)  # over: nothing more is kept
    assert sorted((tmp_path / "run").glob("minute-*")) == kept


def test_another_batch_changes_the_learning_rate_by_its_root() -> None:
    batch, rate = TINY.crops.batch, TINY.optimiser.learning_rate
    assert with_batch(TINY, 4 * batch) == tiny(batch=4 * batch, learning_rate=2 * rate)
    assert with_batch(TINY, batch) == TINY


def test_export_averages_with_the_model_it_started_from_and_other_runs(
    tmp_path: pathlib.Path, bundled: torch.nn.Module
) -> None:
    one, other = (RunState(tmp_path / str(seed), tiny(seed=seed), torch.device("cpu")) for seed in (1, 2))
    one.save()
    other.save()
    arguments = tmp_path / "1", "mine", "1", "phantoms", tmp_path / "weights"
    exported = load_checkpoint(export(*arguments, average_with=[str(tmp_path / "2"), "start"]))
    every = [network.state_dict() for network in (one.average.module, other.average.module, bundled)]
    for name, tensor in exported.tensors.items():
        mean = (sum(state[name] for state in every) / 3).numpy()
        np.testing.assert_allclose(tensor, mean, rtol=1e-6, atol=1e-6 + largest_rounding(mean))
    with pytest.raises(TrainingError, match=r"nowhere/last\.pt: no checkpoint there"):
        export(*arguments, average_with=["nowhere"])
    RunState(tmp_path / "wide", tiny(width=6), torch.device("cpu")).save()
    with pytest.raises(TrainingError, match="wide: its network is not that of"):
        export(*arguments, average_with=[str(tmp_path / "wide")])
