"""The FX passes: one idea a file, the order written once in `pipeline.py`."""
