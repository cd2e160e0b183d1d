"""Built-in callbacks: the training log, progress, samples, wandb, and probes that look inside the model."""

import feebcore as feeb

feeb_callbacks = feeb.collect(__name__, feeb.CallbackSpec)
