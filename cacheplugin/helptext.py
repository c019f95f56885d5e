"""What help prints. USAGE is also the grammar that docopt reads."""

USAGE = """\
A build cache for the go command, kept on disk and in Amazon S3.

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

Without a command it speaks the GOCACHEPROG protocol on stdin and stdout, for the go command:

  GOCACHEPROG="go-cache-plugin --bucket my-bucket" go build ./...

serve does so for many go commands at once, and connect is one go command's way to it: see help
serve-mode. prune removes what was not used for longest, verify checks what is stored, stats says what is there
and how it served, flush uploads what earlier sessions left. See help direct-mode.

Options:
  --cache-dir=PATH        where entries are kept  [GOCACHE_DIR; the user's cache directory]
  --bucket=NAME           the S3 bucket; without it the cache is local only  [GOCACHE_S3_BUCKET]
  --region=NAME           its region  [GOCACHE_S3_REGION; AWS_REGION, the profile, the bucket's own]
  --s3-endpoint-url=URL   a store that is not AWS  [GOCACHE_S3_ENDPOINT_URL]
  --s3-path-style         address the bucket in the path  [GOCACHE_S3_PATH_STYLE]
  --prefix=TEXT           before every key  [GOCACHE_KEY_PREFIX]
  --min-upload-size=BYTES smaller bodies are not uploaded  [GOCACHE_MIN_SIZE; 0]
  --upload=MODE           wait: close waits for uploads; background: they go on without the go
                          command; off: they stay for a later session or flush
                          [GOCACHE_UPLOAD; wait]
  --drain-timeout=TIME    at close, wait no longer for uploads: 90s, 1m30s  [GOCACHE_DRAIN_TIMEOUT]
  --layout=LAYOUT         how entries lie in the bucket: auto, bundles, objects, both
                          [GOCACHE_LAYOUT; auto]
  --scope=TEXT            whose working set is prefetched and left for others
                          [GOCACHE_SCOPE; main module, platform and branch]
  --prefetch-limit=SIZE   prefetch no more than this, compressed; 0: nothing
                          [GOCACHE_PREFETCH_LIMIT; 4GiB]
  --read-only             fetch, store locally, never upload  [GOCACHE_READ_ONLY]
  --expiry=TIME           prune what was not used for so long: 168h  [GOCACHE_EXPIRY; 0: nothing]
  --max-size=SIZE         prune the least recently used beyond it: 20GB  [GOCACHE_MAX_SIZE; no limit]
  -c N                    fetches from S3 at once  [GOCACHE_CONCURRENCY; 32]
  -u N                    uploads at once  [GOCACHE_S3_CONCURRENCY; 16]
  --metrics               print counters to stderr at exit  [GOCACHE_METRICS]
  -v                      say what happens; implies --metrics  [GOCACHE_VERBOSE]
  --debug=MASK            log 1: the build cache, 2: the module proxy; implies -v  [GOCACHE_DEBUG]

Of serve:
  --plugin=PORT           the port on 127.0.0.1 where connect finds it  [GOCACHE_PLUGIN]
  --http=ADDRESS          metrics, health and modules over HTTP on HOST:PORT; :PORT is on 127.0.0.1
                          [GOCACHE_HTTP]
  --modproxy              serve Go modules at /mod of --http  [GOCACHE_MODPROXY]
  --modproxy-upstream=LIST
                          from where they come, as GOPROXY has it: URL,URL|URL,off
                          [GOCACHE_MODPROXY_UPSTREAM; GOPROXY without direct]
  --modproxy-max-age=TIME ask again for lists, @latest and branches after so long
                          [GOCACHE_MODPROXY_MAX_AGE; 1m]
  --sumdb=LIST            the checksum databases that modules are compared with, and that are served:
                          NAME or 'NAME URL', or off  [GOCACHE_SUMDB; sum.golang.org]
  --nosumdb=PATTERNS      modules that these do not know  [GOCACHE_NOSUMDB; GONOSUMDB, GOPRIVATE]
  --allow-other-users     serve other users than the server's own and root
                          [GOCACHE_ALLOW_OTHER_USERS]
  --client-timeout=TIME   give up a client that stops in the middle of a request for so long
                          [GOCACHE_CLIENT_TIMEOUT; 10m]
  --idle-exit=TIME        end after so long without a client  [GOCACHE_IDLE_EXIT; 0: never]
  --stop-timeout=TIME     after SIGINT or SIGTERM clients may finish for so long
                          [GOCACHE_STOP_TIMEOUT; 1m]

Of prune and stats:
  --remote                prune the bucket by --expiry, or say what is in it

Of prune:
  --min-age=TIME          what was used within it stays  [1h]
  --dry-run               say what would go, remove nothing

Of verify:
  --sha256                check bodies by SHA-256 too, not by xxh3 alone
  --repair                remove what is wrong

Of flush:
  --timeout=TIME          give up after so long, exit 1 if something remains

Of prune, verify and stats:
  --json                  print JSON

In brackets: the variable that does the same, and the default.
Topics: {topics}.
"""

TOPICS = {
    "configure": """\
Everything can be set by flag or by variable; a flag beats its variable, and an empty variable
counts as unset. Flags take one or two dashes, --flag=value or --flag value; a boolean is --flag or
--flag=true|false|1|0|t|f. The least for a shared cache is a bucket:

  export GOCACHEPROG=go-cache-plugin GOCACHE_S3_BUCKET=my-bucket
  go build ./...

--layout says how entries lie in the bucket. With bundles (auto, bundles, both) a session leaves what
it used as the working set of its scope, by default main module, platform and branch, and the next
one in that scope fetches it before the go command asks.

Credentials and region come from where every AWS program takes them: variables, ~/.aws, the
instance's role. For MinIO, R2, GCS and the like give --s3-endpoint-url, and --s3-path-style where
bucket names are no host names.
""",
    "environment": """\
{variables}
AWS_REGION, AWS_PROFILE, AWS_ACCESS_KEY_ID and the other AWS_ variables mean what they mean to every
AWS program. XDG_CACHE_HOME moves the user's cache directory, TMPDIR the directory where a session
puts what a full disk does not take.
""",
    "direct-mode": """\
The go command starts the program, one process for each build:

  GOCACHEPROG="go-cache-plugin --bucket my-bucket" go build ./...

Hits are answered from the cache directory. What is not there is fetched from the bucket, checked
against its SHA-256 and kept. What the build makes is stored, answered, and uploaded in the
background. Trouble with S3 never fails a build: it is one warning, and the entry is built again.

What is to be uploaded is noted in the cache directory until the bucket has it. --upload=wait has
the go command wait for that (--drain-timeout bounds it), --upload=background goes on without it,
--upload=off leaves it. What remains is uploaded after a later session on that directory, or by

  go-cache-plugin flush --timeout=5m

the last step of a CI job whose machine is thrown away. It exits 1 if something remains.

The directory is kept small by cron, or at most once an hour by sessions given the same bounds
(GOCACHE_EXPIRY, GOCACHE_MAX_SIZE):

  17 4 * * *  go-cache-plugin prune --expiry=720h --max-size=20GB >/dev/null

What was used within --min-age, and what waits for upload, stays. Builds may run meanwhile, as with
all commands. The bucket is kept small in the same way, by one machine:

  27 4 * * *  go-cache-plugin prune --remote --expiry=720h >/dev/null

  go-cache-plugin stats              what is there, how old, and the hit rates of the last sessions
  go-cache-plugin verify --repair    read all of it and remove what is wrong; exit 1 if anything was
""",
    "serve-mode": """\
One server for many go commands has its workers, credentials and metrics in one place:

  go-cache-plugin serve --plugin 5151 --bucket my-bucket --http :5152 &
  GOCACHEPROG="go-cache-plugin connect 5151" go build ./...

connect hands the go command's stdin and stdout to the server over a Unix socket (Linux), or copies
between them and 127.0.0.1:5151; any program that copies bytes to that port can be used in its
place. Bucket and cache directory are the server's; --scope and --metrics are those of connect. With
--cache-dir connect serves by itself when there is no server; without, it exits 1.

Close does not wait for uploads: they go on in the server. On SIGINT or SIGTERM it takes no more
clients, lets those that are there finish for --stop-timeout, uploads what is due (--drain-timeout
bounds that), and exits 0. A second signal ends it at once; the next server, or flush, uploads the rest.

Other users than the server's own and root are turned away, unless --allow-other-users is given.

--http: /healthz, /metrics (Prometheus), /debug/vars (JSON).
""",
    "module-proxy": """\
serve --modproxy gives Go modules to any number of go commands, from its disk, the bucket, or the
proxies that --modproxy-upstream lists; without --plugin it does nothing else:

  go-cache-plugin serve --http 0.0.0.0:5152 --modproxy --bucket my-bucket &
  export GOPROXY=http://HOST:5152/mod
  export GOSUMDB='sum.golang.org http://HOST:5152/mod/sumdb/sum.golang.org'

The second variable is not needed: the go command asks the checksum database through its GOPROXY.

What never changes (the files of a version, records and tiles of a checksum database) is asked for
once and kept. Lists, @latest and branches are asked for again after --modproxy-max-age, and where
upstream is down the last good copy is given, so a warm cache works without it; with
--modproxy-upstream=off it asks nobody. Before a version is kept or given whole, its zip and go.mod are
compared with the checksum database; what is not right is refused.

Modules that no checksum database knows are named by --nosumdb (or GONOSUMDB, GOPRIVATE, as the go
command has them): for others, the databases of --sumdb are asked by their names. Machines that take
private modules from elsewhere set GOPRIVATE, and do not ask here for them.

Without the flags, upstream is what GOPROXY or go env say when it starts.
""",
    "reverse-proxy": "The reverse proxy (serve --revproxy) is not supported yet.\n",
    "debug": """\
--debug is a sum of 1 (build cache), 2 (module proxy) and 4 (reverse proxy, which is not supported
yet). With 1, each answer and each request to S3 that failed is logged to stderr with the time to the
microsecond; with 2, each request for a module file and its answer. --debug implies -v, and -v implies
--metrics.
""",
}
