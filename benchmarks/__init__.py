"""Scripts that make the figures in `docs/results.md`."""
