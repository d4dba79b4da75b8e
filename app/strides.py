"""How the sizes of the network's input and output relate."""

INPUT_STRIDE = 32  # of the coarsest branch: inputs are multiples of it, so that every branch fits the others
LOGITS_STRIDE = 4  # of features and logits: the stem halves the resolution twice
