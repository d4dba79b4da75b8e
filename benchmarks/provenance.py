"""What a benchmark's figures are of: version, date, weights, libraries."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from typing import Any

from app.checkpoint import find_model, load_checkpoint
from app.version import __version__

LIBRARIES = ("torch", "openvino")  # that may compute


def provenance(models: Sequence[str]) -> dict[str, Any]:
    """The program's version, today's date, version and sha256 of the bundled models, and the engines' libraries."""
    loaded = {name: load_checkpoint(find_model(name)) for name in models}
    return {
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)},
        "weights": {
            name: {"version": checkpoint.config.version, "sha256": checkpoint.sha256}
            for name, checkpoint in loaded.items()
        },
    }
