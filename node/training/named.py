"""Code that a machine's owner names in his own settings. No manifest and no message ever does."""

import importlib

from node.errors import ConfigError


def load_named(
    path: str,  # `module:name`, or `module.name`
    what: str,  # for the error: "the optimizer"
    hint: str,
) -> object:
    """Raises ConfigError when there is nothing under that name."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} {path!r} cannot be imported: {error}", hint) from error
