"""What the trainings of several systems share beside the loop: checks of their settings, schedule, sizes."""

import math
from collections.abc import Callable

from data import n_hidden_frames

SMALL = 10_000  # training videos; below, published settings are too large for a set


def mask_problems(n_frames: int, name: str, mask_ratio: float) -> list[str]:
    """What is wrong with a mask ratio for videos of so many frames."""
    hidden = n_hidden_frames(n_frames, mask_ratio)
    if 0 < hidden < n_frames:
        return []
    least = "at least one must be hidden and one visible"
    return [f"'{name}' = {mask_ratio} hides {hidden} of {n_frames} frames: {least}"]


def contrastive_problems(batch_size: int, name: str, weight: float) -> list[str]:
    """What is wrong with a batch for a contrastive loss of this weight."""
    if batch_size > 1 or not weight:
        return []
    reason = "a single video has no negatives for the contrastive loss"
    return [f"'batch_size' must be 2 or more unless '{name}' is 0, found {batch_size}: {reason}"]


def contrastive_remark(n_videos: int, batch_size: int, weight: float) -> str:
    """What to tell of a contrastive loss of this weight on so many training videos; empty: nothing."""
    if not weight or n_videos % batch_size != 1:
        return ""
    return "the last batch of a pass holds one video: its contrastive loss is 0, it has no negatives"


def step_decay(lr: float, factor: float, n_epochs: int, least: float) -> Callable[[int], float]:
    """``max(lr * factor^(epoch // n_epochs), least)``, the epoch counted from 0; never above ``lr``."""
    least = min(least, lr)  # Differs: a smaller lr than the published floor stays as it is
    return lambda epoch: max(lr * factor ** (epoch // n_epochs), least)


def n_centers(n_videos: int) -> int:
    """Centers of a k-means of so many videos: 4 sqrt(N), at most 800 and N (published: 800 of 45,585)."""
    return min(800, round(4 * math.sqrt(n_videos)), n_videos)
