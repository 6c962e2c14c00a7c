"""What every stage shares: settings, the loop, feeding, checkpoints, the run log, devices, the test."""

import os

# Threads that wait by spinning cost up to twenty times where another process holds a core. Set before torch
# is loaded, which reads it once.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
