"""Builds for minutes, beside prunes, kills and failures of S3: all pass, and nothing is lost."""

import copy
import random
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter

import pytest

import s3servers
from faulty_proxy import FaultyProxy
from helpers import DEADLINE_S, PROGRAM, Plugin, b64, kill, output_id, proc, write_module

PACKAGES = 12
FUNCTIONS = 20  # of each package, so that its compilation takes a while
S3_FAILURES = 0.05
BUILD_S = 300
PRUNE_EVERY_S = 5
PRUNE = ("prune", "--max-size=20M", "--min-age=2m")
# Of the processes: a word of their command lines.
ROLES = {"front": "--cache-dir", "pool": "pool.supervisor", "uploader": "pool.uploader"}


def package(number: int, value: int) -> dict:
    functions = "".join(
        f"\n// F{n} multiplies.\nfunc F{n}(a int) int {{ return a * {value + n} }}\n"
        for n in range(FUNCTIONS)
    )
    head = f"package p{number}\n\n// V is the value.\nfunc V() int {{ return {value} }}\n"
    return {f"p{number}/p.go": head + functions}


def program() -> dict:
    imports = "".join(f'\t"example.com/soak/p{number}"\n' for number in range(PACKAGES))
    calls = ", ".join(f"p{number}.V()" for number in range(PACKAGES))
    return {
        "go.mod": "module example.com/soak\n\ngo 1.24\n",
        "main.go": f"package main\n\nimport (\n{imports})\n\nfunc main() {{ println({calls}) }}\n",
    }


class Soak:
    """One machine that builds a program whose packages change, and sometimes a fresh machine.

    ``faults``: what went wrong, in words. ``counts``: builds by outcome, and other events.
    """

    def __init__(self, go, flags, seed: int) -> None:
        self.faults, self.counts = [], Counter()
        self._go, self._flags = go, flags
        self._random = random.Random(seed)
        self._values = [0] * PACKAGES
        shutil.rmtree(go.module)
        write_module(go.module, program())
        for number in range(PACKAGES):
            self._change(number, number)

    def _change(self, number: int, value: int) -> None:
        self._values[number] = value
        write_module(self._go.module, package(number, value))

    def change_some(self) -> None:
        """Give a few packages a value that is new, or one that they had before."""
        for number in self._random.sample(range(PACKAGES), self._random.randint(0, 4)):
            is_new = self._random.random() < 0.7
            self._change(number, self._random.randrange(10**6) if is_new else number)

    def step(self) -> None:
        self.change_some()
        if self._random.random() < 0.12:
            self.build_on_fresh_machine()
        else:
            mode = self._random.choice(["wait", "background", "off"])
            self.build(self._go, f"--upload={mode}", with_kill=self._random.random() < 0.5)
        if self._random.random() < 0.1:
            self.command("flush", "--timeout=30s", may_fail=True)

    def build_on_fresh_machine(self):
        fresh = copy.copy(self._go)
        fresh.cache_dir = self._go.cache_dir.with_name("fresh")
        shutil.rmtree(fresh.cache_dir, ignore_errors=True)
        self.build(fresh, "--read-only", with_kill=False)
        return fresh

    def build(self, go, flag: str, with_kill: bool) -> None:
        go.plugin = [*self._flags, flag]
        binary = go.module.with_name("program")
        process = go.start("build", "-o", str(binary), ".")
        victim = self._kill_one() if with_kill else ""
        self.counts[f"killed: {victim or 'none'}"] += 1
        try:
            stdout, stderr = process.communicate(timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            self.faults.append(f"a build hangs; {flag}, killed: {victim}")
            return
        if process.returncode and victim == "front":
            self.counts["builds that failed with their front"] += 1
            return
        said = (stdout + stderr)[-600:]
        if process.returncode:
            self.faults.append(f"a build fails; {flag}, killed: {victim}: {said}")
        elif any(word in said for word in ("Traceback", "internal error", "unexpected error")):
            self.faults.append(f"an alarming message; {flag}, killed: {victim}: {said}")
        else:
            self.counts["builds that passed"] += 1
            got = subprocess.run([str(binary)], capture_output=True, text=True).stderr.split()
            if got != [str(value) for value in self._values]:
                self.faults.append(f"a wrong program: {got} in place of {self._values}")

    def _kill_one(self) -> str:
        """Kill a random process of the plugin at a random moment; returns what it was."""
        time.sleep(self._random.random() * 1.5)
        running = [
            (pid, role)
            for role, word in ROLES.items()
            for pid in self._go.processes.running(word)
            if b"go-cache-plugin" in proc(pid, "cmdline") or b"cacheplugin" in proc(pid, "cmdline")
        ]
        running = [(pid, role) for pid, role in running if b"prune" not in proc(pid, "cmdline")]
        if not running:
            return ""
        pid, role = self._random.choice(running)
        kill(pid)
        return role

    def command(self, *argv, may_fail: bool = False) -> str:
        command = [PROGRAM, argv[0], f"--cache-dir={self._go.cache_dir}", *argv[1:]]
        done = subprocess.run(
            command, env=self._go.environ(), capture_output=True, text=True, timeout=BUILD_S
        )
        text = done.stdout + done.stderr
        self.counts[f"{argv[0]}: exit status {done.returncode}"] += 1
        if (done.returncode and not may_fail) or "Traceback" in text:
            self.faults.append(f"{' '.join(argv)}: exit status {done.returncode}: {text}")
        return text

    def prune_until(self, stop: threading.Event) -> None:
        while not stop.wait(PRUNE_EVERY_S):
            self.command(*PRUNE)

    def lost(self, tmp_path) -> list:
        """The actions of this machine that a fresh one does not find in the bucket."""
        fresh = tmp_path / "reader"
        argv = [f"--cache-dir={fresh}", *self._flags, "--read-only"]
        plugin = Plugin(argv, self._go.processes.environ(), tmp_path / "stderr-reader").hello()
        actions = [path.name for path in self._go.cache_dir.glob("action/*/*")]
        numbers = {action: plugin.get(action) for action in actions}
        answers = {action: plugin.answer(number) for action, number in numbers.items()}
        for answer in answers.values():
            if "DiskPath" in answer:
                with open(answer["DiskPath"], "rb") as file:
                    assert b64(output_id(file.read())) == answer["OutputID"]
        plugin.finish()
        plugin.kill()
        return [action for action, answer in answers.items() if "DiskPath" not in answer]


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("layout", ["objects", "bundles"])
def test_builds_pass_and_nothing_is_lost(request, go, versitygw_server, tmp_path, layout):
    bucket = s3servers.Bucket(versitygw_server, f"bucket-{uuid.uuid4().hex[:12]}")
    proxy = FaultyProxy(versitygw_server.url, S3_FAILURES, seed=1)
    flags = s3servers.Server(proxy.url).flags(bucket.name, layout)
    soak = Soak(go, [*flags, "--scope=soak"], seed=1)
    stop = threading.Event()
    pruner = threading.Thread(target=soak.prune_until, args=(stop,))
    try:
        soak.build(go, "--upload=wait", with_kill=False)
        pruner.start()
        end = time.monotonic() + request.config.getoption("--soak-s")
        while time.monotonic() < end:
            soak.step()
        stop.set()
        pruner.join()
        proxy.rate = 0
        soak.command("flush", "--timeout=60s")
        soak.command("verify", "--sha256")
        fresh = soak.build_on_fresh_machine()
        assert any(fresh.cache_dir.glob("output/*/*"))
        lost = soak.lost(tmp_path)
    finally:
        stop.set()
        if pruner.is_alive():
            pruner.join(DEADLINE_S)
        proxy.stop()
    print(dict(soak.counts), dict(proxy.counts))
    assert not soak.faults, "\n".join(soak.faults)
    # A front that is killed may leave an entry of which go has no answer, and which is not spooled.
    assert len(lost) <= soak.counts["killed: front"], lost
