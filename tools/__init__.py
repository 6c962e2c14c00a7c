"""Around the systems: a door for Python (codes), a report on a dataset (inspect)."""
