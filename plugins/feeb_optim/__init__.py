"""Built-in optimizers, learning-rate schedules and learning-rate scalings: a folder a part or family, whose head loads no torch."""

import feebcore as feeb

feeb_optimizers = feeb.collect(__name__, feeb.OptimizerSpec)
feeb_schedules = feeb.collect(__name__, feeb.ScheduleSpec)
feeb_lr_scalings = feeb.collect(__name__, feeb.LRScalingSpec)
