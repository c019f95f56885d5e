"""The HTTP process of a server: metrics and health, and the home of what else speaks HTTP.

This package alone imports aiohttp and prometheus_client. ``process`` is the process, ``app`` the
application and its routes, ``link`` the way to the server, ``exposition`` what is known of the
server as text.
"""
