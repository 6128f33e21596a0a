"""A finished run as one HTML file, and its figures for notebooks."""
