"""Small real runs for tests: a few thousand weights, rounds of a fraction of a second."""

from pathlib import Path

TINY = """
name = "tiny"

[model]
kind = "gpt"
layers = 1
width = 8
heads = 1
context = 16

[data]
source = "text"
path = "{text}"
context = 16
batch = 2
held_out_batches = 2

{method}

[rules]
network = "local"
window_s = {window_s}
grace_s = 0.3
patience_s = {patience_s}
quorum = "{quorum}"
heldout_every = 5
snapshot_every = {snapshot_every}
{attachments}

[node]
threads = 1
{node}
"""

UNHURRIED = """
[node.optimizer]
path = "tests.chaos.device:Unhurried"
options = { lr = 0.01 }
"""

SPSA = """
[method]
name = "spsa"
learning_rate = {{ peak = "0.001" }}
probes = {probes}
"""

_INNER = """
[method.inner]
steps = 2
optimizer = {{ name = "adamw", lr = 0.01 }}
"""

SPARSELOCO = '[method]\nname = "sparseloco"\nchunk = 256\n' + _INNER
DILOCO = '[method]\nname = "diloco"\nvalue_bits = 8\n' + _INNER
STREAMING = '[method]\nname = "diloco"\nfragments = 2\noverlap = true\n' + _INNER
NOLOCO = '[method]\nname = "noloco"\n' + _INNER
DEMO = '[method]\nname = "demo"\noverlap = true\n\n[method.gradient]\nbatches = 2\n'


def write_run(
    folder: Path,
    *,
    probes: int = 4,
    quorum: str = "any",
    window_s: float = 0.3,
    patience_s: float = 3.0,
    snapshot_every: int = 10,
    attachment_bytes_max: int | None = None,
    parts_max: int | None = None,
    method: str = SPSA,
    node: str = "",
) -> Path:
    """A run file and its text in `folder`."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"{n} times {n} is {n * n}, as everybody knows." for n in range(900)))
    path = folder / "run.toml"
    path.write_text(
        TINY.format(
            text=text,
            method=method.format(probes=probes),
            quorum=quorum,
            window_s=window_s,
            patience_s=patience_s,
            snapshot_every=snapshot_every,
            node=node,
            attachments="\n".join(
                f"{key} = {value}"
                for key, value in [
                    ("attachment_bytes_max", attachment_bytes_max),
                    ("parts_max", parts_max),
                ]
                if value is not None
            ),
        )
    )
    return path
