"""Each promise of the design is broken on purpose, in many ways: does a test that cites it notice?

For each line of the table in broken.py: one place of a copy of the repository is changed, and one
test is run there. It has to fail, and it has to pass where nothing is changed.

    python tests/promises.py [--only P3]
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.broken import Mutation, mutations  # noqa: E402 - once it can be found

_PASSED, _FAILED = 0, 1  # what pytest exits with; all else means that no test said anything
_TIMEOUT_S: Final = 600.0


def why_not(mutation: Mutation, root: Path = ROOT) -> str | None:
    """What is wrong with a line of the table; None: it fits the code and the tests."""
    path, _, name = mutation.test.partition("::")
    test = _function(root / path, name)
    if test is None:
        return f"there is no test {mutation.test}"
    said = f"{name.upper()} {ast.get_docstring(test)}"
    if not re.search(rf"(?<![A-Z]){mutation.promise}(?!\d)", said):
        return f"{mutation.test} does not cite {mutation.promise}"
    source = (root / mutation.file).read_text("utf-8")
    if source.count(mutation.old) != 1:
        return f"{mutation.file} holds {source.count(mutation.old)} times: {mutation.old}"
    try:
        ast.parse(mutation.apply(source))
    except SyntaxError as error:
        return f"{mutation.file} would be no Python: {error}"
    return None


def _function(path: Path, name: str) -> ast.FunctionDef | None:
    if not path.is_file():
        return None
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node
    return None


def copy_tracked(to: Path) -> None:
    """The files that git knows, as they are on disk."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, to / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """What pytest exits with, and what it says; None: it did not end in time."""
    # No bytecode: a file that is changed twice in a second would be run as it was before.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None, f"no end after {_TIMEOUT_S:.0f} s"
    return ended.returncode, ended.stdout + ended.stderr


def is_caught(copy: Path, mutation: Mutation) -> bool:
    """Does the test fail while this is broken?"""
    path = copy / mutation.file
    sound = path.read_text("utf-8")
    path.write_text(mutation.apply(sound), "utf-8")
    try:
        code, said = run_tests(copy, [mutation.test])
    finally:
        path.write_text(sound, "utf-8")
    if code == _FAILED:
        _tell(f"    caught: {_complaint(said)}")
    else:
        _tell(f"    MISSED by {mutation.test} (pytest: {code})\n{said[-2_000:]}")
    return code == _FAILED


def _complaint(said: str) -> str:
    """The first line in which pytest says what went wrong."""
    lines = [line[1:].strip() for line in said.splitlines() if line.startswith("E ")]
    return lines[0][:120] if lines else "the test failed"


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def prove(table: Sequence[Mutation]) -> list[Mutation]:
    """Those that no test noticed."""
    with tempfile.TemporaryDirectory(prefix="promises-") as folder:
        copy = Path(folder)
        copy_tracked(copy)
        tests = list(dict.fromkeys(mutation.test for mutation in table))
        _tell(f"{len(tests)} tests while nothing is broken")
        code, said = run_tests(copy, tests)
        if code != _PASSED:
            raise SystemExit(f"{said[-4_000:]}\nthe tests fail, though nothing is broken")
        missed = []
        for mutation in table:
            _tell(f"{mutation.promise} {mutation.broken}")
            if not is_caught(copy, mutation):
                missed.append(mutation)
        return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="P3", help="one promise")
    only = parser.parse_args().only
    table = [mutation for mutation in mutations() if only in (None, mutation.promise)]
    wrong = [why for why in map(why_not, table) if why is not None]
    if wrong or not table:
        raise SystemExit("\n".join(wrong) or f"no promise is called {only}")
    missed = prove(table)
    summary = {
        "bench": "promises",
        "mutations": len(table),
        "caught": len(table) - len(missed),
        "missed": [f"{mutation.promise} {mutation.broken}" for mutation in missed],
        "met": not missed,
    }
    sys.stdout.write(json.dumps(summary) + "\n")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
