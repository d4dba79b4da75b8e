"""What every output offers."""

from __future__ import annotations

import logging
import pathlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from ..errors import AppError, ResultError
from ..segmentation import Segmentation
from ..whole_file import beside, whole_file

__all__ = ["PROGRAM", "Result", "beside", "each_by_itself", "write_whole"]

log = logging.getLogger(__name__)

PROGRAM = "hrnet-ocr-abdomen"  # what outputs call their maker
MARKED_BYTES = 256  # within which a file says so


def write_whole(path: pathlib.Path, content: bytes, mark: bytes | None = None) -> None:
    """Write a file whole or not at all.

    Args:
        path: of it.
        content: of it.
        mark: what this program's files of that name hold near their beginning; one without it is left alone. None: the
            caller has seen to that.

    Raises:
        ResultError: it cannot be written, or others wrote a file of that name.
    """
    try:
        if mark is not None and path.exists():
            with path.open("rb") as there:
                if mark not in there.read(MARKED_BYTES):
                    raise ResultError(f"{path}: this program did not write it and leaves it alone; move it")
        with whole_file(path) as stream:
            stream.write(content)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from error


def each_by_itself(steps: Iterable[tuple[pathlib.Path, Callable[[], None]]]) -> None:
    """Take every step, whatever becomes of the others.

    Args:
        steps: each with the path that it writes to.

    Raises:
        ResultError: some failed; the line names the path and the reason of each.
    """
    problems = []
    for path, step in steps:
        try:
            step()
        except Exception as error:  # a fault in one file is no reason to lose the others
            log.debug("%s", path, exc_info=error)
            line = str(error) if isinstance(error, AppError) else f"unexpected {type(error).__name__}: {error}"
            problems.append(line if line.startswith(str(path)) else f"{path}: {line}")
    if problems:
        raise ResultError(" ".join("; ".join(problems).split()))


class Result(ABC):
    """One kind of output.

    Attributes:
        needs_dicom: whether the scan must have come as DICOM.
        needs_scan: whether it is made from the scan's values too, see `inference.gathering.Gathering`.
    """

    needs_dicom = False
    needs_scan = False

    @abstractmethod
    def path(self, base: pathlib.Path, mask_extension: str | None) -> pathlib.Path:
        """Where the output of a case goes.

        Args:
            base: OUTPUT and the case's name, without an extension.
            mask_extension: of a NIfTI mask, where the scan's own name decides it; None: as this output likes.
        """

    @abstractmethod
    def wrote(self, path: pathlib.Path) -> bool:
        """Whether this program wrote a file, and so may replace it."""

    @abstractmethod
    def write(self, segmentation: Segmentation, path: pathlib.Path) -> None:
        """Write the output of one case, whole or not at all.

        Raises:
            ResultError: it cannot be written.
        """

    def finish(self, output: pathlib.Path) -> None:  # noqa: B027 (most kinds have nothing to do)
        """Write what belongs to the whole folder of outputs, at the end of a run.

        Raises:
            ResultError: it cannot be written.
        """
