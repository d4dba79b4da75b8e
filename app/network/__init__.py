"""The network in torch: HRNetV2 backbone, FCN head and OCR head, as pure modules that know no files.

hrnet.py      image -> four feature maps of 1/4 .. 1/32 resolution, concatenated at 1/4
ocr.py        features -> coarse logits (FCN head) -> object-contextual logits (OCR head)
hrnet_ocr.py  the whole
loading.py    a checkpoint's tensors -> a network, and the folding of batch norm for inference
"""

from .hrnet_ocr import HrnetOcr, HrnetOcrLogits
from .loading import build, fold_batch_norm, load, tensors_of

__all__ = ["HrnetOcr", "HrnetOcrLogits", "build", "fold_batch_norm", "load", "tensors_of"]
