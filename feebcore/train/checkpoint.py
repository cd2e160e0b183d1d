"""Checkpoints: `checkpoints/step-XXXXXXXX/` with tensors in safetensors files and state.json, no pickle.

One rank writes model.safetensors, optimizer.safetensors and one more file for each extra group of tensors; a sharded run
writes model-00000-of-00002.safetensors and so on, each rank its own, and state.json says which piece is where, so that a
run of any number of ranks and any strategy can continue it. A checkpoint is written to a temporary folder, synced and
renamed when all ranks are done, so a folder of that name is whole. state.json holds the SHA-256 of every file and of
itself; a checkpoint that is damaged is passed over for the one before it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feebcore.errors import ArtifactError, FeebError
from feebcore.files import digest_of, explain, sync_folder
from feebcore.model.tensors import named_tensors
from feebcore.train.optimizer import Optimizer
from feebcore.train.parallel import SingleProcess, Strategy
from feebcore.train.state_tensors import check_names, checkpoint_shard, optimizer_state, read_into, read_like, restore_optimizer
from feebcore.train.tensor_files import TensorFiles, check_file, write_tensors

FOLDER = "checkpoints"
FORMAT = 3
"""2: state.json with the loop's state under `progress`. 1: whole tensors only."""

Extras = dict[str, dict[str, Tensor]]

_writing: dict[Path, threading.Thread] = {}
"""Checkpoints that this process has not finished writing, by folder: a run that failed may be started again while they are written."""


@dataclass
class _Snapshot:
    """A moment of the run. groups: this rank's tensors by group; index: places of those that are in pieces.

    memory: to copy into, kept from the last one: fresh memory would cost six times the copying. None: nothing is copied.
    """

    step: int
    state: str
    rank: int
    memory: dict[tuple[str, str], Tensor] | None
    groups: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {"model": {}, "optimizer": {}})
    index: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, group: str, name: str, tensor: Tensor, parameter: Tensor | None) -> None:
        shard, spec, local = checkpoint_shard(tensor, parameter)
        self.groups.setdefault(group, {})
        if spec is not None:
            self.index.setdefault(group, {})[name] = {"shape": spec.global_shape, "offset": spec.offset} | ({"local": True} if local else {})
        if spec is not None or self.rank == 0:
            self.groups[group][name] = self._copy((group, name), shard.detach())

    def _copy(self, key: tuple[str, str], tensor: Tensor) -> Tensor:
        if self.memory is None:
            return tensor.to("cpu").contiguous()
        own = self.memory.get(key)
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            own = self.memory[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return own.copy_(tensor)


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    save: copies the state before it returns and writes it in a thread of its own (`asynchronous`), one at a time; what
    goes wrong there is raised by the next `save` or `wait`. It keeps the newest `keep`, every step divisible by
    `keep_every`, those of `keep_steps`, and the `keep_best` with the lowest metric. Every rank must make one and call it alike.
    """

    def __init__(
        self,
        folder: Path,
        parallel: Strategy,
        *,
        keep: int = 2,
        keep_every: int = 0,
        keep_steps: Collection[int] = (),
        keep_best: int = 0,
        asynchronous: bool = True,
        log: Callable[[str], None] = print,
    ) -> None:
        self.root, self.parallel, self.log = Path(folder) / FOLDER, parallel, log
        self.keep, self.keep_every, self.keep_steps, self.keep_best, self.asynchronous = keep, keep_every, keep_steps, keep_best, asynchronous
        self._channel = parallel.channel()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._memory: dict[tuple[str, str], Tensor] | None = {} if asynchronous else None

    # --- writing ----------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        extras: Mapping[str, Mapping[str, Tensor]] | None = None,
        metric: float | None = None,
    ) -> None:
        """Keep this moment as the checkpoint of `step`. state: JSON values, of rank 0. extras: more tensors by group and name,
        sharded as the parameters of the same name are. metric: by which the best are kept, lower is better.

        Raises what the last one met: ArtifactError when the disk is full or read-only; earlier checkpoints are untouched then.
        """
        self.wait()
        if isinstance(optimizer, Optimizer):
            optimizer.share_state()
        if not (self.parallel.is_main or self.parallel.strategy == "fsdp"):
            return
        tensors, plain = optimizer_state(model, optimizer)
        text = json.dumps({"format": FORMAT, "step": step, "metric": metric, "optimizer": plain, **state})
        snapshot = _Snapshot(step, text, self.parallel.rank, self._memory)
        parameters = dict(model.named_parameters())
        for name, tensor in named_tensors(model).items():
            snapshot.add("model", name, tensor.detach(), None)
        for place, tensor in tensors.items():
            snapshot.add("optimizer", place, tensor, parameters[place.rpartition("|")[0]])
        for group, named in (extras or {}).items():
            for name, tensor in named.items():
                snapshot.add(group, name, tensor, parameters.get(name))
        if not self.asynchronous:
            self._write(snapshot)
            return
        self._thread = threading.Thread(target=self._write_in_background, args=(snapshot,), name=f"checkpoint {step}")
        _writing[self.root.absolute()] = self._thread
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is on disk. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_in_background(self, snapshot: _Snapshot) -> None:
        try:
            self._write(snapshot)
        except BaseException as error:
            self._error = error

    def _write(self, snapshot: _Snapshot) -> None:
        final = self.root / name_of(snapshot.step)
        temporary = self.root / f".{final.name}.tmp"
        mine: dict[str, Any]
        try:
            mine = {"files": self._write_tensors(snapshot, temporary), "index": snapshot.index, "error": ""}
        except (OSError, ArtifactError) as error:
            mine = {"files": {}, "index": {}, "error": self._failed(error, final, temporary)}
        sharded = self.parallel.strategy == "fsdp"
        written = [json.loads(text) for text in self._channel.all_gather_text(json.dumps(mine))] if sharded else [mine]
        self._raise_first([one["error"] for one in written])
        problem = ""
        if self.parallel.is_main:
            try:
                files = {name: entry for one in written for name, entry in one["files"].items()}
                self._commit(snapshot, files, _joined([one["index"] for one in written]), temporary, final)
            except OSError as error:
                problem = self._failed(error, final, temporary)
        self._raise_first(self._channel.all_gather_text(problem) if sharded else [problem])
        if self.parallel.is_main:
            self._remove_old(snapshot.step)

    def _write_tensors(self, snapshot: _Snapshot, folder: Path) -> dict[str, Any]:
        if self.parallel.strategy != "fsdp":
            shutil.rmtree(folder, ignore_errors=True)  # remains of a kill
        folder.mkdir(parents=True, exist_ok=True)
        tail = f"-{self.parallel.rank:05d}-of-{self.parallel.world:05d}" if self.parallel.strategy == "fsdp" else ""
        entries = {}
        for group in snapshot.groups:
            entries[f"{group}{tail}.safetensors"] = write_tensors(folder / f"{group}{tail}.safetensors", snapshot.groups[group])
        sync_folder(folder)
        return entries

    def _commit(self, snapshot: _Snapshot, files: dict[str, Any], index: dict[str, Any], temporary: Path, final: Path) -> None:
        whole = json.loads(snapshot.state) | {"files": files, "index": index}
        with open(temporary / "state.json", "w", encoding="utf-8") as stream:
            stream.write(json.dumps(whole | {"digest": digest_of(whole)}, indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(temporary)
        replaced = self.root / f".{final.name}.replaced.tmp"
        if final.exists():
            os.rename(final, replaced)
        os.rename(temporary, final)
        sync_folder(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def _failed(self, error: Exception, final: Path, temporary: Path) -> str:
        shutil.rmtree(temporary, ignore_errors=True)
        explained = explain(error, final) if isinstance(error, OSError) else error
        return str(explained) if isinstance(explained, ArtifactError) else f"{final} cannot be written: {explained}"

    def _raise_first(self, problems: list[str]) -> None:
        for rank, problem in enumerate(problems):
            if problem:
                raise ArtifactError(problem + (f" (rank {rank})" if len(problems) > 1 else ""))

    def _remove_old(self, step: int) -> None:
        """Remove what is not to stay, now that the checkpoint of `step` is there. Later ones are from before a rollback."""
        for path in checkpoints(self.root.parent):
            if step_of(path) > step:
                shutil.rmtree(path, ignore_errors=True)
        paths = checkpoints(self.root.parent)
        stay = set(paths[: self.keep])
        stay |= {path for path in paths if step_of(path) in self.keep_steps or (self.keep_every and step_of(path) % self.keep_every == 0)}
        if self.keep_best:
            scored = [(score, path) for path in paths if (score := _metric(path)) is not None]
            stay |= {path for _, path in sorted(scored, key=lambda one: one[0])[: self.keep_best]}
        for path in paths:
            if path not in stay:
                shutil.rmtree(path, ignore_errors=True)

    # --- reading ----------------------------------------------------------------------------------------------------

    def load_latest(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, upto: int | None = None) -> tuple[dict[str, Any], Extras] | None:
        """Restore the newest whole checkpoint, of step `upto` at most, and return its state and extras; None when there is none.

        Damaged ones are named through `log` and removed, as are the remains of one that a kill cut short. Every rank takes
        the one that rank 0 finds.
        """
        self._join_writer()
        names: list[str] = []
        if self.parallel.is_main:
            for remains in self.root.glob(".step-*.tmp"):
                _put_back_or_remove(remains)
            names = [path.name for path in checkpoints(self.root.parent) if upto is None or step_of(path) <= upto]
        for name in json.loads(self._channel.all_gather_text(json.dumps(names))[0]):
            try:
                state, files = self._open(self.root / name)
            except ArtifactError as error:
                if self.parallel.is_main:
                    self.log(f"checkpoint {name} cannot be used ({error}); trying the one before it")
                    shutil.rmtree(self.root / name, ignore_errors=True)
                continue
            return state, self._restore(state, files, model, optimizer)
        return None

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> tuple[dict[str, Any], Extras]:
        """Restore the checkpoint in folder `path`, of this run or another. optimizer None: weights only.

        Raises ArtifactError saying what is wrong with it, or that it is of another model.
        """
        self._join_writer()
        try:
            state, files = self._open(Path(path))
        except ArtifactError as error:
            raise ArtifactError(f"checkpoint {path} cannot be used: {error}") from None
        return state, self._restore(state, files, model, optimizer)

    def _join_writer(self) -> None:
        """Nothing of this process is writing in the folder any more, be it for a run that has failed."""
        with contextlib.suppress(KeyError):
            _writing.pop(self.root.absolute()).join()
        self._thread = None

    def _open(self, path: Path) -> tuple[dict[str, Any], dict[str, TensorFiles]]:
        """state.json and the groups of tensors, verified: each rank hashes a share of the files."""
        problem, state, files = "", {}, {}
        try:
            state = read_state(path)
            for name in sorted(state["files"])[self.parallel.rank :: self.parallel.world]:
                check_file(path / name, state["files"][name])
            names: dict[str, list[Path]] = {}
            for name in sorted(state["files"]):
                names.setdefault(re.sub(r"(-\d+-of-\d+)?\.safetensors$", "", name), []).append(path / name)
            files = {group: TensorFiles(paths, state["index"].get(group, {})) for group, paths in names.items()}
        except ArtifactError as error:
            problem = str(error)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
        problems = self._channel.all_gather_text(problem)
        for one in problems:
            if one:
                raise ArtifactError(one)
        return state, files

    def _restore(self, state: dict[str, Any], files: dict[str, TensorFiles], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Extras:
        named = named_tensors(model)
        check_names(named, files["model"].names())
        for name, target in named.items():
            read_into(files["model"], name, target)
        parameters = dict(model.named_parameters())
        if optimizer is not None:
            places = sorted(files["optimizer"].names())
            tensors = {place: read_like(files["optimizer"], place, parameters.get(place.rpartition("|")[0])) for place in places}
            restore_optimizer(model, optimizer, tensors, state["optimizer"])
        extras = {}
        for group in sorted(files.keys() - {"model", "optimizer"}):
            extras[group] = {name: read_like(files[group], name, parameters.get(name)) for name in sorted(files[group].names())}
        return extras


def save_checkpoint(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step` under `folder`/checkpoints, in one process and at once, and remove all but the newest `keep`."""
    Checkpointer(folder, SingleProcess(), keep=keep, asynchronous=False).save(step, model, optimizer, state)
    return Path(folder) / FOLDER / name_of(step)


def load_latest(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, log: Callable[[str], None]) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint in place, in one process, and return its state; None when there is none."""
    loaded = Checkpointer(folder, SingleProcess(), log=log).load_latest(model, optimizer)
    return None if loaded is None else loaded[0]


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, verified. Raises ArtifactError when it is damaged, FeebError when it has another format."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    digest = state.pop("digest")
    if digest_of(state) != digest:
        raise ArtifactError("state.json was altered")
    if state["format"] != FORMAT:
        what = f"{path} has checkpoint format {state['format']}, and this version of feeb reads format {FORMAT} only"
        raise FeebError(f"{what}; remove it to start over, or use the version that wrote it")
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders under `folder`, newest first."""
    return sorted((p for p in (Path(folder) / FOLDER).glob("step-*") if p.is_dir()), reverse=True)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _joined(indices: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The index of all ranks: offsets by file."""
    joined: dict[str, dict[str, Any]] = {}
    for rank, index in enumerate(indices):
        for group, named in index.items():
            file = f"{group}-{rank:05d}-of-{len(indices):05d}.safetensors"
            for name, entry in named.items():
                whole = joined.setdefault(group, {}).setdefault(name, {k: v for k, v in entry.items() if k != "offset"} | {"offsets": {}})
                whole["offsets"][file] = entry["offset"]
    return joined


def _metric(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        metric = json.loads((path / "state.json").read_text(encoding="utf-8")).get("metric")
        return metric if metric is not None and math.isfinite(metric) else None
    return None


def _put_back_or_remove(remains: Path) -> None:
    """A kill left it: what was about to be replaced is as good as before, if nothing has taken its place."""
    original = remains.with_name(remains.name.removeprefix(".").removesuffix(".replaced.tmp"))
    if remains.name.endswith(".replaced.tmp") and not original.exists():
        os.rename(remains, original)
    else:
        shutil.rmtree(remains, ignore_errors=True)
