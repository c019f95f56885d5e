"""The processes that talk to S3: the pool, its workers, and the background uploader."""
