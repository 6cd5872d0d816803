from __future__ import annotations

import json
import math
from pathlib import Path

from cfdsl.cli.console import json_text


def test_json_is_what_any_parser_reads() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    record = {"us": 1.5, "errors": {"y": math.inf, "z": 0}, "rows": [{"us": math.nan}, ("a", None, True)], "file": Path("/a")}
    text = json_text(record)
    assert json.loads(text, parse_constant=refuse) == {
        "us": 1.5, "errors": {"y": None, "z": 0}, "rows": [{"us": None}, ["a", None, True]], "file": "/a",
    }  # fmt: skip
    assert text.endswith("}\n")
