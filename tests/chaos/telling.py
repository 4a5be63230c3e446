"""Progress on stderr, the result as one JSON line on stdout."""

import json
import sys
from collections.abc import Mapping
from typing import NoReturn


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def conclude(facts: Mapping[str, object]) -> NoReturn:
    """Print a result and end; `met` says with which code."""
    print(json.dumps(_rounded(facts)), flush=True)
    sys.exit(0 if facts["met"] else 1)


def _rounded(value: object) -> object:
    match value:
        case float():
            return float(f"{value:.5g}")
        case Mapping():
            return {key: _rounded(item) for key, item in value.items()}
        case list():
            return [_rounded(item) for item in value]
        case _:
            return value
