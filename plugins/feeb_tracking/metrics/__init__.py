"""The training log."""

import feebcore as feeb
from feeb_tracking.options import LogConfig

PART = feeb.CallbackSpec("metrics", LogConfig, build=f"{__name__}.metrics:Metrics", summary="Training log in metrics.jsonl.")
