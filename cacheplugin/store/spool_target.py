"""Where the entries of a session belong, as two files in its directory of the spool.

``target`` has the TARGET_FIELDS of Options. Older versions of the program refuse a target with
other fields, so what they do not know is in ``settings``: the options and
variables of _KINDS. Endpoint and region are noted as the session found them, in options,
variables or a profile: who uploads the entries later may have others.
"""

import json
import os
import stat

from .. import aws_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import Any

    from ..options import Options

TARGET_FIELDS = ("endpoint_url", "bucket", "prefix", "region", "path_style", "layout", "scope")
_PROFILE_VARIABLES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")
_FILE_VARIABLES = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
_KINDS: "dict[str, dict[str, type]]" = {  # what settings may hold: {group: {name: type}}
    "options": {
        "s3_profile": str,
        "s3_sse": str,
        "s3_sse_kms_key_id": str,
        "s3_requester_pays": bool,
    },
    "variables": dict.fromkeys((*_PROFILE_VARIABLES, *_FILE_VARIABLES), str),
}
_SETTINGS_BYTES = 1 << 16  # more than any has
# Whoever has one of these brings credentials along, and needs no profile of a session's.
_OWN_CREDENTIALS = (
    *_PROFILE_VARIABLES,
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def files_of(options: "Options", scope: str, environ: "Mapping[str, str]") -> "dict[str, str]":
    """{name: content} of the files that say where a session's entries belong."""
    fields = {field: getattr(options, field) for field in TARGET_FIELDS} | {"scope": scope}
    if not (options.endpoint_url and options.region):
        endpoint, region = aws_settings.endpoint_and_region(environ, options.s3_profile)
        fields["endpoint_url"] = options.endpoint_url or endpoint
        fields["region"] = options.region or region
    settings = {
        "options": {field: getattr(options, field) for field in _KINDS["options"]},
        "variables": {name: environ[name] for name in _KINDS["variables"] if environ.get(name)},
    }
    # The target last: a directory with a target has its settings.
    return {
        "settings": json.dumps(settings, sort_keys=True),
        "target": json.dumps(fields, sort_keys=True),
    }


def restore(
    directory: str,
    fields: "dict[str, Any]",
    options: "Options",
    environ: "MutableMapping[str, str]",
) -> "dict[str, Any]":
    """The options of an uploader for a target directory; changes ``environ`` to fit them.

    ``fields`` are those of its target, ``options`` those of the uploader. For a directory without
    settings, which an older version wrote, the uploader's environment counts as it is.
    """
    merged = options.as_dict() | fields
    try:
        settings = _read_settings(directory)
    except FileNotFoundError:
        return merged
    noted = settings.get("options", {})
    if not options.s3_sse:
        merged["s3_sse"] = noted.get("s3_sse", "")
        merged["s3_sse_kms_key_id"] = noted.get("s3_sse_kms_key_id", "")
    merged["s3_requester_pays"] |= noted.get("s3_requester_pays", False)
    if not options.s3_profile and not environ.get("GOCACHE_S3_ACCESS_KEY_ID"):
        profile, variables = noted.get("s3_profile", ""), settings.get("variables", {})
        merged["s3_profile"] = _restore_profile(profile, variables, environ)
    endpoint, region = aws_settings.endpoint_and_region(environ, merged["s3_profile"])
    if endpoint and not merged["endpoint_url"]:
        environ["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
    if region and not merged["region"]:
        environ.pop("AWS_REGION", None)
        environ.pop("AWS_DEFAULT_REGION", None)
    return merged


def _restore_profile(
    profile: str, variables: "dict[str, str]", environ: "MutableMapping[str, str]"
) -> str:
    """Choose the profile of a session, by an option or in ``environ``; returns the option.

    Elsewhere, such as in another step of a CI job, it may not exist; then it is not chosen.
    """
    changes = {
        name: variables[name]
        for name in _FILE_VARIABLES
        if name in variables and not environ.get(name)
    }
    if not profile:
        if any(environ.get(name) for name in _OWN_CREDENTIALS):
            return ""
        changes |= {name: variables[name] for name in _PROFILE_VARIABLES if name in variables}
    name = profile or aws_settings.profile_name(changes) or "default"
    if not aws_settings.Files({**environ, **changes}).profile(name):
        return ""
    environ.update(changes)
    return profile


def _read_settings(directory: str) -> "dict[str, Any]":
    """The content of ``settings``, {} if it is not to be believed. Raises FileNotFoundError.

    A file of another user's could name a profile that runs his commands.
    """
    try:
        fd = os.open(
            f"{directory}/settings", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except FileNotFoundError:
        raise
    except OSError:
        return {}
    try:
        status = os.fstat(fd)
        if (
            not stat.S_ISREG(status.st_mode)
            or status.st_uid != os.geteuid()
            or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        ):
            return {}
        settings = json.loads(os.read(fd, _SETTINGS_BYTES))
    except (OSError, ValueError):
        return {}
    finally:
        os.close(fd)
    if not isinstance(settings, dict):
        return {}
    return {
        group: {
            name: value
            for name, value in settings.get(group, {}).items()
            if name in kinds and type(value) is kinds[name]
        }
        for group, kinds in _KINDS.items()
        if isinstance(settings.get(group, {}), dict)
    }
