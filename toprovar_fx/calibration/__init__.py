"""Decisions that are taken once per model instead of once per image: measured, written down, used, refused.

`Profile` is the file, `Calibration` and `calibrate` make one from dense generations,
the option `profile` uses it.
"""
