"""The built-in stages, offered through the same hook as a stranger's. A file (or folder) a stage: its options, its spec `PART`,
`check` before anything runs, and `run`. feebcore.run builds them."""

from feebcore.registry import collect
from feebcore.specs import StageSpec

feeb_stages = collect(__name__, StageSpec, modules=True)
