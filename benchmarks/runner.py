"""Runs what is to be compared in turn (A B, B A, ...), after a warm-up, and keeps all samples."""

import statistics
from collections import namedtuple

# name: who it is. run(): does it once and returns {metric: number}; raises Failed. Metrics are named
# with their units: wall_s, cpu_s, peak_bytes, requests, down_bytes, ...
Case = namedtuple("Case", "name run")
# scenario, variant: what is compared, as in "remote-build", "20 ms". metric: the one that counts.
# yardstick: the name of the case that the others are put in relation to; None where there is none.
Comparison = namedtuple("Comparison", "scenario variant metric yardstick cases")


class Failed(Exception):
    """A run did not do what it was to do, so its time says nothing; the text is one line."""


class Result:
    """Of one Comparison: ``samples`` {case: [metrics of a run]}, ``failures`` {case: reason}."""

    def __init__(self, comparison) -> None:
        self.scenario, self.variant = comparison.scenario, comparison.variant
        self.metric, self.yardstick = comparison.metric, comparison.yardstick
        self.samples = {case.name: [] for case in comparison.cases}
        self.failures = {}

    def values(self, name: str, metric: str = None) -> list:
        """What each run of a case came to; a failed case has none."""
        metric = metric or self.metric
        return [run[metric] for run in self.samples[name] if metric in run]

    def median(self, name: str, metric: str = None):
        """The median of a case's runs, or None."""
        values = self.values(name, metric)
        return statistics.median(values) if values else None

    def ratios(self, name: str) -> list:
        """A case's runs over the yardstick's of the same turns."""
        if self.yardstick in (None, name) or self.yardstick in self.failures:
            return []
        return [
            ours / theirs for ours, theirs in zip(self.values(name), self.values(self.yardstick))
        ]

    def as_dict(self) -> dict:
        """As it stands in the JSON report."""
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

    A case that fails once is not run again, and has no samples: it is reported as failed, not as fast.
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
