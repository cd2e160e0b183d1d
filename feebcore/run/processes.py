"""A stage in processes of its own: one worker, or as many ranks as the section's `parallel` says.

What holds for one holds for all: they end when this process is gone, however it went (each watches a pipe that closes
then); they are asked to stop together; the first failure ends the others. The log of rank 0 is log.txt, of others
rank-1.log and so on.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import StageOutput
from feebcore.config import StageConfig
from feebcore.errors import ArtifactError, Diverged, FeebError, Interrupted, StageFailed
from feebcore.files import read_json, wait_for_lock
from feebcore.hardware import available_cpus

Publish = Callable[[dict[str, Any]], None]
"""Takes one event of a stage: {"time": …, "kind": "log" or "progress" …}."""

SECONDS_TO_SAVE = 10.0
"""Seconds that a worker has to save when it is asked to stop."""

SAME_REQUEST = 1.0
"""Seconds in which several signals are one request to stop."""

SECONDS_TO_FOLLOW = 3.0
"""Seconds that ranks have to end by themselves when one has failed."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "FEEB_RENDEZVOUS")


def run_in_processes(place: Path, section: StageConfig, out: StageOutput, publish: Publish) -> dict[str, Any]:
    """Run the worker on the folder and pass its events on; the return code decides.

    Raises Interrupted, or StageFailed (or ArtifactError, or Diverged) with what the failing rank said, its traceback where there are several.
    """
    ranks = num_ranks(section)
    with contextlib.ExitStack() as stack:
        reader, writer = os.pipe()  # the workers end when this pipe closes: their parent is gone, however it went
        ends = [reader, writer]
        stack.callback(_close_all, ends)
        lock = stack.enter_context(_exclusive(place, publish))
        for name in ("result.json", *(f.name for f in place.glob("rank-*.json"))):
            (place / name).unlink(missing_ok=True)
        environments = stack.enter_context(_environments(ranks))
        logs = [stack.enter_context(open(place / log_name(rank), "ab")) for rank in range(ranks)]
        tail = _Tail(place / "events.jsonl", publish)
        stack.callback(tail.stop)
        workers = Workers([sys.executable, "-P", "-m", "feebcore.run.worker", str(place), str(reader), str(lock)], environments, logs, (reader, lock))
        os.close(ends.pop(0))
        tail.start()
        codes = workers.wait(out)
    if not any(codes):
        result = read_json(place / "result.json")
        out.content(*result["content"])
        return result["metrics"]
    raise _failure(place, codes, workers.killed, out)


def _close_all(handles: Sequence[int]) -> None:
    for handle in handles:
        os.close(handle)


def num_ranks(section: StageConfig) -> int:
    """How many processes the stage runs as on this machine. Raises FeebError where GPUs cannot be counted."""
    if number := section.num_processes():
        return number
    count = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]  # torch stays out of this process
    done = subprocess.run(count, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FeebError(f"parallel: GPUs cannot be counted, set parallel.ranks; torch says: {done.stderr.strip().splitlines()[-1:]}")
    return max(1, int(done.stdout))


def log_name(rank: int) -> str:
    return "log.txt" if rank == 0 else f"rank-{rank}.log"


def outcome_name(rank: int) -> str:
    """The file in which a rank says how it ended; others than rank 0 do so only when they failed."""
    return "result.json" if rank == 0 else f"rank-{rank}.json"


_RUNNING: set[Any] = set()
AT_WORK: set[StageOutput] = set()
"""Outputs of stages that run inside this process."""


def stop_running(kill: bool = False) -> bool:
    """Ask every stage at work to save and end, as a signal asks the one of the main thread; who has been asked is not asked
    again. kill: workers end at once. Returns whether there was one."""
    for workers in list(_RUNNING):
        if kill or not workers.asked:
            workers.ask()
    for out in list(AT_WORK):
        out.stop_requested = True
    return bool(_RUNNING or AT_WORK)


@contextlib.contextmanager
def running(worker: Any) -> Iterator[None]:
    """While the block runs, `stop_running` asks `worker` too: it has `asked` and `ask()`, as Workers has."""
    _RUNNING.add(worker)
    try:
        yield
    finally:
        _RUNNING.discard(worker)


class Workers:
    """Processes that run the same command and live and die together."""

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]], logs: Sequence[Any], pass_fds: Sequence[int]) -> None:
        self.killed: set[int] = set()  # by us
        self.processes: list[subprocess.Popen[bytes]] = []
        self.deadline = float("inf")
        self.asked = False
        try:
            for environment, log in zip(environments, logs, strict=True):
                self.processes.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        pass_fds=tuple(pass_fds),
                        start_new_session=True,
                        env=environment,
                    )
                )
        except BaseException:
            self.kill()
            raise

    def alive(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes) if process.poll() is None]

    def wait(self, out: StageOutput) -> list[int]:
        """Return codes once all have ended. SIGINT and SIGTERM are passed on as SIGTERM: the workers get SECONDS_TO_SAVE seconds; a
        second one kills them. Once one has failed, the others have SECONDS_TO_FOLLOW seconds."""
        first: float | None = None

        def on_signal(number: int, frame: Any) -> None:
            nonlocal first
            if first is not None and time.monotonic() - first < SAME_REQUEST:
                return
            first = first or time.monotonic()
            self.ask()

        main = threading.current_thread() is threading.main_thread()
        old = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
        failed = False
        _RUNNING.add(self)
        try:
            while alive := self.alive():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.processes[alive[0]].wait(timeout=0.2)
                codes = [process.returncode for process in self.processes if process.poll() is not None]
                if any(codes) and not failed:
                    failed = True
                    stopping = all(code in (0, 130) for code in codes)
                    self.deadline = min(self.deadline, time.monotonic() + (SECONDS_TO_SAVE if stopping else SECONDS_TO_FOLLOW))
                out.stop_requested = out.stop_requested or self.asked
                if time.monotonic() > self.deadline:
                    self.kill()
            out.stop_requested = out.stop_requested or self.asked
            return [process.returncode for process in self.processes]
        finally:
            _RUNNING.discard(self)
            for n, handler in old.items():
                signal.signal(n, handler)
            self.kill()  # after an exception in this thread, and what they have left behind

    def ask(self) -> None:
        """SIGTERM to all, with SECONDS_TO_SAVE seconds to end in; asked again, none."""
        self.deadline = 0.0 if self.asked else time.monotonic() + SECONDS_TO_SAVE
        self.asked = True
        for rank in self.alive():
            self.processes[rank].send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once, with whatever they have started, also by those that have ended: such a process would hold the GPU."""
        self.killed.update(self.alive())
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _exclusive(folder: Path, publish: Publish) -> Iterator[int]:
    """A lock that no other worker at this folder holds any more; workers inherit it and hold it until the last has ended.

    One whose parent was killed may still be saving, for some seconds.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        text = "workers of an earlier run are still saving; waiting for them"
        with contextlib.suppress(OSError):  # a file system without locks on folders
            wait_for_lock(handle, lambda: publish({"kind": "log", "time": time.time(), "text": text}), poll=0.1)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def _environments(ranks: int) -> Iterator[list[dict[str, str]]]:
    """The environment of every rank. They meet through a file on this machine; CPU threads are shared out among them."""
    base = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES} | {"PYTHONIOENCODING": "utf-8:backslashreplace"}  # logs are UTF-8
    if ranks == 1:
        yield [base]
        return
    base = {"OMP_NUM_THREADS": str(max(1, available_cpus() // ranks)), "GLOO_SOCKET_IFNAME": "lo"} | base
    folder = tempfile.mkdtemp(prefix="feeb-ranks-")
    try:
        common = base | {"WORLD_SIZE": str(ranks), "FEEB_RENDEZVOUS": f"{folder}/meet"}
        yield [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _failure(place: Path, codes: Sequence[int], killed: set[int], out: StageOutput) -> FeebError:
    """What to say of ranks that did not all end well: of the one that failed first, as the others fail for want of it."""
    said = {rank: read_json(place / outcome_name(rank)) for rank in range(len(codes)) if (place / outcome_name(rank)).exists()}
    said = {rank: outcome for rank, outcome in said.items() if "error" in outcome}
    if out.stop_requested and not any(outcome["error"] == "Interrupted" for outcome in said.values()):
        return Interrupted(f"stage {place.parent.name} was stopped; what it had saved is kept, run the same command again to continue")
    asked = (0, -signal.SIGTERM) if out.stop_requested else (0,)  # one that was asked before it had a handler
    died = [rank for rank, code in enumerate(codes) if code not in asked and rank not in said and rank not in killed]
    failed = [rank for rank in sorted(said, key=lambda r: said[r]["time"]) if said[rank]["error"] != "Interrupted"]
    several = len(codes) > 1
    for rank in [*died, *failed, *said][:1]:
        log = place / log_name(rank)
        who = f"rank {rank} of {len(codes)}" if several else "the worker"
        if rank not in said:
            how = how_it_ended(codes[rank])
            text = log.read_text(errors="replace").strip().splitlines()
            return StageFailed(f"{place.parent.name}: {who} {how}; log {log}:\n" + "\n".join(text[-20:]))
        outcome = said[rank]
        kind = {"Interrupted": Interrupted, "ArtifactError": ArtifactError, "Diverged": Diverged}.get(outcome["error"], StageFailed)
        if kind is Interrupted:
            return Interrupted(outcome["message"])
        message = f"{who}: {outcome['message']}" if several else outcome["message"]
        trace = f":\n{outcome['traceback'].rstrip()}" if several and outcome["traceback"] else ""
        sentence = f"{message}{memory_hint(message)} (log: {log}){trace}"
        return StageFailed(sentence, None if trace else log) if kind is StageFailed else kind(sentence)
    return StageFailed(f"{place.parent.name}: the ranks did not end in time after one had; logs in {place}")


_OUT_OF_MEMORY = re.compile(r"out of memory|could not create a primitive|bad_alloc|can'?t allocate memory|cannot allocate memory|MemoryError", re.IGNORECASE)


def memory_hint(message: str) -> str:
    """What to do, where an error says in one of its ways that memory is short; else ''."""
    return "; usually out of memory: lower batch_size or set micro_batch, and run again" if _OUT_OF_MEMORY.search(message) else ""


def how_it_ended(code: int) -> str:
    """What a return code says of a process that has said nothing itself."""
    if code >= 0:
        return f"ended with status {code}"
    return f"was killed by signal {-code}" + (memory_hint("out of memory") if code == -signal.SIGKILL else "")


class _Tail(threading.Thread):
    """Follows a JSONL file and hands each new row on, in a thread of its own."""

    def __init__(self, path: Path, publish: Publish) -> None:
        super().__init__(daemon=True)
        self._path, self._publish, self._done = path, publish, threading.Event()
        self._position = path.stat().st_size if path.exists() else 0

    def run(self) -> None:
        while not self._done.wait(0.2):
            self._read()
        self._read()

    def _read(self) -> None:
        with open(self._path, "rb") as stream:
            stream.seek(self._position)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                self._publish(row)

    def stop(self) -> None:
        self._done.set()
        if self.is_alive():
            self.join()
