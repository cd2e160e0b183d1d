"""A plugin file with a stage of several ranks that needs no torch, used by tests of processes."""

from __future__ import annotations

import os
import signal
import time

import feebcore as feeb
from feebcore.errors import FeebError, Interrupted
from feebcore.files import write_json
from feebcore.train.parallel_config import ParallelConfig


class CrowdConfig(feeb.StageConfig):
    device: feeb.Execution[str] = "cpu"
    parallel: feeb.Execution[ParallelConfig] = ParallelConfig()
    seconds: feeb.Execution[float] = 0.0
    to_save: feeb.Execution[float] = 0.0
    crash: feeb.Execution[str] = ""
    culprit: feeb.Execution[int] = -1

    def num_processes(self):
        return self.parallel.num_processes(self.device)


@feeb.hookimpl
def feeb_stages():
    yield feeb.StageSpec("crowd", CrowdConfig, build="toy_ranks:crowd", process="worker", summary="Ranks that wait for each other.")


def crowd(section, inputs, out):
    """Ranks work for some seconds; the culprit crashes, whereupon the others, which wait for it, fail too or hang."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    out.log(f"rank {rank} pid {os.getpid()}")
    (out.path / f"pid-{rank}").write_text(str(os.getpid()))
    print(f"hello from {rank}", flush=True)
    until = time.time() + section.seconds
    while time.time() < until or (section.culprit not in (-1, rank) and section.crash):
        if out.stop_requested and section.culprit == rank:  # as one does that is asked while it still imports
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        if out.stop_requested:
            time.sleep(section.to_save)
            write_json(out.path / f"saved-{rank}.json", {})
            raise Interrupted(f"rank {rank} has saved")
        if section.crash == "in turn" and (out.path / "gone").exists():
            raise RuntimeError("connection closed by peer")
        time.sleep(0.02)
    if section.culprit == rank:
        if section.crash == "signal":
            os.kill(os.getpid(), signal.SIGKILL)
        if section.crash == "told":
            raise FeebError("the text is too short; add documents")
        try:
            raise ValueError("as asked")
        finally:
            (out.path / "gone").touch()
    if rank == 0:
        write_json(out.path / "crowd.json", {"world": world, "threads": os.environ.get("OMP_NUM_THREADS")})
        out.content("crowd.json")
    return {"world": world, "rank": rank}
