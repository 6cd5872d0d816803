"""Lets the tests of this folder import `plain_model` and `on_oracle`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
