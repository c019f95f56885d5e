"""The module proxy: what ``GOPROXY=http://HOST:PORT/mod`` asks for, checksum databases with it.

``routes`` answers requests; ``names`` says what a path asks for; ``cache`` brings it from the disk
(``shelf``), S3 or other proxies (``upstream``), as a ``download``; ``checks`` and ``zips`` know
formats, ``proof`` what checksum databases say; ``goproxy`` reads the lists that name others.
"""
