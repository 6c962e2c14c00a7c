"""Around the systems: baselines, codes out (encode, search), a door for Python (codes), a report."""

import engine  # noqa: F401 - first of all, before torch is loaded: it says how torch's threads wait
