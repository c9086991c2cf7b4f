"""Checkpoints of the official models on disk: files, headers, layouts of folders, memory, conversion."""
