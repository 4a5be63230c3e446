"""Where text comes from: files, folders, tables, the standard library. Yields documents in an order
that does not depend on the machine.
"""

import glob
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from node.errors import ConfigError, optional

STDLIB_SKIPPED = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}

Row = dict[str, Any]


def stdlib_texts() -> Iterator[str]:
    """The Python standard library's own sources. They differ between Python versions, and the
    data's digest with them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [p.relative_to(root) for p in root.rglob("*.py")]
    for path in sorted(p for p in found if not STDLIB_SKIPPED & set(p.parts)):
        yield (root / path).read_text(encoding="utf-8", errors="replace")


def text_files(paths: Sequence[str], root: Path) -> Iterator[str]:
    """One document a file."""
    for path in resolve(paths, root, ("*.txt", "*.md", "*.py", "*.text")):
        yield path.read_text(encoding="utf-8", errors="replace")


def json_rows(paths: Sequence[str], root: Path) -> Iterator[Row]:
    for path in resolve(paths, root, ("*.jsonl", "*.ndjson", "*.json")):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _json_row(line, path, number)


def _json_row(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {number}: {error}", "one JSON object a line") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number} is not a JSON object", "one JSON object a line")
    return row


def parquet_rows(paths: Sequence[str], root: Path, columns: Sequence[str]) -> Iterator[Row]:
    parquet = optional("pyarrow.parquet", "data")
    for path in resolve(paths, root, ("*.parquet",)):
        with parquet.ParquetFile(path) as file:
            missing = set(columns) - set(file.schema_arrow.names)
            if missing:
                raise ConfigError(
                    f"{path} has no column {sorted(missing)[0]!r}",
                    f"its columns: {', '.join(file.schema_arrow.names)}",
                )
            for batch in file.iter_batches(columns=list(columns)):
                yield from batch.to_pylist()


def hub_rows(name: str, subset: str | None, split: str) -> Iterator[Row]:
    datasets = optional("datasets", "data")
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the data set {name!r} cannot be loaded: {error}",
            "check the name and the split; without a network, load it once beforehand",
        ) from error


def field_of(row: Row, field: str) -> object:
    try:
        return row[field]
    except KeyError:
        raise ConfigError(
            f"a row of the data has no field {field!r}", f"its fields: {', '.join(map(str, row))}"
        ) from None


def resolve(paths: Sequence[str], root: Path, patterns: Sequence[str]) -> list[Path]:
    """Files, folders (searched for `patterns`) and globs, as sorted files; `~` and relative paths
    count from `root`.
    """
    files: list[Path] = []
    for text in paths:
        path = root / Path(text).expanduser()
        if path.is_dir():
            found = sorted({f for pattern in patterns for f in path.rglob(pattern)})
            if not found:
                raise ConfigError(f"{path} holds no {', '.join(patterns)} file")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            matches = [Path(m) for m in glob.glob(str(path), recursive=True)]
            found = sorted(m for m in matches if m.is_file())
            if not found:
                raise ConfigError(f"no file at {path}", "check `path` in [data]")
            files += found
    return files
