"""A request done by one algorithm: the protocol, the layout of source and result, and the bytes that move."""

from __future__ import annotations

from dataclasses import dataclass

from cfdsl.compiler.collective.protocol import OTHERS, Protocol
from cfdsl.compiler.collective.request import WIDTH, Collective

VECTOR = 16  # bytes: rows start at multiples of it, bulk copies and multicasts move multiples


@dataclass(frozen=True)
class Design:
    """A request, done by one algorithm.

    sent            elements of what one rank sends to one peer at first, of type `sent_dtype`; their distance where several lie in a row
    source_pieces   pieces of `sent` elements that a rank's source is laid out as, `sent_stride` apart
    result_pieces   pieces of `result_piece` elements that its result is, `result_stride` apart
    """

    request: Collective
    algorithm: str
    protocol: Protocol
    warps: int
    smem_bytes: int
    sent: int
    sent_dtype: str
    source_pieces: int
    result_pieces: int
    result_piece: int

    @property
    def sent_stride(self) -> int:
        return stride(self.sent, WIDTH[self.sent_dtype])

    @property
    def result_stride(self) -> int:
        return stride(self.result_piece, WIDTH[self.request.held])

    @property
    def source_stride(self) -> int:
        """Elements that a source in one run takes: whole vectors."""
        return self.run_stride(self.request.payload)

    def run_stride(self, n: int) -> int:
        """Elements that a run of `n` takes in shared memory: whole vectors."""
        return stride(n, WIDTH[self.request.held])

    @property
    def scalar(self) -> bool:
        """Whether a register of each thread is enough for the term, and for the result."""
        request = self.request
        return request.kind == "reduce" and self.algorithm == "push" and request.payload == 1

    @property
    def stays(self) -> bool:
        """Whether a rank's own row is stored at home instead of being sent."""
        return any(act.to == OTHERS for act in self.protocol.acts)

    @property
    def offchip(self) -> bool:
        """Whether data travel through device memory."""
        return self.algorithm == "global"

    @property
    def bytes_pushed(self) -> int:
        """Bytes of distributed shared memory that one rank sends to others in one exchange."""
        return self.protocol.sent()

    @property
    def bytes_global(self) -> int:
        """Bytes of device memory that one rank moves in one exchange."""
        request, ranks = self.request, self.request.cluster
        if self.algorithm == "multicast":
            whole = request.payload * request.width * (ranks if request.kind == "gather" else 1)
            return -(-whole // ranks)
        if not self.offchip:
            return 0
        row = WIDTH[self.sent_dtype]
        written = self.source_pieces * self.sent_stride * row
        read = self.sent_stride * row * (1 if request.kind == "broadcast" else ranks)
        return written + read

    def workspace_words(self) -> int:
        """f32 of device memory for rows on their way: two sets, a row of each rank of each cluster."""
        row = self.source_pieces * self.sent_stride * WIDTH[self.sent_dtype] // 4
        return 2 * self.request.clusters * self.request.cluster * row


def padded(nbytes: int) -> int:
    """Rounded up to whole vectors."""
    return -(-nbytes // VECTOR) * VECTOR


def stride(n: int, width: int) -> int:
    """Elements from one row of `n` to the next."""
    return padded(n * width) // width


def word_bytes(n: int, width: int) -> int:
    """Bytes of a row on its way: whole words."""
    return -(-n * width // 4) * 4
