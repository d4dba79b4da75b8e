"""Evaluation: masks and references -> the organisers' scores, tables and figures. Not shipped in the image."""
