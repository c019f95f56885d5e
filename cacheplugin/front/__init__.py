"""One go command: the protocol, its session, and the answers."""
