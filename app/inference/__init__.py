"""From slices to labels, whatever computes: integers, NumPy, and calls to an engine's session.

plan.py         which slices go through the network, and with which neighbours
grid.py         the grid on which the network sees a scan's slices
slabs.py        thin slices averaged to the thickness of the training data's, noisy ones smoothed
noise.py        how noisy a slice is
body.py         the body's box, outside which the network need not look
labelling.py    the streaming loop: slices -> inputs -> logits -> labels
components.py   the largest connected components of each organ
confidence.py   how sure the network is of each organ
intensities.py  whether a scan's values are Hounsfield units
gathering.py    what outputs need of a scan besides its mask
"""
