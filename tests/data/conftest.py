"""Data tests share a misbehaving web server."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # flaky_server
