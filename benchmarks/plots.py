"""Draws results as SVG and PNG: a picture for each scenario, with medians and single runs."""

import os

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_COLOURS = ("#3b6ea5", "#c98a2b", "#6b8f47", "#a14a4a", "#7a6a9b", "#5c5c5c")
_ROW_INCHES = 0.32


def draw(results, directory: str) -> list:
    """Write the pictures of all runner.Results into ``directory``; returns their paths."""
    paths = []
    for scenario in dict.fromkeys(result.scenario for result in results):
        found = [result for result in results if result.scenario == scenario]
        figure = _figure(scenario, found)
        for kind in ("svg", "png"):
            paths.append(os.path.join(directory, f"{scenario}.{kind}"))
            figure.savefig(paths[-1], dpi=110)
        pyplot.close(figure)
    return paths


def _figure(scenario, results):
    heights = [len(result.samples) * _ROW_INCHES + 0.75 for result in results]
    figure, axes = pyplot.subplots(
        len(results),
        1,
        figsize=(7.5, sum(heights) + 0.4),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    names = list(dict.fromkeys(name for result in results for name in result.samples))
    colours = {name: _COLOURS[at % len(_COLOURS)] for at, name in enumerate(names)}
    for axis, result in zip(axes[:, 0], results):
        shown = list(result.samples)[::-1]
        for at, name in enumerate(shown):
            values = result.values(name)
            if values:
                axis.barh(at, result.median(name), height=0.6, color=colours[name], alpha=0.75)
                axis.plot(values, [at] * len(values), "|", color="black", markersize=9)
            else:
                axis.text(0, at, " failed" if name in result.failures else " no run", va="center")
        axis.set_yticks(range(len(shown)), shown)
        axis.set_ylim(-0.6, len(shown) - 0.4)
        axis.set_xlim(left=0)
        axis.set_xlabel(result.metric)
        axis.ticklabel_format(axis="x", style="plain", useOffset=False)
        axis.set_title(result.variant or scenario, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{scenario}: medians, and each run", fontsize=11)
    return figure
