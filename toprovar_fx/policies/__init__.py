"""Policies: the methods that decide what of a model is not computed, a small file each, behind one seam."""
