"""Mergeable statistics over all rows."""
