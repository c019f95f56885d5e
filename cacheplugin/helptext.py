"""The texts of ``help``. The list of options in them is generated from options.FLAGS.

``usage()`` is also the grammar that docopt reads.
"""

from __future__ import annotations

import textwrap

from .option_values import FORMATS
from .options import FLAGS, Flag
from .tuples import NamedTuple

_INDENT = 26
_WIDTH = 100
_NO_BREAK_SPACE = "\xa0"

_USAGE = """\
A build cache for the go command, on the local disk and in Amazon S3.

Usage:
  go-cache-plugin [options]
  go-cache-plugin [options] serve
  go-cache-plugin [options] connect <port>
  go-cache-plugin [options] prune
  go-cache-plugin [options] verify
  go-cache-plugin [options] stats
  go-cache-plugin [options] flush
  go-cache-plugin [options] help [<topic>]
  go-cache-plugin [options] version

Without a command it speaks the GOCACHEPROG protocol on stdin and stdout with the go command:

  GOCACHEPROG="go-cache-plugin --bucket my-bucket" go build ./...

Commands:
  serve     serve many go commands at once, and Go modules; see help serve-mode
  connect   connect one go command to the server on a port
  prune     remove entries that were not used for a long time
  verify    check all stored entries
  stats     show what is stored, and the hit rates of the last sessions
  flush     upload what earlier sessions left
  help      show this text, or the text of a topic
  version   show the version

{options}
In brackets: the variable that has the same effect, and the default.
TIME is {time}, SIZE is {size}.
Topics: {topics}.
"""

# The meaning of each flag, for --help and for the documentation.
_TEXTS = {
    "cache-dir": "the directory where entries are kept",
    "bucket": "the S3 bucket",
    "region": "the bucket's AWS region",
    "s3-endpoint-url": "the URL of an S3 service other than AWS",
    "s3-path-style": "put the bucket's name into the path of URLs, not into the host name",
    "s3-profile": "the profile of ~/.aws to use for the bucket alone",
    "s3-sse": "how S3 encrypts what is uploaded",
    "s3-sse-kms-key-id": "the KMS key for that; implies --s3-sse=aws:kms",
    "s3-requester-pays": "accept that you pay for requests to somebody else's bucket",
    "prefix": "a prefix for all keys in the bucket; a slash is added, and a//b/ becomes a/b",
    "min-upload-size": "do not upload bodies smaller than this",
    "upload": "when to upload. wait: the go command waits for uploads when it ends; background: "
    "uploads go on after the go command has ended; off: uploads are left to a later session or to "
    "the command flush",
    "drain-timeout": "wait at most this long for uploads when the go command ends",
    "layout": "how entries are stored in the bucket",
    "scope": "the name under which the working set is saved and prefetched",
    "prefetch-limit": "prefetch at most this much, compressed; 0: do not prefetch",
    "read-only": "fetch and store locally, but do not upload",
    "expiry": "prune entries that were not used for this long",
    "max-size": "prune the least recently used entries above this total size",
    "c": "how many fetches from S3 run at once",
    "u": "how many uploads to S3 run at once",
    "metrics": "print counters to stderr at exit",
    "v": "log more to stderr; implies --metrics",
    "debug": "log requests in detail: the sum of 1 (build cache) and 2 (module proxy); implies -v",
    "plugin": "the port on 127.0.0.1 for go commands",
    "http": "where to serve metrics, health and modules over HTTP, as HOST:PORT; without HOST it "
    "is 127.0.0.1",
    "allow-other-users": "serve: also serve users other than root and the user of the server; "
    "connect: also use the server of a user other than root and the user of the build",
    "client-timeout": "disconnect a client that stops for this long in the middle of a request, or "
    "does not read its answers; 0: never",
    "idle-exit": "exit after this long without a client",
    "stop-timeout": "after SIGINT or SIGTERM, let clients finish for this long",
    "modproxy": "serve Go modules under /mod at the address of --http",
    "modproxy-upstream": "the module proxies to fetch modules from",
    "modproxy-max-age": "fetch version lists, @latest and branches again after this long",
    "sumdb": "the checksum databases that verify modules, and that are served to clients",
    "nosumdb": "modules that are not in the checksum databases, and are not verified",
    "min-age": "keep everything that was used within this time",
    "dry-run": "show what would be removed, but remove nothing",
    "remote": "work on the bucket, not on the cache directory; prune then removes by --expiry",
    "json": "print JSON",
    "sha256": "also verify the SHA-256 of bodies, not only their xxh3",
    "repair": "remove what is damaged",
    "timeout": "give up after this long, and exit with 1 if something is left",
}

# What an empty default, or a default of 0, means.
_EMPTY_DEFAULTS = {
    "cache-dir": "$XDG_CACHE_HOME/go-cache-plugin or ~/.cache/go-cache-plugin",
    "bucket": "none: the cache is local only",
    "region": "AWS_REGION, the profile's or the bucket's own",
    "s3-endpoint-url": "AWS",
    "s3-profile": "AWS_PROFILE or the default profile",
    "s3-sse": "as the bucket is set up",
    "s3-sse-kms-key-id": "the bucket's own or that of AWS",
    "prefix": "none",
    "drain-timeout": "no limit",
    "scope": "the main module, platform and branch",
    "expiry": "nothing expires",
    "max-size": "no limit",
    "plugin": "none",
    "http": "off",
    "idle-exit": "never",
    "modproxy-upstream": "GOPROXY without direct",
    "nosumdb": "GONOSUMDB, GOPRIVATE",
    "timeout": "no limit",
}

# What stands for the value of a flag in the usage; other kinds: their own name.
_PLACEHOLDERS = {
    "count": "N",
    "databases": "LIST",
    "prefix": "TEXT",
    "proxies": "LIST",
    "sse": "ALGORITHM",
    "upload": "MODE",
}

# The kinds whose format stands in the usage beside each flag.
_FORMATS_SHOWN = ("layout", "sse", "proxies", "databases", "patterns")


class OptionRow(NamedTuple):
    """One option in words, for a table in the documentation."""

    flag: str  # with dashes
    variable: str  # "" for an option without one
    format: str  # what its values look like
    default: str
    commands: tuple[str, ...]  # the only commands that take it; empty: every command
    text: str


def option_rows() -> list[OptionRow]:
    """All options, in the order of ``help``."""
    return [
        OptionRow(
            flag.spelling,
            flag.variable or "",
            FORMATS[flag.kind],
            _default(flag),
            flag.commands,
            _TEXTS[flag.name],
        )
        for flag in FLAGS
    ]


def usage() -> str:
    """What ``help`` prints."""
    return _USAGE.format(
        options="\n".join(_sections()),
        time=FORMATS["time"],
        size=FORMATS["size"],
        topics=", ".join(TOPICS),
    )


def topic_text(topic: str) -> str:
    """What ``help TOPIC`` prints; ``topic`` is a key of TOPICS."""
    width = max(len(flag.variable or "") for flag in FLAGS)
    lines = [f"{flag.variable:<{width}}  {flag.spelling}\n" for flag in FLAGS if flag.variable]
    return TOPICS[topic].format(variables="".join(lines))


def _default(flag: Flag) -> str:
    """The default of an option, in the format of its flag as far as it is one."""
    meaning = _EMPTY_DEFAULTS.get(flag.name, "")
    if flag.kind == "bool":
        return "true" if flag.default else "false"
    if flag.default in (None, "") or (flag.kind == "port" and not flag.default):
        return meaning
    if flag.kind == "time":
        text = _in_unit(int(flag.default), (("h", 3600), ("m", 60), ("s", 1)))
    elif flag.kind == "size":
        text = _in_unit(flag.default, (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)))
    else:
        text = str(flag.default)
    return f"{text}: {meaning}" if meaning else text


def _in_unit(amount: int, units: tuple[tuple[str, int], ...]) -> str:
    """A number in the first of ``units`` that leaves no rest."""
    for name, factor in units:
        if amount and amount % factor == 0:
            return f"{amount // factor}{name}"
    return str(amount)


def _sections() -> list[str]:
    """The list of options: those of every command, then those of certain commands."""
    sections: dict[tuple[str, ...], str] = {}
    for flag in FLAGS:
        if flag.commands not in sections:
            *most, last = flag.commands or ("",)
            title = f"Options of {', '.join(most)}{' and ' if most else ''}{last}:\n"
            sections[flag.commands] = title if flag.commands else "Options:\n"
        sections[flag.commands] += _entry(flag)
    return list(sections.values())


def _entry(flag: Flag) -> str:
    """The lines about one option: flag, placeholder, meaning, and in brackets variable and default.

    docopt reads a line that begins with a dash as another option, so no line is broken there.
    """
    left = f"  {flag.spelling}"
    if flag.kind != "bool":
        left += "=" if len(flag.name) > 1 else " "
        left += _PLACEHOLDERS.get(flag.kind, flag.kind.upper())
    default = "" if flag.kind == "bool" else _default(flag)
    notes = "; ".join(filter(None, (flag.variable, default)))
    body = _TEXTS[flag.name]
    if flag.kind in _FORMATS_SHOWN:
        body += f": {FORMATS[flag.kind]}"
    if notes:
        body += f"  [{notes}]"
    lines = textwrap.wrap(
        body.replace(" -", f"{_NO_BREAK_SPACE}-"),
        _WIDTH - _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
    indent = "\n" + " " * _INDENT
    first = left.ljust(_INDENT) if len(left) + 2 <= _INDENT else left + indent
    return first + indent.join(lines).replace(_NO_BREAK_SPACE, " ") + "\n"


TOPICS = {
    "configure": """\
Every option can be set by a flag or by a variable. A flag beats its variable, and an empty variable
counts as unset. Flags take one or two dashes, as --flag=value or --flag value; a boolean is --flag
or --flag=true|false|1|0|t|f. A shared cache needs at least a bucket:

  export GOCACHEPROG=go-cache-plugin GOCACHE_S3_BUCKET=my-bucket
  go build ./...

--layout sets how entries are stored in the bucket. With bundles (auto, bundles, both) a session
saves the list of entries that it used, its working set, under its scope: by default the main
module, the platform and the branch. The next session with that scope fetches the working set before
the go command asks for it.

Credentials and the region are taken from where every AWS program takes them: variables, ~/.aws, the
role of the instance. --s3-profile, and GOCACHE_S3_ACCESS_KEY_ID with its like (help environment),
are for the cache alone. For MinIO, R2, GCS and other services set --s3-endpoint-url, and
--s3-path-style if bucket names cannot be host names.

Tests and generators inherit the environment of the go command, and with it the keys. To keep keys
from them, give them to a server alone (help serve-mode), or to flush in a step of its own (help
direct-mode).
""",
    "environment": """\
{variables}
GOCACHE_S3_ACCESS_KEY_ID, GOCACHE_S3_SECRET_ACCESS_KEY and GOCACHE_S3_SESSION_TOKEN are credentials
for the bucket alone, and go before all others. They have no flags, because every user can read a
command line.
AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID and the other AWS_ variables have their usual meaning.
XDG_CACHE_HOME sets the user's cache directory. TMPDIR sets the directory for the outputs of a
session when the disk of the cache directory is full.
""",
    "direct-mode": """\
The go command starts the program, one process for each build:

  GOCACHEPROG="go-cache-plugin --bucket my-bucket" go build ./...

Hits are answered from the cache directory. An entry that is not there is fetched from the bucket,
checked against its SHA-256, and stored. New outputs are stored, answered, and uploaded in the
background. A failure of S3 never fails a build: it is reported with one warning, and the entry is
built again.

The cache directory keeps a list of pending uploads. With --upload=wait the go command waits for
them when it ends, at most for --drain-timeout; with --upload=background it does not wait; with
--upload=off they stay in the list. A later session on that directory uploads what is left, and so
does

  go-cache-plugin flush --timeout=5m

which is the last step of a CI job whose machine is deleted afterwards. It exits with 1 if something
is left.

To limit the size of the directory, run prune from cron, or set the same limits for sessions
(GOCACHE_EXPIRY, GOCACHE_MAX_SIZE), which then prune at most once an hour:

  17 4 * * *  go-cache-plugin prune --expiry=720h --max-size=20GB >/dev/null

Entries that were used within --min-age and pending uploads are kept. Builds can run at the same
time, as with every command. One machine prunes the bucket in the same way:

  27 4 * * *  go-cache-plugin prune --remote --expiry=720h >/dev/null

  go-cache-plugin stats              show what is stored, its age, and the last sessions' hit rates
  go-cache-plugin verify --repair    check all entries and remove damaged ones; exit 1 if any was
""",
    "serve-mode": """\
One server for many go commands shares its workers, credentials and metrics between them:

  go-cache-plugin serve --plugin 5151 --bucket my-bucket --http :5152 &
  GOCACHEPROG="go-cache-plugin connect 5151" go build ./...

connect passes the go command's stdin and stdout to the server over a Unix socket (Linux), or copies
bytes between them and 127.0.0.1:5151. Any other program that copies bytes to that port works too.
The server's options set bucket and cache directory; --scope and --metrics can be set for connect.
If there is no server, connect exits with 1; with --cache-dir it serves the go command itself.

The go command does not wait for uploads: the server goes on with them. On SIGINT or SIGTERM the
server accepts no more clients, lets its clients finish for --stop-timeout, finishes uploads for
--drain-timeout, and exits with 0. A second signal ends it at once; the next server or flush uploads
what is left.

Users other than root and the user of the server are refused, unless serve has --allow-other-users.
So is the server of another user than root and that of the build, unless connect has it.

--http serves /healthz, /metrics (Prometheus) and /debug/vars (JSON).
""",
    "module-proxy": """\
serve --modproxy serves Go modules to any number of go commands: from its disk, the bucket, or the
proxies of --modproxy-upstream. Without --plugin it serves modules only:

  go-cache-plugin serve --http 0.0.0.0:5152 --modproxy --bucket my-bucket &
  export GOPROXY=http://HOST:5152/mod
  export GOSUMDB='sum.golang.org http://HOST:5152/mod/sumdb/sum.golang.org'

The second variable is optional: the go command uses its GOPROXY for the checksum database too.

Files that never change (the files of a version, records and tiles of a checksum database) are
fetched once and kept. Version lists, @latest and branches are fetched again after
--modproxy-max-age. If upstream is down, the last good copy is served, so a warm cache works without
upstream. With --modproxy-upstream=off there are no requests to upstream at all. The zip and go.mod
of a version are compared with the checksum database before they are kept or served in full; a file
that does not match is refused.

--nosumdb (or GONOSUMDB, GOPRIVATE) names the modules that no checksum database has. For all others,
the databases of --sumdb learn the module's name. Machines that fetch private modules from elsewhere
set GOPRIVATE, so that they do not ask this proxy for them.

Without these flags, the server takes upstream from GOPROXY or go env when it starts.
""",
    "reverse-proxy": "The reverse proxy (serve --revproxy) is not supported yet.\n",
    "debug": """\
--debug is the sum of 1 (build cache), 2 (module proxy) and 4 (reverse proxy, which is not supported
yet). With 1, the log has each answer and each request to S3 that failed; with 2, each request for a
module file and its answer. Times in the log have microseconds. --debug implies -v, and -v implies
--metrics.
""",
}
