"""``python -m cacheplugin`` is the same program as ``go-cache-plugin``."""

from .main import main

main()
