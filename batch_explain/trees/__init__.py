"""Tree ensembles: one frozen format, and the readers of the formats that others write."""
