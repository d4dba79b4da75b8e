"""A synthetic abdominal CT for the demo, training, benchmarks and tests: `ct` as NIfTI, `dicom` as a DICOM series.

python -m phantom IMAGE.nii.gz [LABEL.nii.gz]
"""

from phantom.ct import make_phantom, write_phantom

__all__ = ["make_phantom", "write_phantom"]
