"""The front: reads the requests of go commands, answers from the store, or asks the pool."""
