"""Module files, served by the module proxy, by nginx and by ``python -m http.server``."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager

from .lab import go_environment
from .rivals import OURS, PLUGIN
from .runner import Failed
from .webclient import Client

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))
from modules import go_module, many_modules, newest, program

__all__ = ["HTTP_SERVER", "NGINX", "Site", "go_module", "many_modules"]
EXTENSIONS = (".info", ".mod", ".zip")
NGINX, HTTP_SERVER = "nginx", "http.server"
_READY_S = 30
_DOWNLOAD_S = 120
_NGINX = """\
daemon off; master_process off; pid {work}/nginx.pid; error_log {work}/nginx.log;
events {{ worker_connections 256; }}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    default_type application/octet-stream;
    client_body_temp_path {work}/nginx-temp; proxy_temp_path {work}/nginx-temp;
    fastcgi_temp_path {work}/nginx-temp; uwsgi_temp_path {work}/nginx-temp;
    scgi_temp_path {work}/nginx-temp;
    server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class Server:
    """A running server; ``prefix`` comes before the path of each file."""

    def __init__(self, name: str, pid: int, port: int, prefix: str) -> None:
        self.name, self.pid, self.port, self.prefix = name, pid, port, prefix

    @property
    def url(self) -> str:
        """The server's GOPROXY."""
        return f"http://127.0.0.1:{self.port}{self.prefix}"


class Site:
    """A directory with modules, both as a tree for GOPROXY=file:// and in the module proxy's cache.

    A project in it requires the newest version of each of ``modules``, but none of ``besides``.
    """

    def __init__(self, root: str, modules, besides=()) -> None:
        self._root = root
        self._tree, self._cache = os.path.join(root, "tree"), os.path.join(root, "cache")
        self._project = os.path.join(root, "project")
        self._downloads = 0
        self.file_url = f"file://{self._tree}"
        self._fill([*modules, *besides])
        os.makedirs(self._project)
        for name, text in program(newest(modules)).items():
            with open(os.path.join(self._project, name), "w") as file:
                file.write(text)
        self.download(self.file_url)  # writes go.sum

    def _fill(self, modules) -> None:
        for module in modules:
            directory = os.path.join(self._tree, module.escaped, "@v")
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/list", "a") as file:
                file.write(f"{module.version}\n")
            for extension in EXTENSIONS:
                with open(self._tree + module.url_path(extension), "wb") as file:
                    file.write(getattr(module, extension[1:]))
        with (
            self._http_server() as upstream,
            self._proxy(upstream.url) as proxy,
            closing(Client(proxy.port)) as client,
        ):
            for module in modules:
                for extension in EXTENSIONS:
                    client.get(proxy.prefix + module.url_path(extension))

    def download(self, proxy: str) -> dict:
        """The metrics of ``go mod download`` from a GOPROXY into an empty module cache."""
        self._downloads += 1
        cache = os.path.join(self._root, f"gomodcache-{self._downloads}")
        env = go_environment(os.path.join(self._root, "gocache"))
        env |= {"GOPROXY": proxy, "GOMODCACHE": cache, "GONOSUMDB": "*", "GOENV": "off"}
        env |= {"GOFLAGS": "-modcacherw"}
        begin = time.perf_counter()
        done = subprocess.run(
            ["go", "mod", "download"],
            env=env,
            cwd=self._project,
            timeout=_DOWNLOAD_S,
            capture_output=True,
            text=True,
        )
        wall_s = time.perf_counter() - begin
        if done.returncode:
            raise Failed(f"go mod download: {done.stderr[-300:]}")
        found = os.walk(os.path.join(cache, "cache", "download"))
        return {
            "wall_s": wall_s,
            "modules": sum(n.endswith(".zip") for *_, names in found for n in names),
        }

    @contextmanager
    def servers(self):
        """{name: Server} for the context: the module proxy, http.server, and nginx if on PATH."""
        with self._proxy("off") as ours, self._http_server() as plain:
            found = {OURS: ours, HTTP_SERVER: plain}
            if not shutil.which("nginx"):
                yield found
                return
            with self._nginx() as nginx:
                yield {NGINX: nginx, **found}

    @contextmanager
    def _proxy(self, upstream: str):
        command = [PLUGIN, "serve", "--modproxy", "--sumdb=off", f"--modproxy-upstream={upstream}"]
        command.append(f"--cache-dir={self._cache}")
        with self._server(
            OURS, lambda port: [*command, f"--http=127.0.0.1:{port}"], "/mod"
        ) as server:
            server.pid = _http_process(server.pid)
            yield server

    def _http_server(self):
        command = [sys.executable, "-m", "http.server", "--bind=127.0.0.1", "--protocol=HTTP/1.1"]
        command.append(f"--directory={self._tree}")
        return self._server(HTTP_SERVER, lambda port: [*command, str(port)])

    def _nginx(self):
        config = os.path.join(self._root, "nginx.conf")

        def command(port):
            with open(config, "w") as file:
                file.write(_NGINX.format(work=self._root, port=port, root=self._tree))
            return ["nginx", "-p", self._root, "-c", config]

        return self._server(NGINX, command)

    @contextmanager
    def _server(self, name, command, prefix=""):
        """A Server that ``command(port)`` starts at a free port; its output goes to NAME.log."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.makedirs(self._root, exist_ok=True)
        with open(os.path.join(self._root, f"{name}.log"), "wb") as log:
            process = subprocess.Popen(
                command(port), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            _wait_until_ready(process, port)
            yield Server(name, process.pid, port, prefix)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _http_process(server: int) -> int:
    """The process id of the HTTP process of the server with process id ``server``."""
    with open(f"/proc/{server}/task/{server}/children") as file:
        children = file.read().split()
    for child in children:
        with open(f"/proc/{child}/cmdline", "rb") as file:
            if b"cacheplugin.web.process" in file.read():
                return int(child)
    raise Failed("the server has no HTTP process")


def _wait_until_ready(process, port) -> None:
    """Wait for the first answer: the module proxy listens before its HTTP process runs."""
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), _READY_S) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if sock.recv(1):
                    return
        except ConnectionError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{process.args[0]} does not start")
        time.sleep(0.01)
