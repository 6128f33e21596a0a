"""Measuring: what a row costs here, by whom, and how sure that is."""
