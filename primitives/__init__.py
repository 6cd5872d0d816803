"""Device code for fused decode kernels on thread-block clusters, written in CuTe DSL.

Everything here runs on the GPU or describes geometry to code that does; `host` alone runs before. Nothing here knows a model, a fusion
or the compiler; a hand-written kernel may import these modules directly.

Docstrings say who calls (one thread, a warp, all consumer threads), what must hold before and what holds after, which barrier is
involved with how many bytes, and whether a second call needs anything. Unless one says otherwise: a function has no barrier inside; a
buffer in shared memory is f32, 16-byte aligned, and at the same offset in every CTA of a cluster; sizes are compile-time constants.

The dataflows (collectives between the CTAs of a cluster instead of round trips through global memory) follow ClusterFusion (Luo et al.
2025, arXiv:2508.18850); the code does not. Leaves first:

    cta          who am I: warp, lane; the consumer warps' named barrier; the shared-memory arena
    warp         reductions inside one warp
    exchange     transaction barriers between the CTAs of a cluster, and pushes to a peer
    ring         the ring of shared-memory stages between the producer warp and the consumer warps
    stream       the producer's side: weight rows and KV tiles, by bulk copy
    frag         a vector spread over the consumer warps' registers, in the layout that `gemv` multiplies with
    rmsnorm      mean square and RMS normalisation of such a vector
    gemv         matrix-vector products over the ring
    rope         rotary position embedding
    pointwise    activation functions
    argmax       the index of the greatest of many values, over a CTA and over the grid
    kv           cache lengths, and appending a token
    attention    one token's attention over the ring, split over warps and ranks
    terms        softmax terms of clusters that split a head's tokens, through global memory
    multicast    a vector of global memory to all ranks of a cluster, each asking for its part
    cluster_gather, cluster_reduce    the two collectives on a cluster, once per launch, as fused kernels use them
    grid         the grid barrier, and collectives through global memory
    transfer     rows of shared memory to other ranks: asynchronous stores, bulk copies
    fold         terms of a Partial combined in rank order: SUM, MAX, MIN, LSE
    channel      a collective's place in shared memory, and its barriers through the calls of a loop
    declared     whether the numbers of such a place fit the collective, while a kernel is traced
    collectives  cluster_reduce, cluster_reduce_scatter, cluster_gather, cluster_broadcast, for loops, by several algorithms
    doubling     recursive doubling, as in the paper
    offchip      grid_reduce, grid_gather, grid_broadcast: the same by way of global memory
    staging      a payload between global and shared memory
    trace        when a thread passed a place in the program
    host         what the host works out in a launch
"""
