"""The cost model: what graphs and whole generations cost, as expressions in their sizes."""
