"""The user's settings for S3 that botocore's client does not take from its own configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import botocore.session

from ..errors import Unusable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ..options import Options

_KEY_VARIABLE = "GOCACHE_S3_ACCESS_KEY_ID"
_SECRET_VARIABLE = "GOCACHE_S3_SECRET_ACCESS_KEY"  # noqa: S105 - a name
_TOKEN_VARIABLE = "GOCACHE_S3_SESSION_TOKEN"  # noqa: S105 - a name
_PAYER = {"x-amz-request-payer": "requester"}


def open_session(options: Options, environ: Mapping[str, str]) -> Any:
    """A botocore session with the cache's own credentials; raises Unusable.

    The GOCACHE_S3_ variables come first, then --s3-profile, then all sources of AWS programs.
    """
    session = botocore.session.Session(profile=options.s3_profile or None)
    key, secret = environ.get(_KEY_VARIABLE), environ.get(_SECRET_VARIABLE)
    if bool(key) != bool(secret):
        given, missing = _KEY_VARIABLE, _SECRET_VARIABLE
        if secret:
            given, missing = missing, given
        raise Unusable(f"{given} is set and {missing} is not: set both or none")
    if key:
        session.set_credentials(key, secret, environ.get(_TOKEN_VARIABLE) or None)
    return session


def own_setting(session: Any, name: str) -> str:
    """The value that the user gave a setting of AWS programs; "" if none."""
    value = os.environ.get(f"AWS_{name.upper()}") or session.get_scoped_config().get(name)
    return str(value or "")


def payer_headers(options: Options) -> dict[str, str]:
    """The headers that each request of a bucket with requester pays needs."""
    return dict(_PAYER) if options.s3_requester_pays else {}


def apply_to(client: Any, options: Options) -> None:
    """Make an S3 client send the headers for requester pays and server-side encryption."""
    extra = payer_headers(options)
    if extra:
        client.meta.events.register(
            "before-call.s3", lambda params, **_: params["headers"].update(extra)
        )
    if options.s3_sse:
        encryption = {"x-amz-server-side-encryption": options.s3_sse}
        if options.s3_sse_kms_key_id:
            encryption["x-amz-server-side-encryption-aws-kms-key-id"] = options.s3_sse_kms_key_id
        for operation in ("PutObject", "CreateMultipartUpload"):
            client.meta.events.register(
                f"before-call.s3.{operation}",
                lambda params, **_: params["headers"].update(encryption),
            )
