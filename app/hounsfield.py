"""Landmarks on the Hounsfield scale, each once."""

AIR = -1024  # stands for NaN and for padding; air itself is -1000
PADDING = -1500  # values below are padding: -2000, -2048, -3024
BODY = -300  # values below are air and lung, values above are the body's
FAT = (-200, -10)
SOFT_TISSUE = (0, 170)  # muscle and organs, with contrast medium or without
WALL = -30.0  # between fat (-100) and muscle (50): the muscles of the abdominal wall enclose the organs
BONE = 200  # dense bone, such as vertebral arches; trabecular bone is 50 to 200
BRIGHT = 100  # bone, and organs with contrast medium
DENSE = 500  # cortical bone and metal, little of any body
WINDOW = (-125.0, 275.0)  # soft tissue with contrast medium; what the bundled models see
