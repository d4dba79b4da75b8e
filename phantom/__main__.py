"""Write a synthetic CT, and its label.

python -m phantom IMAGE.nii.gz [LABEL.nii.gz] [--shape 512 512 100] [--spacing 0.8 0.8 3] [--axes LPS]
"""

from __future__ import annotations

import argparse
import pathlib

from phantom.ct import write_phantom


def main() -> None:
    """Parse the arguments and write the files."""
    parser = argparse.ArgumentParser(description="Write a synthetic abdominal CT, and its label, as NIfTI.")
    parser.add_argument("image", type=pathlib.Path)
    parser.add_argument("label", type=pathlib.Path, nargs="?")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(512, 512, 100), help="voxels along x, y, z; default: 512 512 100"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, default=(0.8, 0.8, 3.0), help="mm along x, y, z; default: 0.8 0.8 3"
    )
    parser.add_argument("--axes", default="LPS", help="directions in which the stored axes grow; default: LPS")
    parser.add_argument("--seed", type=int, default=0, help="another number, another body; default: 0")
    args = parser.parse_args()
    write_phantom(args.image, args.label, tuple(args.shape), tuple(args.spacing), args.axes, args.seed)


if __name__ == "__main__":
    main()
