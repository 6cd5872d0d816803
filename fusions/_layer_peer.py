"""What a decoder layer is measured against in torch: the two blocks' peers, one behind the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import cfdsl as cf
from fusions._attention_peers import eager_sdpa, peer_inputs
from fusions.ffn_block import with_both


def layer_inputs(m: cf.ModelConfig, tensors: Mapping[str, Tensor], length: int, layout: str) -> tuple[Any, ...]:
    """The attention block's peer inputs as a tuple; then norm, one matrix for gate and up, down, eps, activation."""
    first = peer_inputs(tensors, m.heads, m.norm_eps, length, layout, m.rope_style == "interleaved")
    both = torch.cat([tensors["w_gate"], tensors["w_up"]])
    return (tuple(first), tensors["ffn_norm"], both, tensors["w_down"], m.norm_eps, m.activation)


def layer(first: tuple[Any, ...], norm: Tensor, w_gate_up: Tensor, w_down: Tensor, eps: float, act: str) -> Tensor:
    """The layer in torch eager; (b, hidden)."""
    return with_both(eager_sdpa(*first), norm, w_gate_up, w_down, eps, act)
