"""The scenarios. Each is a generator of runner.Comparison, called with a lab.Lab.

A generator prepares what a comparison needs before it yields the comparison; that is not timed.
"""

from . import builds, cached, maintenance, modproxy, remote, scale, serve

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
    "prune": maintenance.prune,
    "verify": maintenance.verify,
    "spool": maintenance.spool,
    "scale": scale.scale,
    "modproxy": modproxy.modproxy,
}
