"""What every stage shares: settings, systems, the loop, feeding, checkpoints, logs, devices, the test."""

import os
import sys

# Threads that wait by spinning cost up to twenty times where another process holds a core. Set before torch
# is loaded, which reads it once.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def listen() -> None:
    """Let Ctrl-C end in one line already before ``launch`` listens, while torch is being loaded."""

    def say_stopped(kind: type, value: BaseException, trace: object) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("stopped; nothing was begun", file=sys.stderr)
        else:
            sys.__excepthook__(kind, value, trace)

    sys.excepthook = say_stopped
