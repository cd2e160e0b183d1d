"""The ledger of a study: many cells, each planned, leased, done, failed or censored, in one SQLite file.

Safe for several processes at once and for kills at any moment: every change is one transaction (WAL), a lease ends
when its time is over or, on the machine that wrote it, when its owner is gone. A cell's id is the hash of its
resolved overrides and of the inputs, so planning the same study again changes nothing.

    ledger = Ledger(folder / "ledger.sqlite")
    ledger.plan(cells, inputs={"tokens": digest})
    while row := ledger.lease(this_owner(), seconds=600):
        ledger.done(row.name, train(row.overrides), owner=this_owner())

Keep the file on a local disk: SQLite's WAL needs shared memory between its users.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feebcore.errors import ArtifactError, FeebError
from feebcore.files import digest_of
from feebcore.protocols import Cell

FINAL = ("done", "failed", "censored")
STATUSES = ("planned", "leased", *FINAL)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    id TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    name TEXT NOT NULL UNIQUE,
    overrides TEXT NOT NULL,
    flops REAL NOT NULL,
    budget REAL NOT NULL,
    heldout INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'planned' CHECK (status IN ('planned', 'leased', 'done', 'failed', 'censored')),
    owner TEXT NOT NULL DEFAULT '',
    lease_until REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '{}',
    why TEXT NOT NULL DEFAULT '',
    updated REAL NOT NULL
)
"""


class LeaseLost(FeebError):
    """A cell was reported by someone whose lease is over; its new holder's result counts."""


@dataclass(frozen=True)
class Row:
    """One cell as the ledger has it. lease_until: Unix time. attempts: how often it was leased.

    result: what `done` was given; why: what `fail` or `censor` was given.
    """

    id: str
    name: str
    overrides: dict[str, Any]
    flops: float
    budget: float
    heldout: bool
    status: str
    owner: str
    lease_until: float
    attempts: int
    result: dict[str, Any]
    why: str


def cell_id(cell: Cell, inputs: Mapping[str, Any]) -> str:
    """16 hex digits over what decides the cell's result: its overrides, its role and the inputs."""
    return digest_of({"overrides": cell.overrides, "heldout": cell.heldout, "inputs": dict(inputs)})[:16]


def this_owner() -> str:
    """Names this process for good: host, process namespace, pid and start time, so that a recycled pid is another."""
    return f"{_here()}:{os.getpid()}:{_start_time(os.getpid())}"


class Ledger:
    """See the module's text. One object per thread; close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._explained():
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._write_ahead()
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute(_SCHEMA)

    def plan(self, cells: Iterable[Cell], inputs: Mapping[str, Any] | None = None) -> list[Row]:
        """Add what is not there yet, in order; cells that are there keep their state. Returns all rows.

        Raises FeebError when a name is there with other overrides or inputs: that is another study.
        """
        with self._transaction():
            position = self._one("SELECT COALESCE(MAX(position) + 1, 0) FROM cells")
            for cell in cells:
                identity = cell_id(cell, inputs or {})
                known = self._connection.execute("SELECT id FROM cells WHERE name = ?", (cell.name,)).fetchone()
                if known is not None and known["id"] != identity:
                    raise FeebError(f"{self.path}: cell {cell.name!r} was planned with other options or inputs; remove the file to start the study anew")
                added = self._connection.execute(
                    "INSERT OR IGNORE INTO cells (id, position, name, overrides, flops, budget, heldout, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (identity, position, cell.name, json.dumps(cell.overrides), cell.flops, cell.budget, cell.heldout, time.time()),
                )
                if known is None and not added.rowcount:
                    twin = self._connection.execute("SELECT name FROM cells WHERE id = ?", (identity,)).fetchone()["name"]
                    raise FeebError(f"{self.path}: cells {twin!r} and {cell.name!r} have the same overrides; leave one out")
                position += added.rowcount
        return self.rows()

    def lease(self, owner: str, seconds: float = 3600.0, heldout: bool | None = None) -> Row | None:
        """The first cell that is planned, or whose holder's lease is over or process gone; None when none is left.

        heldout: only cells with this role. The caller owns the cell until `seconds` from now; `renew` prolongs.
        """
        now = time.time()
        with self._transaction():
            for row in self._connection.execute("SELECT * FROM cells WHERE status IN ('planned', 'leased') ORDER BY position").fetchall():
                if heldout is not None and bool(row["heldout"]) != heldout:
                    continue
                if row["status"] == "leased" and row["lease_until"] > now and not _gone(row["owner"]):
                    continue
                self._connection.execute(
                    "UPDATE cells SET status = 'leased', owner = ?, lease_until = ?, attempts = attempts + 1, updated = ? WHERE id = ?",
                    (owner, now + seconds, now, row["id"]),
                )
                return self._row(row["id"])
        return None

    def renew(self, name: str, owner: str, seconds: float = 3600.0) -> None:
        """Prolong a lease. Raises LeaseLost when another holds the cell by now or it is finished."""
        now = time.time()
        changed = self._change(
            "UPDATE cells SET lease_until = ?, updated = ? WHERE name = ? AND owner = ? AND status = 'leased'", now + seconds, now, name, owner
        )
        if not changed:
            raise LeaseLost(f"{self.path}: the lease of cell {name!r} is over; {self._holder(name)}")

    def release(self, name: str, owner: str) -> None:
        """Give a leased cell back unfinished, so that the next `lease` may take it at once."""
        self._change(
            "UPDATE cells SET status = 'planned', owner = '', lease_until = 0, updated = ? WHERE name = ? AND owner = ? AND status = 'leased'",
            time.time(),
            name,
            owner,
        )

    def expire(self, everyone: bool = False) -> list[str]:
        """Put cells whose lease is over, or whose holder is gone, back to planned; returns their names.

        everyone: all leases, for a caller that knows by other means (a lock) that nobody else is at work.
        """
        now = time.time()
        names = []
        with self._transaction():
            for row in self._connection.execute("SELECT * FROM cells WHERE status = 'leased' ORDER BY position").fetchall():
                if everyone or row["lease_until"] <= now or _gone(row["owner"]):
                    self._connection.execute("UPDATE cells SET status = 'planned', owner = '', lease_until = 0, updated = ? WHERE id = ?", (now, row["id"]))
                    names.append(row["name"])
        return names

    def done(self, name: str, result: Mapping[str, Any], owner: str = "") -> None:
        """Record a result (JSON values). owner: when given, it must hold the lease, else LeaseLost."""
        self._finish(name, "done", owner, result=json.dumps(dict(result)))

    def fail(self, name: str, why: str, owner: str = "") -> None:
        """The cell could not be run: an error, not a measurement."""
        self._finish(name, "failed", owner, why=why)

    def censor(self, name: str, why: str, result: Mapping[str, Any] | None = None, owner: str = "") -> None:
        """The cell ran but its number is not one to fit (it diverged): kept and reported, never dropped."""
        self._finish(name, "censored", owner, why=why, result=json.dumps(dict(result or {})))

    def rows(self) -> list[Row]:
        """Every cell in the order it was planned."""
        with self._explained():
            found = self._connection.execute("SELECT * FROM cells ORDER BY position").fetchall()
        return [_as_row(r) for r in found]

    def counts(self) -> dict[str, int]:
        """How many cells have each status."""
        statuses = [row.status for row in self.rows()]
        return {status: statuses.count(status) for status in STATUSES}

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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

    def _finish(self, name: str, status: str, owner: str, result: str = "{}", why: str = "") -> None:
        statement = "UPDATE cells SET status = ?, result = ?, why = ?, owner = '', lease_until = 0, updated = ? WHERE name = ?"
        values = [status, result, why, time.time(), name]
        if owner:
            statement, values = f"{statement} AND owner = ? AND status = 'leased'", [*values, owner]
        if not self._change(statement, *values):
            raise LeaseLost(f"{self.path}: cell {name!r} cannot be reported {status} by {owner or 'anyone'}; {self._holder(name)}")

    def _holder(self, name: str) -> str:
        row = next((r for r in self.rows() if r.name == name), None)
        if row is None:
            return "there is no such cell"
        return f"it is {row.status}" + (f" by {row.owner}" if row.owner else "")

    def _change(self, statement: str, *values: Any) -> int:
        with self._transaction():
            return self._connection.execute(statement, values).rowcount

    def _one(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    def _row(self, identity: str) -> Row:
        return _as_row(self._connection.execute("SELECT * FROM cells WHERE id = ?", (identity,)).fetchone())

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            what = "the disk is full; free some space and run the same command again" if "full" in str(error) else str(error)
            raise ArtifactError(f"ledger {self.path}: {what}") from error


def _as_row(row: sqlite3.Row) -> Row:
    values = {k: row[k] for k in ("id", "name", "flops", "budget", "status", "owner", "lease_until", "attempts", "why")}
    return Row(**values, overrides=json.loads(row["overrides"]), heldout=bool(row["heldout"]), result=json.loads(row["result"]))


def _here() -> str:
    """Host and process namespace: where a pid means something."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{socket.gethostname()}/{namespace}"


def _start_time(pid: int) -> str:
    """Clock ticks from boot to the start of a process; '' where /proc does not tell. Raises ProcessLookupError."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            fields = stream.read().rpartition(")")[2].split()
    except FileNotFoundError:
        os.kill(pid, 0)  # raises ProcessLookupError when there is no such process
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _gone(owner: str) -> bool:
    """True when `owner` (see this_owner) was a process of this machine that no longer runs; False when unknown."""
    here, _, rest = owner.rpartition(":")[0].rpartition(":")
    if not rest.isdigit() or here != _here():
        return False
    try:
        return _start_time(int(rest)) != owner.rpartition(":")[2]
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
