"""Every error that this program raises on purpose.

    AppError
    ├── InputError        INPUT or OUTPUT cannot be used at all                 exit status 2
    ├── CheckpointError   the weights are missing, altered or foreign           exit status 2
    ├── DeviceError       the device is missing or too small for the weights    exit status 2
    ├── VolumeError       one scan cannot be read as a CT                       exit status 1
    ├── InferenceError    the network cannot be run on one scan                 exit status 1
    │   └── NoMemoryError     a batch does not fit into memory; a smaller one may
    └── ResultError       one result cannot be written                          exit status 1

A message is one line: what was given, what is accepted, what to do. An error with exit status 1 belongs to one case,
and the other cases go on.
"""

from __future__ import annotations


class AppError(Exception):
    """The base of this program's errors; `exit_code` is the process's exit status if it ends the run."""

    exit_code = 1


class InputError(AppError):
    """The input or output folder cannot be used at all."""

    exit_code = 2


class CheckpointError(AppError):
    """Weights are missing, altered, foreign, or do not fit their own configuration."""

    exit_code = 2


class DeviceError(AppError):
    """The device is not there, or has no room for the weights."""

    exit_code = 2


class VolumeError(AppError):
    """A scan cannot be read as a CT."""


class InferenceError(AppError):
    """The network cannot be run on a scan."""


class NoMemoryError(InferenceError):
    """A batch does not fit into memory; a smaller one may."""


class ResultError(AppError):
    """A result cannot be written."""
