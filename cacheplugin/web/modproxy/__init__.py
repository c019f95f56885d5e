"""The module proxy, which ``GOPROXY=http://HOST:PORT/mod`` uses. It also relays checksum databases.

- ``routes``: answers HTTP requests below ``/mod/``.
- ``names``: parses the path of a request.
- ``cache``: finds a file on disk, in S3 or upstream, and stores what it fetched.
- ``disk``: the module files in the cache directory.
- ``upstream``: the HTTP client for other module proxies and checksum databases.
- ``download``: one file that is being fetched; several clients can read it at the same time.
- ``checks``, ``zips``: check the format of a file and compute its hash.
- ``checksums``: compares a file with the records of checksum databases.
- ``goproxy``: parses GOPROXY, GONOSUMDB and --sumdb.
- ``expiring``: a dict whose values expire.
- ``counters``: the names of the counters.
"""
