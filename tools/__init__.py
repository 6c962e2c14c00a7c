"""Around the systems: a door for Python (codes), a report on a dataset (inspect)."""

import engine  # noqa: F401 - first of all, before torch is loaded: it says how torch's threads wait
