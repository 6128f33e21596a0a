"""Everything that touches files: filesystems, atomic writes, the dataset read, the tables written."""
