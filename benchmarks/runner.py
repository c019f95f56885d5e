"""Runs cases in turn (A B, B A, ...), after a warm-up, and keeps all samples."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Case(NamedTuple):
    """One thing to measure.

    ``run()`` does it once and returns {metric: number}, or raises Failed. Metrics end in their
    units: wall_s, cpu_s, peak_bytes, requests, down_bytes, ...
    """

    name: str
    run: Callable[[], dict]


class Comparison(NamedTuple):
    """Cases that are measured beside each other."""

    scenario: str  # for instance "remote-build"
    variant: str  # for instance "20 ms"; may be empty
    metric: str  # the metric that is compared
    yardstick: str | None  # the name of the case that all ratios refer to; None: no ratios
    cases: Sequence[Case]


class Failed(Exception):
    """A run did not do its work, so its time means nothing; the text is one line."""


class Result:
    """The result of a Comparison: ``samples`` {case: [metrics]}, ``failures`` {case: reason}."""

    def __init__(self, comparison) -> None:
        self.scenario, self.variant = comparison.scenario, comparison.variant
        self.metric, self.yardstick = comparison.metric, comparison.yardstick
        self.samples = {case.name: [] for case in comparison.cases}
        self.failures = {}

    def values(self, name: str, metric: str | None = None) -> list:
        """The values of a metric in all runs of a case; a failed case has none."""
        metric = metric or self.metric
        return [run[metric] for run in self.samples[name] if metric in run]

    def median(self, name: str, metric: str | None = None):
        """The median of a case's runs, or None."""
        values = self.values(name, metric)
        return statistics.median(values) if values else None

    def ratios(self, name: str) -> list:
        """The ratios of a case's runs to the yardstick's runs of the same turns."""
        if self.yardstick in (None, name) or self.yardstick in self.failures:
            return []
        return [
            ours / theirs for ours, theirs in zip(self.values(name), self.values(self.yardstick))
        ]

    def as_dict(self) -> dict:
        """The result as in the JSON report."""
        return {
            "scenario": self.scenario,
            "variant": self.variant,
            "metric": self.metric,
            "yardstick": self.yardstick,
            "cases": [
                {
                    "name": name,
                    "failed": self.failures.get(name),
                    "median": self.median(name),
                    "ratio": statistics.median(self.ratios(name)) if self.ratios(name) else None,
                    "runs": runs,
                }
                for name, runs in self.samples.items()
            ],
        }


def compare(comparison, runs: int, warmups: int, tick=lambda: None) -> Result:
    """Run all cases of a Comparison ``runs`` times; ``tick()`` is called after each run.

    A case that fails once is not run again and has no samples, so that it is not reported as fast.
    """
    result = Result(comparison)
    cases = list(comparison.cases)
    for turn in range(-warmups, runs):
        for case in cases if turn % 2 else reversed(cases):
            if case.name not in result.failures:
                try:
                    found = case.run()
                    if turn >= 0:
                        result.samples[case.name].append(found)
                except Failed as error:
                    result.failures[case.name] = " ".join(str(error).split()) or "failed"
                    result.samples[case.name] = []
            tick()
    return result
