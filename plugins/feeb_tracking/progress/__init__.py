"""The progress line."""

import feebcore as feeb

PART = feeb.CallbackSpec("progress", build=f"{__name__}.progress:ProgressBar", summary="Progress line with loss and tokens/s.")
