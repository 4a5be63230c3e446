"""Finished cells on disk: one file each, there whole or not at all, found again by its key."""

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from node.compare.records import Cell, Finished, Outcome, Task
from node.durable import write_atomically
from node.errors import UserError

_FOLDER = "cells"


class Shelf:
    def __init__(self, folder: Path, task: Task) -> None:
        """Raises UserError for a folder that cannot be made."""
        self._cells, self._task = folder / _FOLDER, task
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self._cells}: {error}", "pass --out FOLDER") from error

    def put(self, cell: Cell, outcome: Outcome) -> None:
        text = Finished(task=self._task, cell=cell, outcome=outcome).model_dump_json(indent=1)
        write_atomically(self._path(cell), lambda path: path.write_text(text, "utf-8"), mode=0o644)

    def get(self, cells: Iterable[Cell]) -> dict[Cell, Outcome]:
        """Those that are finished; a file that is damaged counts for nothing."""
        found = {}
        for cell in cells:
            try:
                text = self._path(cell).read_text("utf-8")
                found[cell] = Finished.model_validate_json(text).outcome
            except (FileNotFoundError, UnicodeDecodeError, ValidationError):
                continue
        return found

    def _path(self, cell: Cell) -> Path:
        return self._cells / f"{cell.key(self._task)}.json"
