"""The layout ``bundles``: many entries in one object, and manifests that say which are wanted.

::

    [prefix/]bundle/<time>-<scope>-<random>      bodies (bundle.py)
    [prefix/]manifest/<scope>/<time>-<random>    what a session used, and where it lies (manifest.py)

<time> counts down, so that a listing begins with the newest; <scope> is a hash of its text. Objects
are written once and never changed. docs/bundles.rst has all of it byte by byte.

index, bundle, manifest    the formats, without I/O
ranges, catalog            what lies where, and what is fetched in one go
fetching, packing, plan    in the pool: what is to be done when
layout                     in the workers: the tasks
"""
