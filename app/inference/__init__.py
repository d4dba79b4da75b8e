"""From slices to labels.

plan.py        which slices go through the network, and with which neighbours
grid.py        a scan's pixels -> the network's grid, and back
preprocess.py  Hounsfield units -> network input; the body's box
predictor.py   the network on its device: precision, batches that fit
labelling.py   the streaming loop: slices -> inputs -> logits -> labels
components.py  the largest connected components of each organ
"""
