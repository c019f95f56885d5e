"""What is measured. Each scenario is a generator of runner.Comparison, called with a lab.Lab.

What a scenario needs is set up in its generator, between two of its comparisons, and is not timed.
"""

from . import builds, cached, modproxy, remote, scale, serve, upkeep

SCENARIOS = {
    "hit": cached.hit,
    "startup": cached.startup,
    "warm-build": builds.warm,
    "cold-build": builds.cold,
    "remote-build": remote.build,
    "upload": remote.upload,
    "incremental": remote.incremental,
    "large": remote.large,
    "serve": serve.clients,
    "prune": upkeep.prune,
    "verify": upkeep.verify,
    "spool": upkeep.spool,
    "scale": scale.scale,
    "modproxy": modproxy.modproxy,
}
