"""Which cases a run trains on, how often each is drawn, and which are held out."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.checkpoint import ModelConfig
from app.organs import ORGANS, Organ
from evaluation.names import Labelled, case_name
from training.cache import CachedCase, DataError, find_pairs, load_cases
from training.folds import FOLDS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cases:
    """The cases of a run.

    Attributes:
        training: to train on.
        weights: how often each of them is drawn, relative to the others.
        held_out: never trained on.
    """

    training: list[CachedCase]
    weights: list[float]
    held_out: list[CachedCase]


@dataclass(frozen=True)
class DataOptions:
    """Where the cases come from and what is done with them.

    Attributes:
        folders: of data in the FLARE / nnU-Net layout.
        cache: a folder for their slices on the network's grid.
        hold_out: names of cases that are held out.
        fold: number of one of the `FOLDS` that is held out as well.
        sampling_weights: first letters of cases' names -> how often these are drawn, relative to the others' 1.
        separate_slices: first letters of the names of cases whose slices are not neighbours of each other.
    """

    folders: Sequence[pathlib.Path]
    cache: pathlib.Path
    hold_out: Sequence[str] = ()
    fold: int | None = None
    sampling_weights: Mapping[str, float] = field(default_factory=dict)
    separate_slices: Sequence[str] = ()

    def load(self, model: ModelConfig) -> Cases:
        """The cases as a model of this configuration sees them.

        Raises:
            DataError: a file cannot be used, a held-out case is not there, nothing is left to train on, or no organ is
                labelled in it.
        """
        cases = load_cases(self.folders, self.cache, model, [case_name(prefix) for prefix in self.separate_slices])
        names = self._held_out()
        if missing := names - {case.name for case in cases}:
            raise DataError(f"held-out case {min(missing)} is in none of the data folders")
        training = [case for case in cases if case.name not in names]
        if not training:
            raise DataError("every case is held out, none is left to train on; hold out fewer")
        weights = [self._weight(case.name) for case in training]
        if not any(weights):
            raise DataError("every case has the sampling weight 0, none is left to train on; give one of them more")
        held_out = [case for case in cases if case.name in names]
        _check_shown(training, held_out)
        return Cases(training, weights, held_out)

    def held_out_pairs(self) -> list[Labelled]:
        """Name, image and label of every held-out case."""
        return [pair for folder in self.folders for pair in find_pairs(folder) if pair[0] in self._held_out()]

    def _held_out(self) -> set[str]:
        return {*map(case_name, self.hold_out), *(FOLDS[self.fold] if self.fold is not None else ())}

    def _weight(self, name: str) -> float:
        weights = self.sampling_weights.items()
        return next((weight for prefix, weight in weights if name.startswith(case_name(prefix))), 1.0)


def _check_shown(training: Sequence[CachedCase], held_out: Sequence[CachedCase]) -> None:
    """Warn of organs that no case shows: a network unlearns them, since their place is labelled as background.

    Raises:
        DataError: the training cases show none.
    """
    missing = [organ.key for organ in ORGANS if not _show(training, organ)]
    if len(missing) == len(ORGANS):
        raise DataError(f"no training case shows {', '.join(missing)}; check the values of the labels")
    if missing:
        log.warning("warning: no training case shows %s; a model of this run will not find it", ", ".join(missing))
    if held_out and not any(_show(held_out, organ) for organ in ORGANS):
        log.warning("warning: no held-out case shows an organ, so that there is nothing to validate on")


def _show(cases: Sequence[CachedCase], organ: Organ) -> bool:
    """Whether an organ is labelled in some case; most often the first tells."""
    return any((case.labels == organ).any() for case in cases)
