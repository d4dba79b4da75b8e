"""The `fast` model: width 18, a slim OCR head, 1.5 mm pixels, the slice and its neighbours 3 mm away."""

from training.recipes import Recipe

RECIPE = Recipe(width=18, ocr_channels=128, key_channels=64, spacing_mm=1.5, neighbour_mm=3.0)
