"""Tests, and the phantom that they and the demo share."""
