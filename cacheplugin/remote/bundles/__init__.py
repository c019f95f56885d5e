"""The layout ``bundles``: many entries in one object, and manifests that name a session's entries.

::

    [prefix/]bundle/<time>-<scope>-<random>      bodies
    [prefix/]manifest/<scope>/<time>-<random>    what a session used, and where it lies

<time> counts down, so that a listing begins with the newest object; <scope> is a hash of the
scope's text. Objects are written once and never changed. docs/bundles.rst has the format byte by
byte.

rows, bundle, manifest     the formats, without network I/O; keys: the form of keys
catalog, ranges            in the pool: what lies where, and which parts one request fetches
plan, fetching, uploading  in the pool: the plan, its half for gets and its half for puts
tasks                      in the workers: read manifests and ranges, write bundles and manifests
inventory                  for prune and stats: all that a bucket holds
"""
