"""The bucket: the only package that imports botocore and s3transfer."""
