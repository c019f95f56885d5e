"""``scale``: the cost of large stores."""

import statistics
import time

from .. import rivals
from ..driver import Plugin
from ..lab import go_environment
from ..runner import Case, Comparison, Failed
from ..trees import Tree, deciding


def scale(lab):
    """Stores of many entries: start-up, a hit, and prune without removals."""
    for entries in lab.sizes.scale_entries:
        tree = Tree(lab.fresh("scale"), entries, lab.sizes.syncs)
        wanted = tree.fresh()

        def hits(tree=tree, wanted=wanted):
            begin = time.perf_counter()
            plugin = Plugin([rivals.PLUGIN, f"--cache-dir={tree.root}"], go_environment(tree.root))
            try:
                plugin.gets(wanted[:1], 1)
                started = time.perf_counter() - begin
                plugin.gets(wanted, 1)
                spent = statistics.median(plugin.gets(wanted, 1) for _ in range(3))
            except (ValueError, EOFError) as error:
                raise Failed(str(error)[:300]) from error
            finally:
                plugin.close()
            return {"start_s": started, "hit_s": spent / len(wanted)}

        ours = [Case(rivals.OURS, hits)]
        yield Comparison("scale", f"{entries} entries, hit alone", "hit_s", None, ours)
        yield Comparison("scale", f"{entries} entries, start-up", "start_s", None, ours)
        yield deciding("scale", f"{entries} entries, prune", tree)
