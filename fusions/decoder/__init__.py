"""Decoding with a whole model: the shipped fusions as one step per token, captured once in a CUDA graph.

    from fusions.decoder import Decoder, Sampler
    decoder = Decoder(model, state_dict, capacity=4096)
    for token in decoder.generate(prompt_ids, 256, eos=[2]): ...

Importing this loads torch.
"""

from __future__ import annotations

from fusions.decoder.decoder import Decoder
from fusions.decoder.sampling import Sampler, greedy
from fusions.decoder.step import Launch
from fusions.decoder.weights import weight_shapes

__all__ = ["Decoder", "Launch", "Sampler", "greedy", "weight_shapes"]
