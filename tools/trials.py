"""Runs as trials and groups: what may be averaged, for ``tools.compare`` and ``tools.plot``.

A group is of one dataset, protocol, system (of baselines, method), number of bits and precision of the test.
Its runs differ in the seed; where they also differ in another setting of the training, or in what was
trained, they are split and ``Group.settings`` names it, as it does where runs of other bits differ. What all
of these share though it is not the published value stands in ``Group.shared``; what a dataset JSON states
counts as what an option states. The training of a tested network is found by its checkpoint
(``logs.History``), in the folders of the logs that are grouped; a run without a result, of which there is
nothing to average, has the settings of its own log.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from engine.settings import MISSING, as_json, fields
from engine.systems import all_of_them, system_of
from formats.files import BadInput
from tools.logs import BY_K, NUMBERS, History, Log, is_number

# Settings that change no number, that the group is made by, or that only the test has.
NO_DIFFERENCE = {"seed", "stage", "data_set_config", "result_log_dir", "result_weight_dir", "result_dir",
                 "weight_path", "hashcode_size", "method", "device", "memory", "num_workers",
                 "checkpoint_minutes", "eval_every", "ks", "protocol", "exclude_self"}  # fmt: skip

SIZES = ("database", "queries")  # of a test: videos

Metric = tuple[str, int | None]  # name, and K or radius


class Kind(NamedTuple):
    """What a group has in common; tables are sorted by it."""

    dataset: str
    protocol: str  # empty: not tested, or by version 1.0
    system: str
    method: str  # of a baseline, else empty
    bits: int  # 0: real values
    precision: str


@dataclass
class Trial:
    """One run."""

    log: Log
    training: list[Log] | None  # of the network that was tested, first stage first; None: not found
    kind: Kind
    seed: int | str  # where nobody knows it: the checkpoint, or else the log
    settings: dict[str, str]  # of its training, and what else must not be mixed
    metrics: dict[Metric, float]


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, oldest first."""

    kind: Kind
    settings: str  # in which it differs from others of its kind, of whatever bits, in words
    shared: str  # that all of these share though they are not the published ones, in words
    trials: list[Trial]

    def values(self, metric: Metric) -> list[float]:
        """Of the runs that have this metric."""
        return [trial.metrics[metric] for trial in self.trials if metric in trial.metrics]

    @property
    def commits(self) -> str:
        """The versions of the code that trained and tested it."""
        logs = [log for trial in self.trials for log in (*(trial.training or ()), trial.log)]
        return " ".join(sorted({str(log.start.get("git_commit") or "")[:7] for log in logs} - {""})) or "-"


def note(text: str) -> None:
    """Say something beside a table or figure."""
    print(text, file=sys.stderr)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divisor n - 1; None for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


# ---------------------------------------------------------------------------------------------------- runs


def trials_of(logs: Sequence[Log]) -> list[Trial]:
    """What every run is and reached; what is not known of one is said.

    Raises:
        BadInput: a log does not say of which stage it is.
    """
    history = History({log.path.parent for log in logs if log.result})
    return [trial_of(log, history) for log in logs]


def trial_of(log: Log, history: History) -> Trial:
    """What a run is and reached.

    Raises:
        BadInput: the log does not say of which stage it is.
    """
    result = log.result or {}
    weights, alone = result.get("weights"), result.get("method") or not result
    training = [log] if alone else history.training(weights) if weights else None
    if training is None:
        note(f"{log.path}: no complete log of the training of {weights}: seconds and settings not known")
    seed = result.get("seed")
    if seed is None and training:
        seed = training[-1].start.get("seed")  # the result of an older version does not say it
    if seed is None:
        note(f"{log.path}: seed not known: a run by itself")
    settings = {}
    if result:
        settings["network"] = str(result.get("origin")).removesuffix(f", seed {seed}")
        settings |= {key: str(result.get(key)) for key in SIZES}
        settings |= {"ks": " ".join(sorted(result["mAP"], key=int)), "training": "log not found"}
        if training is not None:
            settings["training"] = " ".join(str(each.start.get("stage")) for each in training)
    kind = kind_of(log)
    if stated := training_settings(training or ()):
        settings |= default_settings(kind.system) | stated  # an older version had what it lacks by default
    metrics = metrics_of(result)
    seconds = [epoch.get("seconds") for each in training or () for epoch in each.epochs]
    if seconds and all(map(is_number, seconds)):
        metrics["seconds", None] = sum(seconds)
    own_seed = seed if seed is not None else weights or str(log.path)
    return Trial(log, training, kind, own_seed, settings, metrics)


def kind_of(log: Log) -> Kind:
    """The kind of a run, by its result or, before there is one, by its settings.

    Raises:
        BadInput: the log does not say of which stage it is.
    """
    result = log.result or {}
    try:
        system = result.get("system") or system_of(result.get("stage") or log.start.get("stage")).name
    except BadInput as error:
        raise BadInput(f"{log.path}: {error}") from None
    without = " without itself" if result.get("exclude_self") else ""
    return Kind(
        dataset=result.get("dataset") or Path(str(log.setting("data_set_config"))).stem,
        protocol=f"{result.get('protocol') or ''}{without}",
        system=system,
        method=result.get("method") or "",
        bits=log.bits or 0,
        precision=str(result.get("precision_setting") or log.setting("precision") or ""),
    )


def training_settings(training: Iterable[Log]) -> dict[str, str]:
    """The settings of all stages by dotted name; where stages differ, each value once, in their order."""
    found: dict[str, dict[str, None]] = {}
    for log in training:
        for name, value in (log.start.get("settings") or {}).items():
            for key, inner in value.items() if isinstance(value, Mapping) else [(None, value)]:
                dotted = f"{name}.{key}" if key else name
                if dotted not in NO_DIFFERENCE:
                    found.setdefault(dotted, {})[json.dumps(inner)] = None
    return {name: " then ".join(values) for name, values in found.items()}


def default_settings(system: str) -> dict[str, str]:
    """The settings of a system where nobody states them (the published ones), as ``training_settings``."""
    known = {each.name: fields(each.settings) for each in all_of_them()}.get(system, {})
    return {name: json.dumps(as_json(item.default)) for name, item in known.items()
            if name not in NO_DIFFERENCE and item.default is not MISSING}  # fmt: skip


def metrics_of(result: Mapping) -> dict[Metric, float]:
    """Every metric of a result, by name and K or radius."""
    found = {(name, int(k)): value for name in BY_K for k, value in result.get(name, {}).items()}
    found |= {(name, None): result[name] for name in NUMBERS if result.get(name) is not None}
    for name in ("precision", "recall"):
        values = result.get("by_radius", {}).get(name, [])
        found |= {(f"{name}_by_radius", radius): value for radius, value in enumerate(values)}
    return found


# -------------------------------------------------------------------------------------------------- groups


def grouped(trials: Iterable[Trial]) -> list[Group]:
    """The groups, sorted."""
    kin: dict[tuple[Kind, bool], list[Trial]] = {}  # alike but for bits and precision; tests by themselves
    sizes: dict[tuple[str, str], set] = {}  # of database and queries, whatever the system
    for trial in sorted(trials, key=lambda trial: (trial.log.result or {}).get("time") or ""):
        alike = trial.kind._replace(bits=0, precision=""), bool(trial.log.result)
        kin.setdefault(alike, []).append(trial)
        if trial.log.result:
            sizes.setdefault(trial.kind[:2], set()).add(tuple(map(trial.settings.get, SIZES)))
    groups = []
    for (kind, tested), alike in kin.items():
        found: dict[str, list[str]] = {}
        for name, value in (each for trial in alike for each in trial.settings.items()):
            found.setdefault(name, []).append(value)
        default = default_settings(kind.system)
        chosen = {name for name in found if {default.get(name, found[name][0])} != set(found[name])}
        # Of a network without logs nobody knows the settings: those that others chose tell these from it.
        differing = {name for name, values in found.items()
                     if len(set(values)) > 1 or (name in chosen and len(values) < len(alike))}  # fmt: skip
        differing -= set(SIZES)
        shared = in_words({name: found[name][0] for name in chosen - differing})
        split: dict[tuple[Kind, str], list[Trial]] = {}
        for trial in alike:
            names = differing | set(SIZES if tested and len(sizes[kind[:2]]) > 1 else ())
            own = {name: value for name, value in trial.settings.items() if name in names}
            words = in_words(own) or ("not logged" if names else "")
            split.setdefault((trial.kind, words), []).append(trial)
        groups += [Group(*each, shared, trials) for each, trials in split.items()]
    return sorted(groups, key=lambda group: (group.kind, group.settings))


def in_words(settings: Mapping[str, str]) -> str:
    """Settings and their values, sorted."""
    return "; ".join(f"{name} {value}" for name, value in sorted(settings.items()))


def newest(group: Group) -> Group:
    """The group with the newest run of every seed; what is left out is said."""
    seeds: dict[int | str, Trial] = {}
    for trial in group.trials:
        if older := seeds.pop(trial.seed, None):
            note(f"{older.log.path}: of the same seed as the newer {trial.log.path}, which counts alone")
        seeds[trial.seed] = trial
    return replace(group, trials=list(seeds.values()))


def labels(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Of every group, where it belongs (dataset and protocol) and what tells it from the others there."""
    precise, found = len({group.kind.precision for group in groups}) > 1, []
    for kind, settings in ((group.kind, group.settings) for group in groups):
        protocol = f", protocol {kind.protocol}" if kind.protocol not in ("", "query") else ""
        system = f"{kind.system.removeprefix('tools.')} {kind.method}".strip()
        bits = f"{kind.bits} bits" if kind.bits else "real values"
        words = filter(None, (system, bits, kind.precision if precise else "", settings))
        found.append((kind.dataset + protocol, ", ".join(words)))
    return found


def metrics_among(groups: Iterable[Group], names: Iterable[str]) -> list[Metric]:
    """The metrics of these names that any run has, cuts ascending."""
    there = {metric for group in groups for trial in group.trials for metric in trial.metrics}
    return [metric for name in names
            for metric in sorted(there, key=lambda each: each[1] or 0) if metric[0] == name]  # fmt: skip
