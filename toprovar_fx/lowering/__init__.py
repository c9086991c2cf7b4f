"""Turns block graphs into callables: as traced, or through Inductor with symbolic sizes."""
