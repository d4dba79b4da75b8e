"""What a benchmark's figures are of: version, date, weights."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from app.checkpoint import find_model, load_checkpoint
from app.version import __version__


def provenance(models: Sequence[str]) -> dict[str, Any]:
    """The program's version, today's date, and version and sha256 of the bundled models."""
    loaded = {name: load_checkpoint(find_model(name)) for name in models}
    return {
        "version": __version__,
        "date": datetime.date.today().isoformat(),
        "weights": {
            name: {"version": checkpoint.config.version, "sha256": checkpoint.sha256}
            for name, checkpoint in loaded.items()
        },
    }
