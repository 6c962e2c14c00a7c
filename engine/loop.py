"""The one loop: a stage hands it a network and a list of passes; it trains, logs, saves, stops and resumes.

Nothing random is kept between steps: the order, the masks and the dropout of a place in a run are functions of
(seed, stage, epoch, pass, batch). So a run goes on after an interruption as if nothing had happened.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import BadInput, FeatureStore, generator, progress, read_checkpoint
from engine.checkpoint import load_moments, save_checkpoint
from engine.device import STOP, check_stop
from engine.runs import Run
from engine.settings import Settings, differences

Batch = tuple[Tensor, ...]  # the loop moves what is floating-point to the device; masks and indices stay
Fetch = Callable[[slice], Batch]  # the batch that stands at these places in the order of a pass


@dataclass(frozen=True)
class Pass:
    """One pass over the training set that trains.

    Args:
        name: of the pass, in the log.
        draw: from the random numbers of (epoch, pass), how to fetch its batches.
        loss: from a batch, its weighted loss terms by name; their sum is minimised.
    """

    name: str
    draw: Callable[[np.random.Generator], Fetch]
    loss: Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """What an epoch does between passes without a gradient, e.g. clustering; its values go to the log."""

    name: str
    run: Callable[[int, np.random.Generator], dict[str, float]]  # (epoch, random numbers)


@dataclass(frozen=True)
class Stage:
    """What the loop needs to know of a stage.

    Args:
        net: the network, on its device.
        optimizer: over its parameters.
        store: the training videos.
        passes: of every epoch, in order.
        n_epochs: how many.
        lr: the learning rate of an epoch, counted from 0.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    store: FeatureStore
    passes: Sequence[Pass | Step]
    n_epochs: int
    lr: Callable[[int], float]


def run_stage(run: Run, stage: Stage) -> None:
    """Train to the end of the stage and leave its finished checkpoint.

    Raises:
        BadInput: a file cannot be read or written, or a loss is not finite.
        Interrupted: a signal came; the run can be resumed.
    """
    Loop(run, stage).run()


class Loop:
    """The state of a stage under way."""

    def __init__(self, run: Run, stage: Stage):
        self.log, self.stage = run, stage
        self.device = next(stage.net.parameters()).device
        self.position = (0, 0, 0)  # epoch, pass, batch: where to go on
        self.sums: dict[str, float] = {}  # loss terms of the pass under way, summed over videos
        self.losses: dict[str, dict[str, float]] = {}  # of the passes done in this epoch
        self.pending: list[
            tuple[int, int, dict[str, Tensor]]
        ] = []  # (batch, videos, terms), still on the device
        self.seconds = 0.0  # of this epoch, before the last interruption
        if run.part.exists():
            self.resume()

    def run(self) -> None:
        """All epochs that are still to come."""
        stage = self.stage
        first_epoch = self.position[0]
        n_batches = math.ceil(len(stage.store) / self.log.settings.batch_size)
        per_epoch = n_batches * sum(isinstance(item, Pass) for item in stage.passes)
        saved = time.monotonic()
        with progress(
            [], self.log.stage, total=stage.n_epochs * per_epoch, initial=first_epoch * per_epoch
        ) as bar:
            for epoch in range(first_epoch, stage.n_epochs):
                started = time.monotonic() - self.seconds
                for group in stage.optimizer.param_groups:
                    group["lr"] = stage.lr(epoch)
                for number in range(self.position[1], len(stage.passes)):
                    item = stage.passes[number]
                    bar.set_description(f"{self.log.stage} epoch {epoch + 1}/{stage.n_epochs}, {item.name}")
                    rng = generator(self.log.settings.seed, self.log.stage, epoch, number)
                    if isinstance(item, Step):
                        self.losses[item.name] = item.run(epoch, rng)
                    else:
                        for batch in self.batches(item, rng, epoch, number, bar):
                            self.position = (epoch, number, batch + 1)
                            due = time.monotonic() - saved > 60 * self.log.settings.checkpoint_minutes
                            if due or STOP.number:
                                self.seconds = time.monotonic() - started
                                self.save()
                                saved = time.monotonic()
                            check_stop()
                        self.read_losses(epoch, item.name)
                        self.losses[item.name] = {
                            key: value / len(stage.store) for key, value in self.sums.items()
                        }
                        self.sums = {}
                    self.position = (epoch, number + 1, 0)
                self.end_epoch(epoch, time.monotonic() - started, per_epoch)
                saved = time.monotonic()
                check_stop()
        save_checkpoint(self.log.weights, self.content())
        self.log.part.unlink(missing_ok=True)

    def batches(
        self, item: Pass, rng: np.random.Generator, epoch: int, number: int, bar: tqdm
    ) -> Iterator[int]:
        """Train on the batches of a pass that are still to come; yields the number of each that is done."""
        settings, size = self.log.settings, self.log.settings.batch_size
        fetch = item.draw(rng)
        slices = [slice(start, start + size) for start in range(0, len(self.stage.store), size)]
        first = self.position[2]
        workers = 0 if self.stage.store.is_at_hand(self.device) else settings.num_workers
        for batch, content in enumerate(read_ahead(fetch, slices[first:], workers, self.device), first):
            torch.manual_seed(generator(settings.seed, self.log.stage, epoch, number, batch).integers(2**62))
            self.stage.optimizer.zero_grad()
            terms = item.loss(*(to_device(tensor, self.device) for tensor in content))
            sum(terms.values()).backward()
            self.stage.optimizer.step()
            n_videos = min(size, len(self.stage.store) - batch * size)
            self.pending.append((batch, n_videos, {name: term.detach() for name, term in terms.items()}))
            if self.device.type == "cpu" or len(self.pending) == 50:  # reading a term makes a GPU wait
                self.read_losses(epoch, item.name)
            bar.update()
            yield batch

    def read_losses(self, epoch: int, name: str) -> None:
        """Add the pending loss terms to the sums.

        Raises:
            BadInput: one is not finite. No checkpoint has been written since its batch.
        """
        if not self.pending:
            return
        names = list(self.pending[0][2])
        values = torch.stack([torch.stack([terms[key].double() if self.device.type != "mps" else terms[key]
                                           for key in names]) for _, _, terms in self.pending]).tolist()  # fmt: skip
        for (batch, n_videos, _), row in zip(self.pending, values, strict=True):
            if not all(map(math.isfinite, row)):
                found = ", ".join(f"{key} = {value}" for key, value in zip(names, row, strict=True))
                raise BadInput(
                    f"run {self.log.number}, {self.log.stage}: the loss is not finite in epoch {epoch + 1}, pass "
                    f"{name}, batch {batch + 1}: {found}; the last good checkpoint is kept, try a smaller lr"
                )
            for key, value in zip(names, row, strict=True):
                self.sums[key] = self.sums.get(key, 0.0) + value * n_videos
        self.pending = []

    def end_epoch(self, epoch: int, seconds: float, per_epoch: int) -> None:
        """Log an epoch, and save what it reached."""
        n_videos = per_epoch and sum(isinstance(item, Pass) for item in self.stage.passes) * len(
            self.stage.store
        )
        rate = n_videos / seconds if seconds else 0.0
        lr = self.stage.optimizer.param_groups[0]["lr"]
        self.log.event("epoch", stage=self.log.stage, epoch=epoch + 1, seconds=round(seconds, 3), lr=lr,
                       videos_per_second=round(rate, 1), losses=self.losses)  # fmt: skip
        parts = [f"{name}: " + ", ".join(f"{key} {value:.6g}" for key, value in terms.items())
                 for name, terms in self.losses.items()]  # fmt: skip
        self.log.say(f"{self.log.stage} epoch {epoch + 1}/{self.stage.n_epochs}  {seconds:.1f} s  {rate:.0f} videos/s  "
                     + "  ".join(parts))  # fmt: skip
        self.losses, self.seconds, self.position = {}, 0.0, (epoch + 1, 0, 0)
        self.save()

    def content(self) -> dict[str, Any]:
        """The checkpoint of this moment."""
        return {
            "stage": self.log.stage,
            "dataset": self.log.settings.config.dataset,
            "sizes": self.stage.net.sizes,
            "settings": self.log.settings.as_dict(),
            "model": self.stage.net.state_dict(),
            "optimizer": self.stage.optimizer.state_dict(),
            "position": self.position,
            "sums": self.sums,
            "losses": self.losses,
            "seconds": self.seconds,
            "logs": self.log.log_sizes(),
        }

    def save(self) -> None:
        """Renew ``weight/<n>_<bits>.part.pth``."""
        self.read_losses(
            self.position[0], self.stage.passes[min(self.position[1], len(self.stage.passes) - 1)].name
        )
        save_checkpoint(self.log.part, self.content())

    def resume(self) -> None:
        """Go back to what the part checkpoint holds, the logs included."""
        path = self.log.part
        content = read_checkpoint(path)
        changed = differences(content.get("settings", {}), self.log.settings.as_dict())
        if content.get("stage") != self.log.stage or changed:
            raise BadInput(
                f"{path}: a checkpoint of another run: {'; '.join(changed) or content.get('stage')}"
            )
        self.stage.net.load_state_dict(content["model"])
        load_moments(self.stage.optimizer, content["optimizer"], path)
        self.position, self.sums, self.losses = content["position"], content["sums"], content["losses"]
        self.seconds = content["seconds"]
        self.log.rewind(content["logs"])
        epoch, _, batch = self.position
        self.log.say(f"resumed run {self.log.number} in epoch {epoch + 1} after {batch} batches")


def read_ahead(
    fetch: Fetch, slices: Iterable[slice], n_workers: int, device: torch.device
) -> Iterator[Batch]:
    """Fetch batches in order, the next ones in background threads while this one is computed on.

    Args:
        fetch: reads one batch.
        slices: places of each batch.
        n_workers: threads; 0 fetches in line.
        device: on CUDA batches are pinned, so that copying them can overlap computing.
    """

    def get(places: slice) -> Batch:
        batch = fetch(places)
        if device.type != "cuda":
            return batch
        return tuple(tensor if tensor.is_cuda else tensor.pin_memory() for tensor in batch)

    if n_workers == 0:
        yield from map(get, slices)
        return
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque = deque()
        try:
            for places in slices:
                waiting.append(pool.submit(get, places))
                if len(waiting) > n_workers + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Frames on the device, as float32; masks and indices as they are."""
    return tensor.to(device, non_blocking=True).float() if tensor.is_floating_point() else tensor


def encode(
    store: FeatureStore,
    function: Callable[[Tensor, slice], Tensor],
    device: torch.device,
    settings: Settings,
    description: str,
) -> Tensor:
    """Apply a function to all videos in file order, in large batches, without gradient.

    Args:
        store: the videos.
        function: from frames (B, L, D) on the device and their rows to a tensor whose rows are the videos.
        device: where to compute.
        settings: of the run.
        description: for the progress bar.

    Returns:
        The rows of all videos on the CPU, (N, ...).
    """
    size = max(1, min(settings.batch_size * 2, len(store)))
    slices = [slice(start, min(start + size, len(store))) for start in range(0, len(store), size)]
    workers = 0 if store.is_at_hand(device) else settings.num_workers

    def fetch(rows: slice) -> Batch:
        return (store.read(np.arange(rows.start, rows.stop)),)

    parts = []
    with torch.no_grad():
        batches = progress(read_ahead(fetch, slices, workers, device), description, total=len(slices))
        for rows, (frames,) in zip(slices, batches, strict=True):
            parts.append(function(to_device(frames, device), rows))
            check_stop()
    return torch.cat([part.cpu() for part in parts])
