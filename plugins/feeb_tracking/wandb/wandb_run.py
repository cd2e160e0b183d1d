"""The rows of the training log in Weights & Biases: offline by default, in wandb/ in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from feeb_tracking.rows import RowLogger
from feeb_tracking.wandb import WandbConfig
from feebcore.errors import FeebError
from feebcore.protocols import BuildContext
from feebcore.train.callbacks import RunContext

PREFIXES = {"train": "train", "validation": "val"}
"""Charts by the split of a row: train/loss and val/loss are two curves."""


class WandbRun(RowLogger):
    """The rows of metrics.jsonl (numbers as `train/key` and `val/key`), and what probes write (as `probe/key/place`), all over the
    number of optimizer steps. A resumed run keeps its id. wandb is imported when a run starts."""

    def __init__(self, config: WandbConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.session: Any = None

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        try:
            import wandb
        except ImportError:
            raise FeebError("callback wandb needs the package wandb: pip install 'feeb[wandb]', or take it out of callbacks") from None
        name = run.name or run.folder.name
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True)
        self.session = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=self.config.mode,
            id="".join(c if c.isalnum() or c in "-_" else "-" for c in name)[:64],
            name=name,
            resume="allow" if self.config.mode == "online" else None,
            dir=str(run.folder),
            config=run.section.model_dump(mode="json"),
            settings=settings,
        )
        self.session.define_metric("*", step_metric="step")
        if self.mirror not in run.subscribers:
            run.subscribers.append(self.mirror)

    def mirror(self, probe: str, step: int, values: dict[str, Any]) -> None:
        self.session.log({"step": step} | dict(numbers_in(values, probe)))

    def write(self, row: dict[str, Any]) -> None:
        prefix = PREFIXES[row["split"]]
        self.session.log({"step": row["step"]} | {f"{prefix}/{k}": v for k, v in row.items() if k not in ("step", "split")})

    def on_end(self, metrics: dict[str, Any]) -> None:
        self.session.summary.update({f"final/{k}": v for k, v in metrics.items() if isinstance(v, int | float)})

    def on_close(self) -> None:
        if self.session is not None:
            self.session.finish()


def numbers_in(value: Any, path: str) -> Iterator[tuple[str, float]]:
    """Every number in nested JSON values with its path; a list's places are numbers, an entry of a list that says its layer
    goes under that name."""
    if isinstance(value, bool | int | float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "layer":
                yield from numbers_in(item, f"{path}/{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            name = item["layer"] if isinstance(item, dict) and isinstance(item.get("layer"), str) else i
            yield from numbers_in(item, f"{path}/{name}")
