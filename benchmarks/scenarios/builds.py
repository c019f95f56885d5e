"""``warm-build`` and ``cold-build``: whole builds without a bucket."""

from .. import rivals
from ..lab import expect_hits
from ..runner import Case, Comparison


def warm(lab):
    """A build that finds everything in its local cache."""
    own_cache = lab.fresh("own")

    def own():
        return lab.build(go_cache=own_cache)

    def responder():
        return expect_hits(lab.build(lab.responder.program("")))

    own()  # fills the cache
    cases = [Case(rivals.BARE, responder), Case(rivals.OWN, lambda: expect_hits(own()))]
    cases += [Case(rival.name, _warm(lab, rival)) for rival in lab.rivals]
    yield Comparison("warm-build", "", "wall_s", rivals.BARE, cases)


def _warm(lab, rival):
    return lambda: expect_hits(lab.build(rival.program(lab.filled(rival))), lab.repeated_misses)


def cold(lab):
    """A build with nothing cached, which fills the local cache."""
    cases = [Case(rivals.OWN, lambda: expect_hits(lab.build()))]
    cases += [
        Case(rival.name, lambda rival=rival: expect_hits(lab.build(rival.program(lab.fresh()))))
        for rival in lab.rivals
    ]
    yield Comparison("cold-build", "", "wall_s", rivals.OWN, cases)
