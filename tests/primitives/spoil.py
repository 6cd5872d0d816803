"""Whether a kernel without one of its barriers is seen to be wrong; here, or in a process of its own if it may fault.

A loop that does not wait for its exchange lets barriers count what they were not armed for. The GPU may answer with a launch failure, after
which the process cannot use it any more: `spoils_apart` takes that for what it is, a wrong kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import cases  # noqa: E402
from cases import Case  # noqa: E402
from harness import Program  # noqa: E402
from stress import stress  # noqa: E402

Late = tuple[int, int]  # CTA, warp
FAULT = "launch failure"
SECONDS = 120


def variant_of(case: Case) -> Any:
    """One that fills the deep rings once, and the shallow ones several times."""
    return 200 if 200 in case.variants else max(case.variants, key=lambda variant: variant or 0)


def wrong(case: Case, program: Program, late: Late) -> str:
    """How the result of a run with fresh inputs is wrong; empty if it is right."""
    variant = variant_of(case)
    inputs = case.inputs(variant)
    outs = case.run(program, inputs, late)
    try:
        case.check(outs, variant, inputs, f"{case.name}, late {late}")
    except AssertionError as error:
        return str(error)
    return ""


def spoils(case: Case, barrier: str, call: int | None, lates: Sequence[Late]) -> bool:
    """Whether the kernel without call `call` of `barrier` (None: all calls) is wrong when one of `lates` is late."""
    with stress(barrier, call):
        program = case.build()
    return any(wrong(case, program, late) for late in lates)


def spoils_apart(case: Case, barrier: str, call: int | None, lates: Sequence[Late]) -> bool:
    """As `spoils`, or a launch failure, in another process. Anything else that goes wrong there is an AssertionError here."""
    asked = json.dumps([case.name, barrier, call, list(lates)])
    done = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True, timeout=SECONDS, check=False)
    if FAULT in done.stderr:
        return True
    assert done.returncode == 0, done.stderr
    return bool(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    name, barrier, call, lates = json.loads(sys.argv[1])
    print(json.dumps(spoils(cases.by_name()[name], barrier, call, [(cta, warp) for cta, warp in lates])))
