"""The ledger of a study: every run that is planned, leased, done, failed or diverged, in one SQLite file.

Safe for several processes at once and for kills at any moment: every change is one transaction (WAL), a lease ends
when its time is over or, on the machine that wrote it, when its owner is gone. Runs with one id are one run under several
names: they are leased, done and failed together.

    ledger = Ledger(folder / "ledger.sqlite")
    ledger.plan(specs, {spec.name: run_id(spec.recipe, spec.stages, built) for spec in specs})
    while record := ledger.lease(this_owner(), seconds=120):
        ledger.done(record.name, train(record), owner=this_owner())

Keep the file on a local disk: SQLite's WAL needs shared memory between its users. What counts is the artifact that a run
commits: an entry lost in a power failure costs a look into the workspace and no training.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from feebcore.errors import ArtifactError, FeebError
from feebcore.study.runs import RunRecord, RunSpec, Status

FORMAT = 3
"""Of the file; kept in SQLite's user_version. 1 was `cells`, without priorities and dependencies; 2 had no predictions."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    position INTEGER NOT NULL,
    role TEXT NOT NULL,
    overrides TEXT NOT NULL,
    flops REAL NOT NULL,
    budget REAL NOT NULL,
    heldout INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    waiting INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL DEFAULT 'planned' CHECK (status IN ('planned', 'leased', 'done', 'failed', 'diverged')),
    owner TEXT NOT NULL DEFAULT '',
    lease_until REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '{}',
    reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS dependencies (name TEXT NOT NULL, after TEXT NOT NULL, PRIMARY KEY (name, after)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS runs_by_id ON runs (id);
CREATE INDEX IF NOT EXISTS runs_by_position ON runs (position);
CREATE INDEX IF NOT EXISTS runs_ready ON runs (failures, priority DESC, attempts, position) WHERE status = 'planned' AND waiting = 0;
CREATE INDEX IF NOT EXISTS runs_leased ON runs (owner, lease_until) WHERE status = 'leased';
CREATE INDEX IF NOT EXISTS dependents ON dependencies (after, name);
CREATE TABLE IF NOT EXISTS predictions (name TEXT PRIMARY KEY, written REAL NOT NULL, prediction TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS predictions_first BEFORE INSERT ON predictions WHEN EXISTS (SELECT 1 FROM predictions WHERE name = NEW.name)
    BEGIN SELECT RAISE(IGNORE); END;
CREATE TRIGGER IF NOT EXISTS predictions_stand BEFORE UPDATE ON predictions BEGIN SELECT RAISE(ABORT, 'a prediction is not changed'); END;
CREATE TRIGGER IF NOT EXISTS predictions_stay BEFORE DELETE ON predictions BEGIN SELECT RAISE(ABORT, 'a prediction is not removed'); END;
"""


class LeaseLost(FeebError):
    """A run was reported by someone whose lease is over; its new holder's result counts."""


def this_owner() -> str:
    """Names this process for good: host, boot, process namespace, pid and start time, so that a recycled pid is another."""
    return f"{_machine()}:{os.getpid()}:{_start_time(os.getpid())}"


class Ledger:
    """See the module's text. Threads may share one; close it, or use it in a `with`. Raises ArtifactError for a damaged or older file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        with self._explained():
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._create()

    def plan(self, specs: Iterable[RunSpec], ids: Mapping[str, str]) -> list[str]:
        """Add the runs that are not there yet, in order, and return their names; runs that are there keep their state.

        ids: name to id. Raises FeebError when a name is there with another id, or waits for a run that is nowhere planned.
        """
        added = []
        with self._transaction():
            position = self._connection.execute("SELECT COALESCE(MAX(position) + 1, 0) FROM runs").fetchone()[0]
            for spec in specs:
                known = self._connection.execute("SELECT id FROM runs WHERE name = ?", (spec.name,)).fetchone()
                if known is not None and known["id"] != ids[spec.name]:
                    raise FeebError(f"{self.path}: run {spec.name!r} was planned with other options or inputs; remove the file to start the study over")
                if known is not None:
                    continue
                twin = self._connection.execute("SELECT * FROM runs WHERE id = ?", (ids[spec.name],)).fetchone()
                state = {key: twin[key] for key in _STATE} if twin else {}
                values = {"name": spec.name, "id": ids[spec.name], "position": position, "role": spec.role, "overrides": json.dumps(dict(spec.overrides))}
                values |= {"flops": spec.flops, "budget": spec.budget, "heldout": spec.heldout, "priority": spec.priority, **state}
                self._connection.execute(f"INSERT INTO runs ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", list(values.values()))
                self._connection.executemany("INSERT OR IGNORE INTO dependencies VALUES (?, ?)", [(spec.name, name) for name in spec.after])
                position += 1
                added.append(spec.name)
            self._refresh(added)
        return added

    def lease(self, owner: str, seconds: float = 120.0, among: Collection[str] | None = None) -> RunRecord | None:
        """The next run (of `among`) that is planned and waits for none, or whose holder's lease is over or process gone; None when there is none.

        The order: those that failed less often first, then by priority, then those that took fewer processes with them (one that
        ends the study's own process does not keep the others waiting), then as planned. The caller owns the run until `seconds`
        from now; `renew` prolongs.
        """
        with self._transaction():
            self._reclaim()
            rows = self._connection.execute(
                "SELECT name, id FROM runs WHERE status = 'planned' AND waiting = 0 ORDER BY failures, priority DESC, attempts, position"
            )
            row = next((row for row in rows if among is None or row["name"] in among), None)
            if row is None:
                return None
            self._connection.execute(
                "UPDATE runs SET status = 'leased', owner = ?, lease_until = ?, attempts = attempts + 1 WHERE id = ?", (owner, time.time() + seconds, row["id"])
            )
            return self.record(row["name"])

    def renew(self, owner: str, seconds: float = 120.0) -> int:
        """Prolong every lease of `owner`; returns how many it has."""
        with self._transaction():
            return self._connection.execute("UPDATE runs SET lease_until = ? WHERE status = 'leased' AND owner = ?", (time.time() + seconds, owner)).rowcount

    def release(self, name: str, owner: str) -> None:
        """Give a leased run back unfinished, so that the next `lease` may take it at once."""
        with self._transaction():
            self._connection.execute(
                f"UPDATE runs SET {_FREE}, attempts = attempts - 1 WHERE id = (SELECT id FROM runs WHERE name = ?) AND owner = ? AND status = 'leased'",
                (name, owner),
            )

    def expire(self, everyone: bool = False) -> list[str]:
        """Put runs whose lease is over, or whose holder is gone, back to planned; returns their names.

        everyone: all leases, for a caller that knows by other means (a lock) that nobody else is at work.
        """
        with self._transaction():
            return self._reclaim(everyone)

    def done(self, name: str, result: Mapping[str, Any], owner: str) -> None:
        """Record a result (JSON values). Raises LeaseLost unless `owner` holds the lease."""
        self._end(name, "done", owner, result=json.dumps(dict(result)))

    def diverged(self, name: str, reason: str, owner: str) -> None:
        """The run was made but its number is not one to use: kept and reported, never tried again. Raises LeaseLost as `done` does."""
        self._end(name, "diverged", owner, reason=reason)

    def fail(self, name: str, reason: str, owner: str, max_attempts: int = 1) -> bool:
        """The run could not be made. After `max_attempts` failures it has failed for good, which this returns; before that it is
        planned again, behind those that failed less often. Raises LeaseLost as `done` does."""
        with self._transaction():
            failures = self._connection.execute("SELECT failures FROM runs WHERE name = ?", (name,)).fetchone()
            number = 1 + (failures["failures"] if failures else 0)
            final = number >= max_attempts
            self._end(name, "failed" if final else "planned", owner, reason=reason, failures=number)
            return final

    def requeue(self, names: Sequence[str] | None = None) -> list[str]:
        """Plan runs anew, as if they had not been tried: `names`, or all that failed. Returns their names."""
        with self._transaction():
            rows = self._connection.execute("SELECT name FROM runs WHERE status = 'failed' ORDER BY position").fetchall() if names is None else None
            chosen = list(names or ()) if rows is None else [row["name"] for row in rows]
            for name in chosen:
                self._connection.execute(
                    f"UPDATE runs SET {_FREE}, failures = 0, result = '{{}}', reason = '' WHERE id = (SELECT id FROM runs WHERE name = ?)", (name,)
                )
            self._refresh([row["name"] for row in self._connection.execute("SELECT DISTINCT name FROM dependencies").fetchall()])
            return chosen

    def predict(self, predictions: Mapping[str, Mapping[str, Any]]) -> None:
        """Write down what runs will reach (JSON values), all at once and for good: one that is there is kept as it is."""
        with self._transaction():
            rows = [(name, time.time(), json.dumps(dict(prediction))) for name, prediction in predictions.items()]
            self._connection.executemany("INSERT INTO predictions VALUES (?, ?, ?)", rows)

    def predictions(self) -> dict[str, dict[str, Any]]:
        """By name of the run, in the order written; `written`: Unix time."""
        with self._explained(), self._lock:
            return _predictions(self._connection)

    def records(self) -> list[RunRecord]:
        """Every run in the order it was planned."""
        with self._explained(), self._lock:
            rows = self._connection.execute("SELECT * FROM runs ORDER BY position").fetchall()
        return [_as_record(row) for row in rows]

    def record(self, name: str) -> RunRecord:
        """One run."""
        with self._explained(), self._lock:
            return _as_record(self._connection.execute("SELECT * FROM runs WHERE name = ?", (name,)).fetchone())

    def counts(self) -> dict[str, int]:
        """How many runs have each status."""
        with self._explained(), self._lock:
            numbers = dict(self._connection.execute("SELECT status, COUNT(*) FROM runs GROUP BY status").fetchall())
        return {status: numbers.get(status, 0) for status in get_args(Status)}

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _create(self) -> None:
        with self._transaction():  # another process may be making the same file
            _check_format(self._connection, self.path)
            for statement in filter(str.strip, _SCHEMA.split(";\n")):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def _write_ahead(self) -> None:
        """Switch to WAL; the switch itself does not wait for other processes, so this does."""
        for attempt in range(100):
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or attempt == 99:
                    raise
                time.sleep(0.05)

    def _reclaim(self, everyone: bool = False) -> list[str]:
        holders = [row["owner"] for row in self._connection.execute("SELECT DISTINCT owner FROM runs WHERE status = 'leased'").fetchall()]
        lost = [(owner, everyone or _gone(owner)) for owner in holders]
        names = []
        for owner, gone in lost:
            over = "" if gone else " AND lease_until <= ?"
            values = (owner,) if gone else (owner, time.time())
            names += [
                row["name"] for row in self._connection.execute(f"UPDATE runs SET {_FREE} WHERE status = 'leased' AND owner = ?{over} RETURNING name", values)
            ]
        return names

    def _end(self, name: str, status: str, owner: str, result: str = "{}", reason: str = "", failures: int = 0) -> None:
        with self._transaction():
            rows = self._connection.execute(
                "UPDATE runs SET status = ?, result = ?, reason = ?, failures = ?, owner = '', lease_until = 0 "
                "WHERE id = (SELECT id FROM runs WHERE name = ?) AND owner = ? AND status = 'leased' RETURNING name",
                (status, result, reason, failures, name, owner),
            ).fetchall()
            if not rows:
                raise LeaseLost(f"{self.path}: run {name!r} cannot be reported {status} by {owner}; {self._holder(name)}")
            if status != "planned":
                dependents = "SELECT name FROM dependencies WHERE after = ?"
                self._refresh([d["name"] for row in rows for d in self._connection.execute(dependents, (row["name"],)).fetchall()])

    def _refresh(self, names: Iterable[str]) -> None:
        """What these planned runs wait for; one that waits for a run that failed or diverged fails, and so do those that wait for it."""
        todo = list(names)
        while todo:
            name = todo.pop()
            rows = self._connection.execute(
                "SELECT after, runs.status AS status FROM dependencies LEFT JOIN runs ON runs.name = after WHERE dependencies.name = ?", (name,)
            ).fetchall()
            for row in rows:
                if row["status"] is None:
                    raise FeebError(f"{self.path}: run {name!r} waits for {row['after']!r}, which is not planned")
                if row["status"] in ("failed", "diverged"):
                    reason = f"it waits for {row['after']}, which {row['status']}"
                    if self._connection.execute("UPDATE runs SET status = 'failed', reason = ? WHERE name = ? AND status = 'planned'", (reason, name)).rowcount:
                        todo += [d["name"] for d in self._connection.execute("SELECT name FROM dependencies WHERE after = ?", (name,)).fetchall()]
            waiting = sum(row["status"] != "done" for row in rows)
            self._connection.execute("UPDATE runs SET waiting = ? WHERE name = ?", (waiting, name))

    def _holder(self, name: str) -> str:
        row = self._connection.execute("SELECT status, owner FROM runs WHERE name = ?", (name,)).fetchone()
        if row is None:
            return "there is no such run"
        return f"it is {row['status']}" + (f" by {row['owner']}" if row["owner"] else "")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained(), self._lock:
            if self._connection.in_transaction:  # inside another one of this thread
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained(self.path)


def read_records(path: Path) -> list[RunRecord]:
    """Every run of the ledger at `path` in the order it was planned, without writing to it; one whose holder is gone is planned. None where
    there is no file. Raises ArtifactError for a damaged file or another format."""
    if not path.exists():
        return []
    with _explained(path), contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=60, uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        _check_format(connection, path)
        records = [_as_record(row) for row in connection.execute("SELECT * FROM runs ORDER BY position").fetchall()]
    lost = {owner for owner in {r.owner for r in records if r.status == "leased"} if _gone(owner)}
    return [replace(r, status="planned") if r.status == "leased" and (r.owner in lost or r.lease_until <= time.time()) else r for r in records]


def read_predictions(path: Path) -> dict[str, dict[str, Any]]:
    """`Ledger.predictions` of the file at `path`, without writing to it."""
    if not path.exists():
        return {}
    with _explained(path), contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=60, uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        _check_format(connection, path)
        return _predictions(connection)


def _predictions(connection: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    rows = connection.execute("SELECT * FROM predictions ORDER BY rowid").fetchall()
    return {row["name"]: json.loads(row["prediction"]) | {"written": row["written"]} for row in rows}


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if tables and version != FORMAT:
        raise ArtifactError(f"ledger {path} has format {version or 1}, this feeb writes {FORMAT}; remove the file, finished runs are found again")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        what = "the disk is full; free some space and run the same command again" if "full" in str(error) else str(error)
        raise ArtifactError(f"ledger {path}: {what}") from error


_FREE = "status = 'planned', owner = '', lease_until = 0"
_STATE = ("status", "owner", "lease_until", "attempts", "failures", "result", "reason")
_PLAIN = ("name", "id", "role", "flops", "budget", "priority", "status", "owner", "lease_until", "attempts", "failures", "reason")


def _as_record(row: sqlite3.Row) -> RunRecord:
    plain = {key: row[key] for key in _PLAIN}
    return RunRecord(**plain, overrides=json.loads(row["overrides"]), heldout=bool(row["heldout"]), result=json.loads(row["result"]))


def _machine() -> str:
    """Host, boot and process namespace: where a pid means something. The boot tells cloned machines of one name apart."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{socket.gethostname()}/{boot}/{namespace}"


def _start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a process; '' where /proc does not tell. Raises ProcessLookupError."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except FileNotFoundError:
        os.kill(pid, 0)  # raises ProcessLookupError when there is no such process
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _gone(owner: str) -> bool:
    """True when `owner` (see this_owner) was a process of this machine that no longer runs; False when unknown."""
    machine, _, pid = owner.rpartition(":")[0].rpartition(":")
    if not pid.isdigit() or machine != _machine():
        return False
    try:
        return _start_time(int(pid)) != owner.rpartition(":")[2]
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
