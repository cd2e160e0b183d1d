"""The standard run: the same small model with one part exchanged, for every part of docs/parts.md.

    python benchmarks/standard_run.py [--only kind/name …] [--quick] [--seeds 3] [--workers 2] [--out docs/standard-run.json]

A byte model of a quarter of a million parameters learns the source of the standard library without its tests: the same
windows in the same order for every part of a seed, uncompiled, fp32, one thread a run, and is then scored on files that it
did not see. Next to every eighth step of a run the baseline takes one too, on the same thread, so that tokens a second have a
measure that other work on the machine disturbs alike. Of the baseline's rate four values were tried, of nothing else.

A part that fails is a row that says why: it raised, diverged, has over a million parameters or trained for over 30 s.
Every run is written when it ends, so what was interrupted goes on where it stopped, and rows that failed are tried again.
`make docs` then writes docs/parts.md. --quick: eight steps and one seed, kept only where --out says.

The whole takes about twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import hashlib
import json
import math
import os
import platform
import queue
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "standard-run.json"
COMMAND = "python benchmarks/standard_run.py"

KEYS = {
    "attentions": "attention",
    "feedforwards": "feedforward",
    "norms": "norm",
    "positions": "position",
    "blocks": "block",
    "stacks": "stack",
    "embeddings": "embedding",
    "lm_heads": "lm_head",
    "initializations": "initialization",
}
"""Extension points of a model's parts, and the key of each in an architecture."""
KINDS = (*KEYS, "objectives", "optimizers", "schedules")
SIZES = {"num_layers": 4, "d_model": 64, "num_heads": 4}
VOCABULARY, WINDOW, BATCH, STEPS, QUICK_STEPS = 256, 128, 8, 100, 8
SCORED = 64  # validation batches
CLIP = 1.0
MOST_PARAMETERS, MOST_SECONDS = 1_000_000, 30.0
BESIDE_EVERY = 8  # steps of the part between two of the baseline
TEACHER = "the baseline, trained with seed 100"
TEACHER_SEED = 100

BASELINE: dict[str, dict[str, Any]] = {
    "attentions": {"name": "mha"},
    "feedforwards": {"name": "gelu"},
    "norms": {"name": "rmsnorm"},
    "positions": {"name": "rope"},
    "blocks": {"name": "prenorm"},
    "stacks": {"name": "sequential"},
    "embeddings": {"name": "standard"},
    "lm_heads": {"name": "linear"},
    "initializations": {"name": "normal"},
    "objectives": {"name": "next_token"},
    "optimizers": {"name": "adamw", "lr": 3e-3},  # in 200 steps 6e-3 gave 3.43 instead of 3.48 bits, with a larger variance over three seeds
    "schedules": {"name": "cosine", "warmup_fraction": 0.1},
}

OPTIONS: dict[str, dict[str, Any]] = {
    # smaller than the defaults, or needed by so short a run
    "attentions/gqa": {"num_kv_heads": 2},
    "attentions/sliding_window": {"window": 32},
    "attentions/local_global": {"window": 32, "pattern": "LLLG"},
    "feedforwards/product_key_memory": {"num_keys": 32, "heads": 2, "top_k": 8, "key_dim": 32},
    "feedforwards/peer": {"num_keys": 32, "heads": 4, "top_k": 8, "key_dim": 32},
    "feedforwards/ultramem": {"num_keys": 32, "heads": 2, "top_k": 8, "key_dim": 32},
    "embeddings/factorized": {"rank": 16},
    "embeddings/hash_ngrams": {"sizes": [3, 4, 5], "buckets": 2000},
    "lm_heads/factorized": {"rank": 16},
    "lm_heads/multi_token": {"num_mtp": 1},
    "objectives/selective": {"reference": TEACHER},
    "objectives/distillation": {"teacher": TEACHER},
    # learning rates that benchmarks/optimizers.py found on a model twice as wide
    "optimizers/adam": {"lr": 3e-3},
    "optimizers/sgd": {"lr": 0.3},
    "optimizers/lion": {"lr": 5e-4},
    "optimizers/adafactor": {"lr": 0.03},
    "optimizers/ademamix": {"lr": 3e-3},
    "optimizers/schedule_free": {"lr": 6e-3},
    "optimizers/soap": {"lr": 3e-3},
    "optimizers/grokfast": {"optimizer": {"name": "adamw", "lr": 2e-3}},
} | {f"schedules/{name}": {"warmup_fraction": 0.1} for name in ("constant", "linear", "wsd", "wsd_s", "inverse_sqrt", "one_minus_sqrt", "exponential", "power")}

WITH: dict[str, dict[str, dict[str, Any]]] = {
    # parts that require another part
    "lm_heads/multi_token": {"objectives": {"name": "multi_token", "k": 2}},
    "lm_heads/multi_token_sequential": {"objectives": {"name": "multi_token", "k": 2}},
    "objectives/multi_token": {"lm_heads": {"name": "multi_token", "num_mtp": 1}},
    "optimizers/schedule_free": {"schedules": {"name": "constant", "warmup_fraction": 0.1}},
}

NOTES = {
    "objectives/completion_only": "the second half of each sequence is the completion",
    "positions/rope_linear": "meant for sequences longer than in training",
    "positions/rope_ntk": "meant for sequences longer than in training",
    "positions/rope_yarn": "meant for sequences longer than in training",
    "positions/rope_llama3": "meant for sequences longer than in training",
}


def settings(steps: int = STEPS) -> dict[str, Any]:
    """What all runs share; results of other settings do not stand in one table."""
    return {
        "sizes": SIZES,
        "vocabulary": VOCABULARY,
        "window": WINDOW,
        "batch": BATCH,
        "steps": steps,
        "scored_bytes": SCORED * BATCH * WINDOW,
        "clip": CLIP,
        "baseline": BASELINE,
    }


def chosen(kind: str, name: str) -> dict[str, dict[str, Any]]:
    """A part for every kind: those of the baseline, but for this one and what it needs."""
    label = f"{kind}/{name}"
    if kind == "baseline" or BASELINE[kind]["name"] == name:
        return BASELINE
    return BASELINE | {kind: {"name": name, **OPTIONS.get(label, {})}} | WITH.get(label, {})


def architecture(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"name": "transformer", **SIZES, **{key: parts[kind] for kind, key in KEYS.items()}}


def own_options(kind: str, name: str) -> dict[str, Any]:
    """What was chosen for a part in addition to its defaults, with the parts it was given."""
    label = f"{kind}/{name}"
    return OPTIONS.get(label, {}) | {KEYS.get(other, other.removesuffix("s")): part for other, part in WITH.get(label, {}).items()}


# --- one run --------------------------------------------------------------------------------------------------------


@functools.cache
def texts() -> tuple[Any, Any, str]:
    """Bytes for training and, every 20th file, for scoring, and a digest of both."""
    import numpy as np

    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "__pycache__"}
    files = sorted((f for f in root.rglob("*.py") if not left_out & set(f.relative_to(root).parts)), key=lambda f: f.relative_to(root).as_posix())
    content = [f.read_bytes() for f in files]
    kept = [b"".join(c for i, c in enumerate(content) if i % 20), b"".join(content[::20])]
    digest = hashlib.sha256(b"\0".join(kept)).hexdigest()[:16]
    return np.frombuffer(kept[0], np.uint8), np.frombuffer(kept[1], np.uint8), digest


def batch_of(data: Any, seed: int, objective: str = "") -> Any:
    """BATCH windows at random places."""
    import numpy as np
    import torch

    from feebcore.protocols import Batch

    starts = np.random.default_rng(seed).integers(0, len(data) - WINDOW - 1, BATCH)
    rows = torch.from_numpy(np.stack([data[s : s + WINDOW + 1] for s in starts]).astype(np.int64))
    mask = (torch.arange(WINDOW) >= WINDOW // 2).expand(BATCH, -1) if objective == "completion_only" else None
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), mask)


class Trainer:
    """A model that takes steps, and the seconds they took."""

    def __init__(self, parts: dict[str, dict[str, Any]], seed: int, steps: int) -> None:
        import torch

        from feebcore.model.build import build_model
        from feebcore.model.groups import param_groups
        from feebcore.parts import resolve_part
        from feebcore.train.optimizer_schedules import OptimizerSchedules, build_optimizer

        self.architecture = resolve_part("architectures", architecture(parts))
        self.model = build_model(self.architecture, VOCABULARY, WINDOW, seed)
        self.objective, self.objective_name = resolve_part("objectives", parts["objectives"]).build(), parts["objectives"]["name"]
        self.optimizer = build_optimizer(resolve_part("optimizers", parts["optimizers"]), param_groups(self.model))
        self.rates = OptimizerSchedules(self.optimizer, resolve_part("schedules", parts["schedules"]).build(total_steps=steps))
        self.seconds: list[float] = []
        torch.manual_seed(seed)  # of objectives that draw

    def step(self, number: int, batch: Any) -> None:
        import torch

        began = time.perf_counter()
        self.rates.apply(number)
        found = self.objective(self.model, batch)
        (found.loss_sum / found.count).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - began)

    def seconds_a_step(self) -> float:
        later = self.seconds[2:] or self.seconds  # the first ones make state and fill caches
        return sum(later) / len(later)

    def bits_per_byte(self, data: Any) -> float:
        import torch

        from feebcore.parts import resolve_part

        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()
        self.model.eval()
        score = resolve_part("objectives", "next_token").build()
        with torch.no_grad():
            results = [score(self.model, batch_of(data, 10**9 + i)) for i in range(SCORED)]
        return float(sum(r.metrics["nll"] for r in results) / sum(r.count for r in results)) / math.log(2)


def run(kind: str, name: str, seed: int, steps: int, teacher: str = "") -> dict[str, Any]:
    """One row. teacher: folder of the model that stands for TEACHER. Raises what the part raises, RuntimeError at the limits."""
    parts = with_teacher(chosen(kind, name), teacher)
    train, held_out, _ = texts()
    trainer, baseline = Trainer(parts, seed, steps), Trainer(BASELINE, seed, steps)
    counts = trainer.model.count()
    if counts.total > MOST_PARAMETERS:
        raise RuntimeError(f"{counts.total:,} parameters are more than {MOST_PARAMETERS:,}")
    for number in range(steps):
        place = seed * 1_000_003 + number
        trainer.step(number, batch_of(train, place, trainer.objective_name))
        if number % BESIDE_EVERY == 0:
            baseline.step(number, batch_of(train, place))
        if sum(trainer.seconds) > MOST_SECONDS:
            raise RuntimeError(f"{MOST_SECONDS:.0f} s were over after {number + 1} of {steps} steps")
    score = trainer.bits_per_byte(held_out)
    if not math.isfinite(score):
        raise RuntimeError("it diverged")
    return {
        "bits_per_byte": round(score, 5),
        "tokens_per_second": round(BATCH * WINDOW / trainer.seconds_a_step()),
        "relative_speed": round(baseline.seconds_a_step() / trainer.seconds_a_step(), 4),
        "train_seconds": round(sum(trainer.seconds), 2),
        "parameters": counts.total,
        "flops_per_token": round(counts.flops_per_token),
        "cache_bytes_per_token": counts.cache_bytes_per_token,
    }


def with_teacher(parts: dict[str, dict[str, Any]], folder: str) -> dict[str, dict[str, Any]]:
    return {kind: {key: folder if value == TEACHER else value for key, value in part.items()} for kind, part in parts.items()}


def needs_teacher(label: str) -> bool:
    return TEACHER in OPTIONS.get(label, {}).values()


def make_teacher(folder: str, steps: int) -> None:
    from feebcore.model.io import save_model

    trainer = Trainer(BASELINE, TEACHER_SEED, steps)
    for number in range(steps):
        trainer.step(number, batch_of(texts()[0], TEACHER_SEED * 1_000_003 + number))
    save_model(Path(folder), trainer.model, trainer.architecture)


def work() -> None:
    """Jobs from standard input, rows to standard output, a JSON line each."""
    out, sys.stdout = sys.stdout, sys.stderr
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["kind"] == "teacher":
                make_teacher(job["teacher"], job["steps"])
                row = {}
            else:
                row = run(job["kind"], job["name"], job["seed"], job["steps"], job["teacher"])
        except Exception as error:
            row = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(row), file=out, flush=True)


# --- all runs -------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs jobs one after the other; one that dies or hangs costs its row only."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def do(self, job: dict[str, Any]) -> dict[str, Any]:
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        limit = threading.Timer(4 * MOST_SECONDS, process.kill)
        limit.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            return {"failed": f"its process ended with status {process.wait()}"}
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


def labels() -> list[tuple[str, str]]:
    """(kind, name) of all that is run: the baseline, then every built-in part that is not of it."""
    from feebcore.registry import Registry

    registry = Registry()
    found = [(s, spec.name) for s in KINDS for _, spec in registry.parts(s) if spec.distribution == "feeb" and spec.name != BASELINE[s]["name"]]
    return [("baseline", "baseline"), *found]


def describe(command: str, steps: int) -> dict[str, Any]:
    """The head of the results: what was run, where, when, with what."""
    import importlib.metadata

    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor())
    train, held_out, digest = texts()
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{cpu}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in ("torch", "numpy")}},
        "text": {"what": "the standard library's source without tests", "train_bytes": len(train), "held_out_bytes": len(held_out), "digest": digest},
        "settings": settings(steps),
    }


def load(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """What is there already, or a beginning. Raises SystemExit where it is of other settings, text or versions."""
    if not path.exists():
        return {**head, "runs": []}
    found = json.loads(path.read_text())
    for key in ("settings", "text", "versions"):
        if found[key] != head[key]:
            raise SystemExit(f"{path} has runs of other {key}; remove it, or name another file with --out")
    return found


def save(path: Path, results: dict[str, Any]) -> None:
    """One run a line, so that a changed run is a changed line."""
    runs = sorted(results["runs"], key=lambda r: ((-1 if r["kind"] == "baseline" else KINDS.index(r["kind"])), r["name"], r["seed"]))
    head = json.dumps({k: v for k, v in results.items() if k != "runs"}, indent=1, ensure_ascii=False)
    body = ",\n".join(json.dumps(r, ensure_ascii=False) for r in runs)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f'{head[:-2]},\n "runs": [\n{body}\n]}}\n', encoding="utf-8")
    temporary.replace(path)


def identity(kind: str, name: str, seed: int) -> dict[str, Any]:
    return {"kind": kind, "name": name, "options": own_options(kind, name), "seed": seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], metavar="KIND/NAME", help="these parts, or KIND for all of it; the baseline always")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, one seed, nothing kept unless --out is given")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a thread each")
    parser.add_argument("--out", type=Path, help=f"default {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work()
        return
    steps, seeds = (QUICK_STEPS, 1) if given.quick else (STEPS, given.seeds)
    path = given.out or (None if given.quick else RESULTS)
    everything = labels()
    known = {f"{s}/{n}" for s, n in everything} | {s for s, _ in everything}
    if unknown := [o for o in given.only if o not in known]:
        parser.error(f"--only: nothing to run for {', '.join(unknown)}; a part of the baseline needs no run")
    wanted = [(s, n) for s, n in everything if not given.only or s == "baseline" or s in given.only or f"{s}/{n}" in given.only]
    head = describe(" ".join([COMMAND, *sys.argv[1:]]), steps)
    results = load(path, head) if path else {**head, "runs": []}
    done = [{k: r[k] for k in ("kind", "name", "options", "seed")} for r in results["runs"] if "failed" not in r]
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    for kind, name in wanted:
        for seed in range(seeds):
            if identity(kind, name, seed) not in done:
                jobs.put(identity(kind, name, seed))
    total, began, lock = jobs.qsize(), time.monotonic(), threading.Lock()
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = str(Path(folder) / "teacher")
        if any(needs_teacher(f"{j['kind']}/{j['name']}") for j in list(jobs.queue)):
            first = Worker()
            if failed := first.do({"kind": "teacher", "teacher": teacher, "steps": steps}).get("failed"):
                raise SystemExit(f"the teacher: {failed}")
            first.close()

        def serve() -> None:
            worker = Worker()
            while True:
                try:
                    job = jobs.get_nowait()
                except queue.Empty:
                    break
                row = job | worker.do({**job, "steps": steps, "teacher": teacher})
                with lock:
                    results["runs"] = [r for r in results["runs"] if any(r[k] != job[k] for k in ("kind", "name", "seed"))] + [row]
                    if path:
                        save(path, results)
                    if "failed" in row:
                        failures.append(f"{row['kind']}/{row['name']}")
                    print(line_of(row, total - jobs.qsize(), total, time.monotonic() - began), flush=True)
            worker.close()

        threads = [threading.Thread(target=serve) for _ in range(given.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"{total} runs in {(time.monotonic() - began) / 60:.1f} minutes, {len(failures)} failed: {', '.join(sorted(set(failures))) or 'none'}")


def line_of(row: dict[str, Any], number: int, total: int, seconds: float) -> str:
    label = f"{number:>4}/{total} {seconds:>6.0f} s  {row['kind']}/{row['name']} seed {row['seed']}: "
    if "failed" in row:
        return label + f"FAILED: {row['failed']}"
    return (
        label
        + f"{row['bits_per_byte']:.4f} bits per byte, {row['tokens_per_second']:,} tokens/s ({row['relative_speed']:.2f} x), {row['parameters']:,} parameters"
    )


if __name__ == "__main__":
    main()
