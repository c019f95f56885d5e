"""The command line of the benchmarks: scenarios in, a table, JSON and plots out."""

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
What go-cache-plugin costs and gains, beside what would be used in its place, on this machine.
Linux, and the go command on PATH."""


def parse(argv):
    """The arguments of a command line; ends the process where they are wrong."""
    scenarios = "\n".join(f"  {name:14}{_first_line(call)}" for name, call in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=_DESCRIPTION,
        formatter_class=argparse.RawTextHelpFormatter,
        epilog=f"scenarios:\n{scenarios}\n  {'quick':14}A small form of each, in under five minutes.",
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="default: all but quick")
    parser.add_argument("--runs", type=_count, help="of each case, after the warm-up")
    parser.add_argument("--work", help="a directory to work below, on the disk of interest")
    parser.add_argument("--out", default="bench-results", help="where the report goes")
    parser.add_argument("--no-plots", dest="plots", action="store_false")
    parser.add_argument(
        "--workload",
        metavar="WHAT",
        help="std, std:PATTERN, monorepo, monorepo:N, or a directory with a go.mod",
    )
    parser.add_argument("--seed", type=int, default=workloads.SEED, help="of the monorepo")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer,
        metavar="NAME='COMMAND ...'",
        help="another GOCACHEPROG, with {cache}, {bucket}, {endpoint}, {prefix}",
    )
    parser.add_argument("--layout", default="bundles", help="of ours in the bucket")
    parser.add_argument("--round-trips", type=_numbers, metavar="MS,...", help="of remote-build")
    parser.add_argument("--rate", type=float, metavar="MB_PER_S", help="of the network, if bounded")
    parser.add_argument("--endpoint", metavar="URL", help="an S3 server; else versitygw, else moto")
    parser.add_argument("--bucket", help="the bucket there")
    parser.add_argument("--moto", action="store_true", help="moto, although versitygw is there")
    parser.add_argument("--size", choices=SIZES, default="full", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if "quick" in arguments.scenarios:
        arguments.scenarios.remove("quick")
        arguments.size = "quick"
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            parser.error(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}, quick")
    if arguments.bucket and not arguments.endpoint:
        parser.error("--bucket is one of --endpoint")
    if len({peer.name for peer in arguments.peer}) < len(arguments.peer):
        parser.error("two peers have one name")
    return arguments


def main(argv=None) -> int:
    """Run the scenarios and write the report; exit status 1 where a case failed."""
    arguments = parse(argv)
    # What is started is to find its bytecode.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sizes = SIZES[arguments.size]
    runs = arguments.runs or sizes.runs
    if arguments.work:
        os.makedirs(arguments.work, exist_ok=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="go-cache-plugin-bench-", dir=arguments.work) as work:
        with Lab(os.path.abspath(work), arguments, sizes) as lab:
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
