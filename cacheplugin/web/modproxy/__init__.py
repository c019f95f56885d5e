"""The module proxy: what ``GOPROXY=http://HOST:PORT/mod`` asks for, checksum databases with it.

``routes`` answers requests; ``names`` says what a path asks for; ``cache`` finds it on disk, in S3 or
upstream, where each file is brought by a ``download``; ``checks`` says whether it is what it should
be, ``zips`` of zips; ``upstream`` talks to other proxies; ``goproxy`` reads the lists that name them.
"""
