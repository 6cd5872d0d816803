"""One exchange among the CTAs of a cluster as a kernel of its own, without writing a fusion.

Four CTAs each have a term of a sum; the kernel gives every one of them the sum. The cost model picks the algorithm, and any other can be
asked for: as asynchronous stores into each other's shared memory, as bulk copies, by recursive doubling, or through device memory.

    python examples/06_collectives.py
"""

from __future__ import annotations

import torch

import cfdsl as cf

PART, CLUSTER, CLUSTERS = "h100-sxm", 4, 8
SHAPE = (2048,)


def show(kernel: cf.Kernel) -> None:
    """What was weighed, the protocol that was proved, and the loop that was written."""
    print(kernel.stages["choice"])
    print("One exchange, as it was proved before anything was compiled:\n")
    print(kernel.stages["plan"])
    lines = kernel.source.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("@cute.kernel"))
    end = next(number for number, line in enumerate(lines) if line.startswith("kernel.set_name_prefix"))
    print("\n".join(lines[start:end]).rstrip())


def refused() -> None:
    """Everything that is wrong with a request is said at once."""
    try:
        cf.collective("gather", op="average", shape=(3,), dtype="f8", cluster=3, part=PART)
    except cf.CfdslError as mistake:
        print(f"\n{type(mistake).__name__}: {mistake}")
    try:
        cf.collective("gather", shape=(33,), cluster=CLUSTER, algorithm="multicast", part=PART)
    except cf.CfdslError as mistake:
        print(f"\n{type(mistake).__name__}: {mistake}")


def run() -> None:
    """Each algorithm on the GPU, against float64."""
    x = torch.randn(CLUSTERS, CLUSTER, *SHAPE, device="cuda")
    want = x.double().sum(1, keepdim=True).expand_as(x)
    for algorithm in cf.collective_algorithms("reduce", shape=SHAPE, cluster=CLUSTER):
        kernel = cf.collective("reduce", shape=SHAPE, cluster=CLUSTER, clusters=CLUSTERS, algorithm=algorithm, repeat=100, timed=True)
        y, cycles = torch.empty_like(x), torch.empty(CLUSTERS, CLUSTER, dtype=torch.int32, device="cuda")
        kernel(x, y, cycles)
        error = float((y - want).norm() / want.norm())
        equal = bool(torch.equal(y, y[:, :1].expand_as(y)))
        print(f"  {algorithm:15} relative error {error:.1e}, ranks agree: {equal}, {int(cycles.max()) / 100:,.0f} cycles an exchange")


def main() -> None:
    """The kernel's stages, mistakes, and on a GPU its result."""
    kernel = cf.collective("reduce", op="sum", shape=SHAPE, cluster=CLUSTER, clusters=CLUSTERS, part=PART)
    show(kernel)
    print(f"\n{kernel.registers} registers, {kernel.smem_bytes:,} B of shared memory; a rank sends {kernel.bytes_pushed:,} B to others.")
    refused()
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9:
        print("\nOn the GPU, 100 exchanges in a row:\n")
        run()
    else:
        print("\nNo GPU of compute capability 9.0 here: compiled, not launched.")


if __name__ == "__main__":
    main()
