"""The machine on which something was measured."""

from __future__ import annotations

import platform

from app.host import CPU_INFO


def processor() -> str:
    """The CPU's name, as far as it tells."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'} ({platform.machine()})"
