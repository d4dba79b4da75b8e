"""The machine on which something was measured."""

from __future__ import annotations

import platform

from app.host import CPU_INFO

# Linux's names of instructions that decide how fast a network is, the most capable first, and the common names.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 with bfloat16", "avx512f": "AVX-512", "avx2": "AVX2"}


def processor() -> str:
    """The CPU's name and its best instructions, as far as it tells."""
    text = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    best = [common for name, common in INSTRUCTIONS.items() if f" {name} " in text][:1]
    return f"{names[0] if names else 'CPU'} ({', '.join([platform.machine(), *best])})"
