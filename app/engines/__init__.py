"""What computes: one class per engine, one table from its name to its class.

engine.py        Engine and Session, what each of them offers
torch_engine.py  PyTorch: an NVIDIA GPU in fp16, or a CPU
torch_images.py  slices to and from the network's grid in torch

To add an engine, write a module with classes that satisfy `Engine` and `Session`, and give it a row in `ENGINES`.
"""

from __future__ import annotations

import os
from importlib import import_module

from .engine import Array, Box, Engine, EngineInfo, Session

__all__ = ["ENGINES", "Array", "Box", "Engine", "EngineInfo", "Session", "engine_class"]

# Name of an engine -> its module and class; modules are imported when they are asked for, as are their libraries.
ENGINES: dict[str, tuple[str, str]] = {"torch": ("torch_engine", "TorchEngine")}


def engine_class(name: str) -> type[Engine]:
    """The class of an engine.

    OpenMP reads its environment when it is loaded. Its threads wait by sleeping and not by spinning, so that two
    processes on one machine do not slow each other down.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, engine = ENGINES[name]
    found: type[Engine] = getattr(import_module(f".{module}", __name__), engine)
    return found
