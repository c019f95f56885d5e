"""The modules that only ``serve`` and ``connect`` load."""
