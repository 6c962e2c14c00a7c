"""What every stage shares: settings, systems, the loop, feeding, checkpoints, logs, devices, the test."""

import os
import sys

# Threads that wait by spinning cost up to twenty times where another process holds a core. Set before torch
# is loaded, which reads it once.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def say_stopped(kind: type, value: BaseException, trace: object) -> None:
    """Ctrl-C before ``launch`` listens, while torch is being loaded, ends in one line too."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped; nothing was begun", file=sys.stderr)
    else:
        sys.__excepthook__(kind, value, trace)


sys.excepthook = say_stopped
