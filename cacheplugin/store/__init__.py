"""The cache directory on the local disk: every module that knows its shape."""
