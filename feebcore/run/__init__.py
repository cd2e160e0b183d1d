"""The runner: one stage built under a lock, in this process, in worker processes or as ranks of several machines."""
