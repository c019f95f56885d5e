"""Endpoint and region as botocore finds them in variables and in the files of ``~/.aws``.

The spool has to note them in the front, which cannot load botocore. Read by hand, because
configparser would delay the go command by milliseconds.
"""

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Sections = dict[str, dict[str, str]]  # {section of a file: {key: value}}

_FILE_BYTES = 4 << 20  # more than any such file has


def endpoint_and_region(environ: "Mapping[str, str]", profile: str = "") -> "tuple[str, str]":
    """The endpoint URL of S3 and the region that are set for a profile; "" for what is not set.

    ``profile`` "": the one that ``environ`` names, or the default profile.
    """
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or ""
    ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower()
    if ignored == "true":
        endpoint = ""
    if (endpoint or ignored == "true") and region:
        return endpoint, region
    files = Files(environ)
    values = files.profile(profile or profile_name(environ) or "default")
    if not ignored:
        ignored = values.get("ignore_configured_endpoint_urls", "").lower()
    if ignored == "true":
        endpoint = ""
    elif not endpoint:
        endpoint = files.service_endpoint(values) or values.get("endpoint_url", "")
    return endpoint, region or values.get("region", "")


def profile_name(environ: "Mapping[str, str]") -> str:
    """The profile that variables name, "" if they name none."""
    return environ.get("AWS_DEFAULT_PROFILE") or environ.get("AWS_PROFILE") or ""


class Files:
    """The two files of ``~/.aws``, or those that variables name; empty if they cannot be read."""

    def __init__(self, environ: "Mapping[str, str]") -> None:
        self._config = _read(environ.get("AWS_CONFIG_FILE") or "~/.aws/config")
        self._keys = _read(environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials")

    def profile(self, name: str) -> "dict[str, str]":
        """The settings of a profile from both files, {} if there is none of that name."""
        own = self._config.get("default", {}) if name == "default" else {}
        return {**own, **self._named("profile", name), **self._keys.get(name, {})}

    def service_endpoint(self, values: "Mapping[str, str]") -> str:
        """The URL of S3 in the section ``services`` that a profile's ``values`` refer to."""
        if not values.get("services"):
            return ""
        nested = self._named("services", values["services"]).get("s3", "")
        pairs = (line.partition("=") for line in nested.split("\n"))
        return {key.strip(): value.strip() for key, _, value in pairs}.get("endpoint_url", "")

    def _named(self, kind: str, name: str) -> "dict[str, str]":
        """The section ``[KIND NAME]``; the name may be quoted."""
        for section, values in self._config.items():
            first, _, rest = section.partition(" ")
            if first == kind and rest.strip().strip("\"'") == name:
                return values
        return {}


def _read(path: str) -> "Sections":
    """The sections of a file. A nested value is one text with a line for each of its pairs."""
    path = os.path.expanduser(os.path.expandvars(path))
    try:
        # The content of a pipe, as of AWS_CONFIG_FILE=<(command), is left to botocore.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return {}
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            text = file.read(_FILE_BYTES).decode()
    except (OSError, ValueError):
        return {}
    sections: Sections = {}
    values: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        bare = line.strip()
        if not bare or bare[0] in "#;":
            continue
        if line[0] in " \t" and key:
            values[key] += f"\n{bare}"
        elif bare[0] == "[":
            values = sections.setdefault(bare[1:].partition("]")[0].strip(), {})
            key = ""
        else:
            at = min((bare.index(sign) for sign in "=:" if sign in bare), default=len(bare))
            key = bare[:at].strip().lower()
            values[key] = bare[at + 1 :].strip()
    return sections
