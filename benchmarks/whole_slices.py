"""The program without the body's box: python -m benchmarks.whole_slices SCAN OUT [--model NAME | --weights FILE] ...

Every batch then has one shape. Writes the mask and a line of run_log.jsonl, as the program does.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app import run_log
from app.engines import Box
from app.run import environment
from app.segmenter import Segmenter
from app.volumes import open_volume


def whole_slice(inputs: NDArray[np.float32], *_: Sequence[float]) -> Box:
    """Takes the place of `body_box`."""
    height, width = inputs.shape[1:]
    return slice(0, height), slice(0, width)


def main() -> None:
    """Segment one scan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model")
    parser.add_argument("--weights", type=pathlib.Path)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    segmenter = Segmenter.load(args.weights or args.model, args.device)
    begin, volume = time.perf_counter(), open_volume(args.scan)
    segmentation = segmenter.segment_volume(volume, volume.slices(), case=args.scan.name, find_box=whole_slice)
    segmentation.save(args.out / "mask.nii.gz")
    record = run_log.CaseRecord.of(segmentation, environment(segmenter, []))
    record.seconds["total"] = round(time.perf_counter() - begin, 3)
    run_log.append(args.out, record)


if __name__ == "__main__":
    main()
