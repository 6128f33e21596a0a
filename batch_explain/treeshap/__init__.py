"""Exact path-dependent TreeSHAP of tree ensembles, by pattern tables."""
