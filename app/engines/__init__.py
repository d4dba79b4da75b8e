"""What computes: one class per engine, one table from its name to its class.

engine.py           Engine and Session, what each of them offers
batching.py         batches that fit into memory, whatever the engine
openvino_engine.py  OpenVINO: a CPU, without torch
openvino_graph.py   the network as an OpenVINO graph
numpy_images.py     slices to and from the network's grid in NumPy
torch_engine.py     PyTorch: an NVIDIA GPU in fp16, or a CPU
torch_images.py     slices to and from the network's grid in torch

To add an engine, write a module with classes that satisfy `Engine` and `Session`, and give it a row in `ENGINES`.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from importlib.util import find_spec

from ..errors import DeviceError
from ..gpu_memory import has_gpu
from .engine import Array, Box, Engine, EngineInfo, Session

__all__ = ["DEVICES", "ENGINES", "Array", "Box", "Engine", "EngineInfo", "Session", "choose_engine", "engine_class"]

log = logging.getLogger(__package__)

# Name of an engine -> its module and class; modules are imported when they are asked for, as are their libraries, which
# have the engine's name. In the order in which `auto` prefers them on a CPU.
ENGINES: dict[str, tuple[str, str]] = {
    "openvino": ("openvino_engine", "OpenvinoEngine"),
    "torch": ("torch_engine", "TorchEngine"),
}
FOR_GPU = "torch"
DEVICES = ("auto", "cuda", "cpu")
INSTALL = {"openvino": "pip install openvino", "torch": "pip install 'hrnet-ocr-abdomen[gpu]'"}


def engine_class(name: str) -> type[Engine]:
    """The class of an engine.

    OpenMP reads its environment when it is loaded. Its threads wait by sleeping and not by spinning, so that two
    processes on one machine do not slow each other down.

    Raises:
        DeviceError: the engine's library is not installed.
    """
    if find_spec(name) is None:
        raise DeviceError(f"engine {name}: {name} is not installed; {INSTALL[name]}, or choose another engine")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, engine = ENGINES[name]
    found: type[Engine] = getattr(import_module(f".{module}", __name__), engine)
    return found


def choose_engine(name: str = "auto", device: str = "auto") -> tuple[type[Engine], str]:
    """The class of an engine, and the device that it will use, `cuda` or `cpu`.

    Args:
        name: of an engine; `auto`: torch on a GPU, on a CPU the first of `ENGINES` that is installed.
        device: `auto`, `cuda` or `cpu`; `auto` is the CPU where no GPU can be used.

    Raises:
        DeviceError: an engine or a device was asked for and is not there, or there is none of that name.
    """
    for what, given, known in (("engine", name, ("auto", *ENGINES)), ("device", device, DEVICES)):
        if given not in known:
            raise DeviceError(f"{what} '{given}': no such {what}; choose from {', '.join(known)}")
    if name != "auto":
        engine = engine_class(name)
        return engine, engine.find_device(device)
    if device == "cuda" or (device == "auto" and has_gpu()):
        if device == "cuda" or find_spec(FOR_GPU):
            engine = engine_class(FOR_GPU)
            if (found := engine.find_device(device)) == "cuda":
                return engine, found
        else:
            log.warning("an NVIDIA GPU was found, but PyTorch is not installed; to use it: %s", INSTALL[FOR_GPU])
    engine = engine_class(next((name for name in ENGINES if find_spec(name)), next(iter(ENGINES))))
    return engine, engine.find_device("cpu")
