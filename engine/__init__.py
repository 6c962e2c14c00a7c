"""What every stage shares: settings, systems, the loop, feeding, checkpoints, logs, devices, the test."""

import os
import sys
from importlib.util import find_spec


def what_is_missing() -> str:
    """What this machine lacks for any of it to run; empty: nothing."""
    if sys.version_info < (3, 11):  # noqa: UP036 - where ``requires-python`` is not asked
        return f"this needs Python 3.11 or newer, found {sys.version.split()[0]}"
    if os.name == "nt":
        return "this needs Linux or macOS; on Windows, its Subsystem for Linux (WSL)"
    missing = [name for name in ("torch", "numpy", "h5py", "scipy", "tqdm") if find_spec(name) is None]
    return f"{', '.join(missing)} not installed: pip install -r requirements.txt" if missing else ""


# Seen here, before anything else is loaded: an older Python can read this file, tools/__init__.py and run.py.
reason = what_is_missing()
if reason:
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)

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
