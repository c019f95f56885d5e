"""A GOCACHEPROG plugin that gives the go command a build cache backed by Amazon S3."""

__version__ = "0.1.0"
