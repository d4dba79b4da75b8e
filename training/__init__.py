"""Training: a folder of scans and labels -> cache -> augmented batches -> weights for `app`. Not shipped."""
