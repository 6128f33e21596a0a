"""Explainers: one interface over scoring explainers, LightGBM models and anything else that explains rows."""
