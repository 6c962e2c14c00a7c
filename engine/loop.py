"""The one loop: a stage hands it a network and a list of passes; it trains, logs, saves, stops and resumes.

Nothing random is kept between steps: the order, the masks and the dropout of a place in a run are functions
of (seed, stage, epoch, pass, batch). So a run goes on after an interruption as if nothing had happened.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data import FeatureStore, generator
from engine import ranks
from engine.checkpoint import load_moments
from engine.device import STOP, Interrupted
from engine.evaluation import open_splits, watch
from engine.feed import Fetch, know_padding, read_ahead, to_device
from engine.ranks import GradientSum, Part
from engine.runs import Run
from engine.settings import differences
from formats.files import BadInput, progress
from formats.weights import read_checkpoint, save_checkpoint


@dataclass(frozen=True)
class Pass:
    """One pass over the training set that trains.

    Args:
        name: of the pass, in the log.
        draw: from the random numbers of (epoch, pass), how to fetch its batches.
        loss: from the part of a batch that this process computes, and the videos of it, its weighted loss
            terms by name, means over the part or, of rows gathered by ``part.gather``, over the batch; their
            sum is minimised.
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
        inputs: what the stage read, by name: a resumed run must read the same.
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer
    store: FeatureStore
    passes: Sequence[Pass | Step]
    n_epochs: int
    lr: Callable[[int], float]
    inputs: Mapping[str, Any] = field(default_factory=dict)


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
        self.log, self.stage, self.settings = run, stage, run.settings
        self.device = next(stage.net.parameters()).device
        # `torch.manual_seed` notes the seed for absent devices too, with the whole stack at every call.
        self.set_seed = (torch.default_generator if self.device.type == "cpu" else torch).manual_seed
        self.n_videos = len(stage.store)
        self.position = (0, 0, 0)  # epoch, pass, batch: where to go on
        self.sums: dict[str, float] = {}  # loss terms of the pass under way, summed over videos
        self.losses: dict[str, dict[str, float]] = {}  # of what this epoch has done, by pass
        self.seconds = 0.0  # of this epoch, up to the last checkpoint
        self.pending: list[tuple[int, Part, dict[str, Tensor]]] = []  # batch and its terms, on the device
        self.gradients = GradientSum(stage.net.parameters())
        self.resumed_at = self.saved = time.monotonic()
        self.inputs = {"features": stage.store.facts, "recipe": stage.store.recipe, **stage.inputs}
        self.splits = open_splits(self.settings) if self.settings.eval_every else None
        if ranks.on_first(run.part.exists)():
            self.resume()
        else:
            self.save()  # a full disk shows before the first epoch
        self.bar = progress([], run.stage, total=stage.n_epochs * self.batches_per_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Of all passes together."""
        n_passes = sum(isinstance(item, Pass) for item in self.stage.passes)
        return n_passes * math.ceil(self.n_videos / self.settings.batch_size)

    def run(self) -> None:
        """All epochs that are still to come."""
        self.bar.update(self.position[0] * self.batches_per_epoch)
        with self.bar:
            for epoch in range(self.position[0], self.stage.n_epochs):
                self.run_epoch(epoch)
        if ranks.rank() == 0:
            save_checkpoint(self.log.weights, self.content())
            self.log.part.unlink(missing_ok=True)

    def run_epoch(self, epoch: int) -> None:
        """What is still to come of one epoch, its line in the log, its checkpoint."""
        self.resumed_at = time.monotonic() - self.seconds
        for group in self.stage.optimizer.param_groups:
            group["lr"] = self.stage.lr(epoch)
        for number in range(self.position[1], len(self.stage.passes)):
            item = self.stage.passes[number]
            self.bar.set_description(f"{self.log.stage} epoch {epoch + 1}/{self.stage.n_epochs}, {item.name}")
            rng = generator(self.settings.seed, self.log.stage, epoch, number)
            if isinstance(item, Step):
                self.losses[item.name] = item.run(epoch, rng)
            else:
                self.run_pass(item, rng)
            self.position = (epoch, number + 1, 0)
        looks = self.splits is not None and (
            (epoch + 1) % self.settings.eval_every == 0 or epoch + 1 == self.stage.n_epochs
        )
        if looks:
            self.save()  # a signal during the look loses nothing
        self.log_epoch(epoch)
        if looks:
            self.evaluate(epoch)
        if epoch == 0:
            store = self.stage.store
            know_padding(store)
            if store.padding:
                self.log.say(store.padding)
        self.losses, self.resumed_at, self.position = {}, time.monotonic(), (epoch + 1, 0, 0)
        self.save_if(due=True)

    def run_pass(self, item: Pass, rng: np.random.Generator) -> None:
        """The batches of a pass that are still to come."""
        epoch, number, first = self.position
        size = self.settings.batch_size
        fetch = item.draw(rng)
        starts = range(first * size, self.n_videos, size)
        parts = [Part.of(min(size, self.n_videos - start)) for start in starts]
        places = [slice(start + part.rows.start, start + part.rows.stop)
                  for start, part in zip(starts, parts, strict=True)]  # fmt: skip
        workers = 0 if self.stage.store.is_at_hand(self.device) else self.settings.num_workers
        contents = read_ahead(fetch, places, workers, self.device)
        for batch, (part, content) in enumerate(zip(parts, contents, strict=True), first):
            seed = generator(self.settings.seed, self.log.stage, epoch, number, batch)  # of dropout
            self.set_seed(int(seed.integers(2**62)))
            self.stage.optimizer.zero_grad()
            terms = item.loss(part, *(to_device(tensor, self.device) for tensor in content))
            (part.weight * sum(terms.values())).backward()
            self.gradients.finish()
            self.stage.optimizer.step()
            self.pending.append((batch, part, {name: term.detach() for name, term in terms.items()}))
            at_once = self.device.type == "cpu" and ranks.n_ranks() == 1
            if at_once or len(self.pending) == 50:  # reading a term makes a GPU, or all ranks, wait
                self.read_losses()
            self.bar.update()
            self.position = (epoch, number, batch + 1)
            due = ranks.rank() == 0 and time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
            self.save_if(due)
        self.read_losses()
        self.losses[item.name] = {name: value / self.n_videos for name, value in self.sums.items()}
        self.sums = {}

    def save_if(self, due: bool) -> None:
        """Save if that is due, on any rank, or a signal asks to stop; then, for a signal, stop.

        Raises:
            Interrupted: a signal came, to this rank or another.
        """
        signal, due = ranks.agreed(STOP.number, due)
        if signal or due:
            self.save()
        if signal:
            STOP.number = signal
            raise Interrupted

    def read_losses(self) -> None:
        """Add the pending loss terms to the sums.

        Raises:
            BadInput: one is not finite; no checkpoint has been written since its batch.
        """
        if not self.pending:
            return
        epoch, number, _ = self.position
        names = list(self.pending[0][2])
        values = torch.stack(
            [part.weight * torch.stack(list(terms.values())) for _, part, terms in self.pending]
        )
        values = ranks.total(values).tolist()
        for (batch, part, _), row in zip(self.pending, values, strict=True):
            if not all(map(math.isfinite, row)):
                found = ", ".join(f"{name} = {value}" for name, value in zip(names, row, strict=True))
                place = f"epoch {epoch + 1}, pass {self.stage.passes[number].name}, batch {batch + 1}"
                raise BadInput(
                    f"run {self.log.number}, {self.log.stage}: the loss is not finite in {place}: {found}; "
                    "the last good checkpoint is kept, try a smaller lr"
                )
            for name, value in zip(names, row, strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value * part.n_videos
        self.pending = []

    def log_epoch(self, epoch: int) -> None:
        """Write what an epoch did into both logs."""
        seconds = time.monotonic() - self.resumed_at
        rate = sum(isinstance(item, Pass) for item in self.stage.passes) * self.n_videos / seconds
        self.log.event(
            "epoch",
            stage=self.log.stage,
            epoch=epoch + 1,
            seconds=round(seconds, 3),
            lr=self.stage.lr(epoch),
            videos_per_second=round(rate, 1),
            losses=self.losses,
        )
        losses = [
            ("" if list(terms) == [name] else f"{name}: ")
            + ", ".join(f"{term} {value:.5g}" for term, value in terms.items())
            for name, terms in self.losses.items()
        ]
        place = f"{self.log.stage} epoch {epoch + 1}/{self.stage.n_epochs}"
        self.log.say("  ".join([place, f"{seconds:.1f} s", f"{rate:.0f} videos/s", *losses]))

    def evaluate(self, epoch: int) -> None:
        """Write mAP@K of the test split into both logs; no weight, and no random number, depends on it."""
        found = watch(self.stage.net, self.splits, self.settings)
        self.log.event("evaluation", stage=self.log.stage, epoch=epoch + 1, mAP=found)
        values = " ".join(f"@{k} {value:.4f}" for k, value in found.items())
        self.log.say(f"mAP {values} on the test split, for the log alone: nothing is chosen by it")

    def content(self) -> dict[str, Any]:
        """The checkpoint of this moment."""
        return {
            "stage": self.log.stage,
            "sizes": self.stage.net.sizes,
            "settings": self.settings.as_dict(),
            "dataset": self.settings.config.facts,
            "launch": self.log.launch.id,
            "inputs": self.inputs,
            "model": self.stage.net.state_dict(),
            "optimizer": self.stage.optimizer.state_dict(),
            "position": self.position,
            "sums": self.sums,
            "losses": self.losses,
            "seconds": self.seconds,
            "logs": self.log.log_sizes(),
        }

    def save(self) -> None:
        """Renew ``weight/<n>_<bits>.part.pth``.

        Raises:
            BadInput: it cannot be written, or a weight is not finite; the previous one is kept.
        """
        self.read_losses()
        if not all(bool(weight.isfinite().all()) for weight in self.stage.net.parameters()):
            raise BadInput(
                f"run {self.log.number}, {self.log.stage}: a weight is not finite in epoch "
                f"{self.position[0] + 1}; the last good checkpoint is kept, try a smaller lr"
            )
        self.seconds = time.monotonic() - self.resumed_at
        if ranks.rank() == 0:
            save_checkpoint(self.log.part, self.content())
        self.saved = time.monotonic()

    def resume(self) -> None:
        """Go back to what the part checkpoint holds, the logs included.

        Raises:
            BadInput: it is not one of this run, or the run's settings or inputs have changed.
        """
        path = self.log.part
        content = read_checkpoint(path)
        since_then = {"dataset", "launch"}  # keys that version 1.0.0 had not
        missing = self.content().keys() - content.keys() - since_then
        if missing or content["stage"] != self.log.stage:
            raise BadInput(f"{path}: not a checkpoint of {self.log.stage} under way")
        if not self.log.owns(content):
            raise BadInput(f"{path}: a checkpoint of another run with the same number")
        try:
            changed = self.settings.changes_since(content["settings"])
            # Older checkpoints name the files instead of a digest: compare what both know.
            then, now = content["inputs"], self.inputs["features"]
            known = {key: then["features"].get(key, value) for key, value in now.items()}
            changed += differences(then | {"features": known}, self.inputs)
            if changed:
                raise BadInput(f"{path}: a checkpoint of another run: {'; '.join(changed)}")
            self.stage.net.load_state_dict(content["model"])
            load_moments(self.stage.optimizer, content["optimizer"], path)
            self.position, self.sums, self.losses = content["position"], content["sums"], content["losses"]
            self.seconds = content["seconds"]
            epoch, number, batch = self.position
            assert 0 <= epoch <= self.stage.n_epochs
            assert 0 <= number <= len(self.stage.passes)
            assert 0 <= batch <= self.batches_per_epoch
            self.log.rewind(content["logs"])
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else "position"
            raise BadInput(f"{path}: not a checkpoint of this run: {reason}") from None
        ranks.wait()  # until all have read it: rank 0 may soon replace it
        self.resumed_at = time.monotonic() - self.seconds
        self.log.say(f"resumed run {self.log.number} in epoch {epoch + 1} after {batch} batches")
