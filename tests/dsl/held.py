"""Values of chosen placements, for the tests of placing."""

from __future__ import annotations

from typing import Any

import cfdsl as cf

MODEL = cf.ModelConfig("toy", hidden=64, heads=4, kv_heads=2, head_dim=16)


class Held:
    """Makes values of chosen placements inside a clusters(over=2) block. A name says [grid, cluster]."""

    def __init__(self, axis: Any) -> None:
        self.axis = axis
        self.x = cf.input("x", (2, 64))  # [R, R]
        self.rows = self.x[axis]  # [S(0), R]
        self.units = self.x[:, axis]  # [S(1), R]
        self.cols = cf.shard(self.x, -1)  # [R, S(1)]
        self.both = cf.shard(self.units, 1)  # [S(1), S(1)]
        self.w = cf.weight("w", (32, 64))
        self.term = cf.linear(self.x, self.w, shard="in")  # [R, P(sum)]
        self.grid_term = cf.linear(self.units, self.w[:, axis])  # [P(sum), R]
        self.whole = cf.linear(self.x, self.w)  # [R, R], f32
        self.wh = cf.weight("wh", (64, 64)).split_heads(4)  # (4, 16, 64)
        self.heads = cf.linear(self.x, self.wh[axis])  # [S(1), R] (2, 4, 16)
        self.length = cf.input("length", (2,), "i32")
        self.cache = cf.kv_cache("kv", 2, 2, "tokens", 16)
        self.softmax = cf.attend(self.heads, self.cache[axis], self.length, shard="tokens")  # [S(1), P(lse)]
        self.table = cf.input("table", ("positions", 8), "f32")
