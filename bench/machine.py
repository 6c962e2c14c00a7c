"""What every bench shares: the machine in words, interleaved timing, peak memory of a process of its own."""

import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from formats.processor import BFLOAT16, vendor


def describe() -> str:
    """One paragraph: processor and what it can do, cores and threads, memory, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    can = [name for name in ("avx2", "avx512_f", *BFLOAT16) if torch.cpu.get_capabilities().get(name)]
    cpu += f" ({', '.join([vendor(), *can])})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f" {torch.cuda.get_device_name()}," if torch.cuda.is_available() else ""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{cpu},{gpu} {threads}, {memory:.0f} GiB memory; {platform.system()}, {versions}."


def interleaved(
    functions: dict[str, Callable[[], Any]], rounds: int = 5, warm: bool = True
) -> dict[str, float]:
    """Median seconds of every function, called in turn so that what else the machine does meets all alike.

    Args:
        functions: what to time, by name.
        rounds: how often each is timed.
        warm: call each once before.

    Returns:
        Seconds by name.
    """
    if warm:
        for function in functions.values():
            function()
    seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measured(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Run a function in a fresh process.

    Args:
        function: of a module's top level; its result must pickle.
        args: its arguments, which must pickle.

    Returns:
        Its result, and the process's peak memory in GB beyond what it held once everything was imported.

    Raises:
        RuntimeError: the process failed or was killed, as for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, function, args))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__}{args} gave no result: out of memory?") from None
    finally:
        process.join()


def peak_memory(function: Callable[..., Any], *args: Any) -> float:
    """Peak memory of `function(*args)` in GB, measured as in `measured`."""
    return measured(function, *args)[1]


def _report(sender: Any, function: Callable[..., Any], args: tuple) -> None:
    start = peak()
    result = function(*args)
    sender.send((result, peak() - start))


def peak() -> float:
    """Peak resident memory of this process in GB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the parent held at the fork
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
