"""The bucket. Only this package imports botocore and s3transfer."""
