"""An artifact that is no stage's: a comparison, a page of claims. Under the same lock, with the same files and the same commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, Workspace, commit
from feebcore.files import digest_of, explain, write_json
from feebcore.provenance import describe_environment
from feebcore.run.contracts import unchecked_in


@dataclass(frozen=True)
class Made:
    """What `make` has made: metrics and section of the manifest, inputs by name, plugins used."""

    metrics: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    section: Mapping[str, Any] = field(default_factory=dict)
    plugins: Iterable[Mapping[str, Any]] = ()


def build_artifact(
    workspace: Workspace,
    kind: str,
    name: str,
    identity: Mapping[str, Any],
    make: Callable[[StageOutput, Mapping[str, Any]], Made],
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    recipe: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Artifact] | None = None,
) -> Artifact:
    """The finished artifact of this identity, or the one that `make(out, environment)` fills.

    recipe: for recipe.json, where what was asked for is more than the identity. inputs: those that are known before it is made,
    which gc then keeps. Raises what `make` raises; the folder then stays unfinished.
    """
    fingerprint = digest_of(identity)[:12]
    publish = on_progress or (lambda row: None)
    with workspace.building(kind, name, fingerprint, lambda text: publish({"kind": "log", "time": time.time(), "text": f"{kind}: {text}"})) as place:
        if isinstance(place, Artifact):
            return place
        started, environment = time.time(), describe_environment()
        out = None
        try:
            if recipe is not None:
                write_json(place / "recipe.json", recipe)
            write_json(place / "environment.json", environment)
            known = {input_name: str(artifact.path) for input_name, artifact in (inputs or {}).items()}
            write_json(place / "request.json", {"stage": kind, "fingerprint": fingerprint, "inputs": known})
            out = StageOutput(place, on_progress)
            out.event("begin", stage=kind, pid=os.getpid())
            made = make(out, environment)
            return commit(
                out,
                stage=kind,
                name=place.name.rpartition("-")[0],
                fingerprint=fingerprint,
                identity=identity,
                metrics=made.metrics,
                section=made.section,
                inputs=made.inputs,
                plugins=made.plugins,
                environment=environment,
                started=started,
                unchecked=unchecked_in(made.inputs.values()),
            )
        except OSError as error:
            raise explain(error, place) from error
        finally:
            if out is not None:
                out.close()
