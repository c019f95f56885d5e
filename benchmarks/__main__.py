"""The command line of the benchmarks: runs scenarios, writes a table, JSON and plots."""

import argparse
import os
import sys
import tempfile

from tqdm import tqdm

from . import report, rivals, runner, workloads
from .lab import Lab
from .scenarios import SCENARIOS
from .sizes import SIZES

_DESCRIPTION = """\
Measure on this machine what go-cache-plugin costs and gains, beside its alternatives.
Needs Linux, and the go command on PATH."""


def parse(argv):
    """The arguments of a command line; exits with 2 if they are wrong."""
    scenarios = "\n".join(f"  {name:14}{_first_line(call)}" for name, call in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=_DESCRIPTION,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog=f"scenarios:\n{scenarios}\n"
        f"  {'quick':14}A small form of each, in under five minutes.",
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all but quick")
    parser.add_argument("--runs", type=_count, help="runs of each case, after the warm-up")
    parser.add_argument(
        "--work", help="where to make the working directory, on the disk to measure"
    )
    parser.add_argument("--out", default="bench-results", help="the directory for the report")
    parser.add_argument("--no-plots", dest="plots", action="store_false")
    parser.add_argument(
        "--workload",
        metavar="WHAT",
        help="std, std:PATTERN, monorepo, monorepo:N, or a directory with a go.mod",
    )
    parser.add_argument("--seed", type=int, default=workloads.SEED, help="the seed of the monorepo")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer,
        metavar="NAME='COMMAND ...'",
        help="another GOCACHEPROG, with {cache}, {bucket}, {endpoint}, {prefix}",
    )
    parser.add_argument(
        "--layout", default="bundles", help="go-cache-plugin's layout in the bucket"
    )
    parser.add_argument(
        "--round-trips", type=_numbers, metavar="MS,...", help="round trips of remote-build"
    )
    parser.add_argument(
        "--rate", type=float, metavar="MB_PER_S", help="limit of the network's rate"
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="an S3 server; default: versitygw, else moto"
    )
    parser.add_argument("--bucket", help="the bucket at --endpoint")
    parser.add_argument(
        "--moto", action="store_true", help="use moto even if versitygw is installed"
    )
    parser.add_argument("--size", choices=SIZES, default="full", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if "quick" in arguments.scenarios:
        arguments.scenarios.remove("quick")
        arguments.size = "quick"
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}, quick")
    if arguments.bucket and not arguments.endpoint:
        parser.error("--bucket needs --endpoint")
    if len({peer.name for peer in arguments.peer}) < len(arguments.peer):
        parser.error("two peers have the same name")
    return arguments


def main(argv=None) -> int:
    """Run the scenarios and write the report; returns 1 if a case failed, else 0."""
    arguments = parse(argv)
    # The programs that are measured must find their bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sizes = SIZES[arguments.size]
    runs = arguments.runs or sizes.runs
    if arguments.work:
        os.makedirs(arguments.work, exist_ok=True)
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="go-cache-plugin-bench-", dir=arguments.work) as work,
        Lab(os.path.abspath(work), arguments, sizes) as lab,
    ):
        try:
            facts = report.about(arguments, lab)
            for name in arguments.scenarios or SCENARIOS:
                results += _measure(name, lab, runs, sizes.warmups)
            facts["s3"] = lab.s3_name
        except (ValueError, runner.Failed) as error:
            sys.stderr.write(f"scripts/bench: {error}\n")
            return 1
    os.makedirs(arguments.out, exist_ok=True)
    text = report.table(facts, results)
    sys.stdout.write(text)
    _write(arguments.out, "report.txt", text)
    _write(arguments.out, "report.json", report.to_json(facts, results))
    if arguments.plots:
        from . import plots

        plots.draw(results, arguments.out)
    return int(any(result.failures for result in results))


def _measure(name, lab, runs, warmups):
    for comparison in SCENARIOS[name](lab):
        what = f"{name} {comparison.variant}".strip()
        total = len(comparison.cases) * (runs + warmups)
        with tqdm(total=total, desc=f"{what:40.40}", unit="run", disable=None) as bar:
            yield runner.compare(comparison, runs, warmups, bar.update)


def _write(directory, name, text) -> None:
    with open(os.path.join(directory, name), "w") as file:
        file.write(text)


def _first_line(call) -> str:
    return call.__doc__.splitlines()[0]


def _count(text) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def _numbers(text) -> list:
    return [float(part) for part in text.split(",")]


def _peer(text):
    try:
        return rivals.parse_peer(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
