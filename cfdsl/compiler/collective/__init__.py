"""Collectives as kernels of their own: what is asked for, by which algorithm, the protocol and its proof, and the plan."""
