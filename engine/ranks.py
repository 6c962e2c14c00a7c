"""More than one process, as ``torchrun`` starts them: who this one is, and all that it exchanges.

A process is rank r of n. All ranks run the same program over the same batches; each computes its part of a
batch, gradients are summed over the ranks, and rank 0 alone decides and writes. A single process is rank 0 of
1: then nothing is opened, and every function gives back what it was given.
"""

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from formats.files import BadInput

TIMEOUT = timedelta(minutes=30)  # of a wait for other ranks: the longest that rank 0 works alone is shorter
BUCKET_BYTES = 8 << 20  # gradients that are summed at a time, while the backward pass goes on

_says = True  # whether this process says why the run ends: it is the first to end
_alone = False  # whether rank 0 is at work while the others wait for it


class RankLost(Exception):
    """Another rank has ended or does not answer; the message says which one noticed."""


def rank() -> int:
    """Which rank this process is, from 0."""
    return int(os.environ["RANK"]) if n_ranks() > 1 else 0


def n_ranks() -> int:
    """How many there are; 1 where a scheduler or a shell has set but one of the two variables."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def local_rank() -> int:
    """Which of the ranks on this machine it is: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if n_ranks() > 1 else 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meet the other ranks, and part from them; meanwhile rank 0 alone speaks on the terminal.

    Raises:
        BadInput: nothing says where to meet: the processes are not torchrun's.
        RankLost: the others do not come.
    """
    global _says
    if n_ranks() == 1 or dist.is_initialized():
        yield
        return
    if missing := {"MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise BadInput(
            f"RANK and WORLD_SIZE are set, {min(missing)} is not: start several processes by torchrun, "
            "or unset them for a single one"
        )
    if (cuda := torch.cuda.is_available()) and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    with _exchange(), _mortal():
        dist.init_process_group(backend, store=_store(), rank=rank(), world_size=n_ranks(), timeout=TIMEOUT)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence:
            if rank():
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the store went down with the rank that kept it
            _says = _store().add("ended", 1) == 1  # before the others notice that this one has gone
        raise
    finally:
        dist.destroy_process_group()
        _store.cache_clear()


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """Let SIGINT and SIGTERM end this process at once: nobody looks at STOP while it waits for others."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@functools.cache
def _store() -> dist.Store:
    """What the launcher keeps for all ranks, and keeps when one of them has died."""
    return next(dist.rendezvous("env://", timeout=TIMEOUT))[0]


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    """Make one error of ours out of what torch.distributed raises."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2].partition(". ")[0]
        raise RankLost(f"rank {rank()} of {n_ranks()} has lost another one ({reason})") from None


def say_once(text: str) -> None:
    """Say why the run ends, unless another rank has said so: what follows from its end is no news."""
    if _says:
        print(text, file=sys.stderr)


def on_first(work: Callable) -> Callable:
    """Let rank 0 alone do some work; every rank gets what it returns (pickled), or its exception."""

    @functools.wraps(work)
    def shared(*arguments: Any, **named: Any) -> Any:
        global _alone
        if n_ranks() == 1 or _alone:
            return work(*arguments, **named)
        outcome: list = [None, None]
        if rank() == 0:
            _alone = True
            try:
                outcome = [work(*arguments, **named), None]
            except (Exception, SystemExit) as error:
                outcome = [None, error]
            finally:
                _alone = False
        with _exchange():
            dist.broadcast_object_list(outcome, device=torch.device("cpu"))
        found, error = outcome
        if error is not None:
            raise error
        return found

    return shared


def wait() -> None:
    """Wait until all ranks have come here."""
    agreed(0)


def agreed(*wishes: int) -> list[int]:
    """The largest of all ranks' wishes, one by one."""
    if n_ranks() == 1:
        return list(wishes)
    largest = torch.tensor(wishes)
    with _exchange():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def total(tensor: Tensor) -> Tensor:
    """The sum over all ranks, the same bits on each."""
    if n_ranks() == 1:
        return tensor
    tensor = tensor.clone()
    with _exchange():
        dist.all_reduce(tensor)
    return tensor


def share(n_rows: int, of: int | None = None) -> slice:
    """The rows of ``n_rows`` that are this rank's, or rank ``of``'s: contiguous, even to within one."""
    number = rank() if of is None else of
    return slice(n_rows * number // n_ranks(), n_rows * (number + 1) // n_ranks())


def rows_of_each(own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The rows of every rank, without gradient; the same on all.

    Args:
        own: rows, (own rows, ...).
        sizes: how many rows of each rank count, in order; of ranks beyond its end none does.
    """
    if n_ranks() == 1:
        return [own]
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in range(n_ranks())]
    with _exchange():
        dist.all_gather(found, padded)
    return [rows[:size] for rows, size in zip(found, sizes, strict=False)]


def gather(own: Tensor, n_rows: int) -> Tensor:
    """The rows of all ranks in order, without gradient: (own rows, ...) -> (n_rows, ...).

    Args:
        own: the rows ``share(n_rows)``.
        n_rows: of all ranks.
    """
    shares = [share(n_rows, number) for number in range(n_ranks())]
    return torch.cat(rows_of_each(own, [each.stop - each.start for each in shares]))


def collect(own: Any) -> list:
    """A small object of every rank, in order (pickled)."""
    if n_ranks() == 1:
        return [own]
    found = [None] * n_ranks()
    with _exchange():
        dist.all_gather_object(found, own)
    return found


@dataclass(frozen=True)
class Part:
    """What this rank computes of a batch; a single process: all of it.

    A batch may hold fewer videos than there are ranks. A rank without one takes the batch's first and counts
    nothing of it, so that all ranks do the same steps.
    """

    n_videos: int  # of the whole batch
    rows: slice  # those that this rank reads, at least one
    n_own: int  # how many of them it counts

    @classmethod
    def of(cls, n_videos: int) -> "Part":
        """This rank's part of a batch of so many videos."""
        own = share(n_videos)
        n_own = own.stop - own.start
        return cls(n_videos, own if n_own else slice(0, 1), n_own)

    @property
    def weight(self) -> float:
        """What a mean over the part's videos counts in that over the batch: summed over the ranks, 1."""
        return self.n_own / self.n_videos

    def gather(self, own: Tensor) -> Tensor:
        """The rows of the whole batch from each rank's own, for a loss that needs them all.

        Every rank then has that loss, whole, and counts ``weight`` of it like of any other. So the gradient
        that comes back is ``weight`` times that of the rows; what goes on to this rank's is divided by it.

        Args:
            own: one row for each of the part's videos, (rows, ...).

        Returns:
            (n_videos, ...), with a gradient to the own ones.
        """
        if n_ranks() == 1:
            return own
        own = own[: self.n_own]
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient / self.weight if self.n_own else gradient)
        found = gather(own.detach(), self.n_videos)
        start = self.rows.start
        return torch.cat([found[:start], own, found[start + self.n_own :]])


class GradientSum:
    """Sums gradients over all ranks while the backward pass is still under way.

    Parameters are put into buckets, last first, which is about the order in which the backward pass reaches
    them; the sum of a bucket begins when it is full and those before it have begun: the same order on every
    rank. A parameter that got no gradient keeps none, and Adam passes it over, as in a single process.

    Args:
        parameters: of the network; the same on all ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.buckets: list[list[nn.Parameter]] = []
        if n_ranks() == 1:
            return
        size = BUCKET_BYTES
        for parameter in reversed(list(parameters)):
            if size >= BUCKET_BYTES:
                self.buckets.append([])
                size = 0
            self.buckets[-1].append(parameter)
            size += parameter.nbytes
            parameter.register_post_accumulate_grad_hook(self.arrived)
        self.place = {each: place for place, bucket in enumerate(self.buckets) for each in bucket}
        self.begin()

    def begin(self) -> None:
        """Be ready for a backward pass."""
        self.missing = [len(bucket) for bucket in self.buckets]
        self.under_way: list[tuple[Tensor, dist.Work]] = []  # of the buckets in order

    def arrived(self, parameter: nn.Parameter) -> None:
        """Note a gradient, and begin the sums that are due."""
        self.missing[self.place[parameter]] -= 1
        while len(self.under_way) < len(self.buckets) and not self.missing[len(self.under_way)]:
            self.send()

    def send(self) -> None:
        """Begin the sum of the next bucket."""
        bucket = self.buckets[len(self.under_way)]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _exchange():
            self.under_way.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """Wait until every gradient is its sum over the ranks."""
        if not self.buckets:
            return
        while len(self.under_way) < len(self.buckets):
            self.send()
        for bucket, (flat, work) in zip(self.buckets, self.under_way, strict=True):
            with _exchange():
                work.wait()
            for parameter, gradient in zip(
                bucket, flat.split([each.numel() for each in bucket]), strict=True
            ):
                if parameter.grad is not None:
                    parameter.grad = gradient.view_as(parameter)
        self.begin()
