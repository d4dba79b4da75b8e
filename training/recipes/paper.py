"""The paper's recipe for its model: width 48, the slice three times, its own pixels, 256 x 256 crops.

Source: "Efficient Multi-Organ Segmentation Using HRNet And OCRNet" (FLARE2021, team UIT-VNU). Its text gives a learning
rate of 1e-3, its table 1e-2: the text's is taken. It leaves open which intensities become 0 and 255: the window of the
other recipe is taken. Hue and saturation are drawn, though they cannot colour a grey slice. It says
"early stopping" and not how: three validations without a better DSC are taken.
"""

from training.recipes import PAPER_MODEL, Crops, Loss, Optimiser, Recipe

RECIPE = Recipe(
    model=PAPER_MODEL,
    crops=Crops(size=(256, 256), augmentation="paper", batch=8, organ_share=0.0),
    optimiser=Optimiser(
        epochs=5,
        patience=3,
        schedule="poly",
        warmup_steps=1,
        learning_rate=1e-3,
        weight_decay=0.0,
        ema_decay=0.0,
    ),
    loss=Loss(dice_weight=0.0),
)
