"""The HTTP process of a server: metrics, health and the module proxy.

Only this package imports aiohttp and prometheus_client. ``process`` starts it, ``app`` routes
requests, ``server_client`` talks to the server, ``exposition`` formats the server's numbers, and
``modproxy`` is the module proxy.
"""
