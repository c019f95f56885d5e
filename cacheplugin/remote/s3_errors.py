"""The errors of botocore, s3transfer and urllib3, translated into RemoteError here alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore import exceptions as boto

from ..errors import Absent, TimedOut, Unavailable, Unusable

if TYPE_CHECKING:
    from collections.abc import Iterator

_REASON_LENGTH = 300  # some errors quote whole regular expressions
_ABSENT = ("404", "NoSuchKey", "NotFound")
_REFUSED = (
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "NoSuchBucket",
    "InvalidBucketName",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
    boto.UnknownCredentialError,
    boto.ParamValidationError,
    boto.InvalidRegionError,
    boto.NoRegionError,
    boto.UnsupportedS3ConfigurationError,
)
_TIMED_OUT = (boto.ConnectTimeoutError, boto.ReadTimeoutError)


@contextmanager
def translated() -> Iterator[None]:
    """Translate errors of botocore, s3transfer and urllib3 into RemoteError."""
    from s3transfer.exceptions import RetriesExceededError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except boto.ClientError as error:
        code, _ = code_and_status(error)
        if code in _REFUSED:
            raise Unusable(one_line(error)) from error
        if code in _ABSENT:
            raise Absent(one_line(error)) from error
        raise Unavailable(one_line(error)) from error
    except _NO_CREDENTIALS as error:
        raise Unusable(one_line(error)) from error
    except _TIMED_OUT as error:
        raise TimedOut(one_line(error)) from error
    except (boto.BotoCoreError, RetriesExceededError, HTTPError) as error:
        raise Unavailable(one_line(error)) from error


def code_and_status(error: BaseException | None) -> tuple[str, int]:
    """S3's error code and the HTTP status of an answer; ("", 0) if ``error`` is of another kind."""
    if not isinstance(error, boto.ClientError):
        return "", 0
    return (
        str(error.response.get("Error", {}).get("Code", "")),
        error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
    )


def one_line(error: Exception) -> str:
    """The text of an error as one line of moderate length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."
