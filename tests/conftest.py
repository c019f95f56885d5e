"""One fixed hypothesis profile for every test: the same examples on each run, no deadline."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
