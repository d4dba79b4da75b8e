"""Which of the 15 BTCV scans with expert labels are held out together: five folds of three, fixed for good.

Fold 0 is the quick split, whose scores the model cards quote.
"""

FOLDS = (
    ("btcv_0009", "btcv_0026", "btcv_0039"),
    ("btcv_0005", "btcv_0021", "btcv_0030"),
    ("btcv_0006", "btcv_0023", "btcv_0031"),
    ("btcv_0007", "btcv_0024", "btcv_0033"),
    ("btcv_0027", "btcv_0034", "btcv_0040"),
)
