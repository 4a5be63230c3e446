"""A whole model as bytes: trained parameters in the model's own order, float32, little-endian."""

import torch
from torch import Tensor


def write_model(vector: Tensor) -> bytes:
    return vector.detach().cpu().contiguous().numpy().astype("<f4").tobytes()


def read_model(data: bytes, size: int) -> Tensor | None:
    """(size,) float32; None for anything else, and for what is not finite."""
    if len(data) != 4 * size:
        return None
    vector = torch.frombuffer(bytearray(data), dtype=torch.float32)
    return vector if bool(vector.isfinite().all()) else None
