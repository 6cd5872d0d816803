"""Every mistake's text: what is wrong, the user's line, the remedy. One example per class, pinned."""

from __future__ import annotations

import inspect
import pickle

import pytest

from cfdsl import errors
from cfdsl.dsl.graph import Src
from cfdsl.errors import CfdslError, Errors, raise_all

SRC = Src("spec.py", 12, "y = cf.silu(x)")
AT = "\n  spec.py:12: y = cf.silu(x)\n"

EXAMPLES: list[tuple[CfdslError, str]] = [
    (
        errors.TraceError(problem="a traced value cannot be used as a condition", advice="branch on the model's config", src=SRC),
        f"a traced value cannot be used as a condition.{AT}  remedy: branch on the model's config.",
    ),
    (
        errors.ArgumentError(argument="x", expected="bf16 (1, 4096) on cuda:0", got="float32 (1, 4096) on cpu"),
        "argument 'x' must be bf16 (1, 4096) on cuda:0, got float32 (1, 4096) on cpu.\n  remedy: pass 'x' as bf16 (1, 4096) on cuda:0.",
    ),
    (
        errors.ArgumentError(argument="x", expected="16-byte aligned", got="an address off by 2", advice="clone the slice"),
        "argument 'x' must be 16-byte aligned, got an address off by 2.\n  remedy: clone the slice.",
    ),
    (
        errors.DuplicateName(name="w", first="weight bf16[8] (line 3)", second="input bf16[4]", src=SRC),
        f"the name 'w' is taken: first weight bf16[8] (line 3), now input bf16[4].{AT}"
        "  remedy: give one of them another name; the names become the kernel's arguments.",
    ),
    (
        errors.UnknownOption(fusion="attention_block", option="qkv", value="'columns'", known="qkv ('rows', 'split_k')"),
        "the fusion attention_block has no option qkv='columns'.\n  remedy: its options are: qkv ('rows', 'split_k').",
    ),
    (
        errors.ShapeMismatch(op="linear", expected="x of shape (batch, in)", got="(64,)", src=SRC),
        f"linear expects x of shape (batch, in), got (64,).{AT}"
        "  remedy: check the declared shapes; weights are (out, in), as Hugging Face stores them.",
    ),
    (
        errors.DtypeMismatch(op="rope", argument="pos", expected="i32", got="f32", src=SRC),
        f"rope expects pos of dtype i32, got f32.{AT}  remedy: declare pos with such a dtype.",
    ),
    (
        errors.TextSyntax(line=3, text="%0 = ?", problem="it is not a node"),
        "line 3 of the graph's text cannot be read: it is not a node: '%0 = ?'.\n"
        "  remedy: write one node per line, as to_text prints it: %name = op(%argument, attribute=value) : dtype[shape].",
    ),
    (
        errors.InvalidGraph(op="linear", problem="its type is f32[1,2] and should be f32[1,4]", src=SRC),
        f"the graph is not valid at linear: its type is f32[1,2] and should be f32[1,4].{AT}"
        "  remedy: every node must follow the rule of its op; build graphs with a traced fusion.",
    ),
    (
        errors.NeedsReduce(
            op="silu", argument="the result of linear (line 9)", placement="P(sum)", axis="cluster", collective="cluster_reduce", src=SRC
        ),
        "silu needs a value, but the result of linear (line 9) is P(sum) on the cluster axis: each holder has only a term of it."
        f"{AT}  remedy: needs cluster_reduce: call cluster_reduce on the result of linear (line 9) before this line.",
    ),
    (
        errors.ShardDoesNotDivide(op="linear", dim=1, size=36, parts=8, axis="ranks", src=SRC),
        f"linear cannot shard dimension 1 of size 36 over 8 ranks.{AT}"
        "  remedy: choose a number that divides it, or shard another dimension.",
    ),
    (
        errors.WrongCollective(
            call="cluster_reduce",
            moves="P(op) -> R on the cluster axis",
            argument="x",
            placement="[R, S(1)]",
            legal="call cluster_gather on x",
            src=SRC,
        ),
        f"cluster_reduce moves P(op) -> R on the cluster axis, but x is placed [R, S(1)].{AT}  remedy: call cluster_gather on x.",
    ),
    (
        errors.PlacementMismatch(op="add", problem="a [S(0), R] and b [S(1), R] differ", legal="call grid_gather on one of them", src=SRC),
        f"add: a [S(0), R] and b [S(1), R] differ.{AT}  remedy: call grid_gather on one of them.",
    ),
    (
        errors.ClustersDoNotDivide(over=32, clusters=30),
        "32 work units cannot be spread over 30 clusters: neither number divides the other.\n"
        "  remedy: use a number of clusters that divides 32, or a multiple of 32.",
    ),
    (
        errors.ClustersDoNotDivide(over=8, clusters=3, splits=4),
        "8 work units cannot be spread over 3 groups of 4 clusters: neither number divides the other.\n"
        "  remedy: use a number of groups of 4 clusters that divides 8, or a multiple of 8.",
    ),
    (
        errors.NothingToSplit(fusion="f", splits=3),
        "3 clusters share a unit, but f has no attend(..., shard='tokens', across='all'): they would repeat its work.\n"
        "  remedy: use splits=1, or a dataflow that splits tokens over clusters (of attention_block: qkv='grid').",
    ),
    (
        errors.ClusterSizeUnsupported(size=3),
        "a cluster of 3 CTAs is not supported.\n  remedy: use a cluster size of 1, 2, 4, 8 or 16.",
    ),
    (
        errors.HeadDimUnsupported(head_dim=96, supported=(64, 128)),
        "head_dim 96 is not supported.\n  remedy: use a model with head_dim 64 or 128.",
    ),
    (
        errors.GroupUnsupported(group=32, limit=16),
        "32 query heads per key/value head are not supported.\n  remedy: use a model with at most 16.",
    ),
    (
        errors.RowUnsupported(weights=("wq", "wk"), columns=100, multiple=8),
        "rows of 100 elements, as those of wq and wk, are not supported.\n"
        "  remedy: use a model whose hidden size, intermediate size and heads x head_dim are multiples of 8.",
    ),
    (
        errors.ModelUnsupported(name="some/model", reasons=["head_dim is 96", "it is quantised"]),
        "the model 'some/model' is not supported:\n  - head_dim is 96\n  - it is quantised\n"
        "  remedy: use a model without these; cfdsl computes llama, mistral and qwen2 attention (docs/concepts.md).",
    ),
    (
        errors.ModelUnreadable(file="x/config.json", problem="it is not JSON: line 1"),
        "x/config.json cannot be read as a model's config: it is not JSON: line 1.\n"
        "  remedy: give a Hugging Face config.json, or the folder of one, as `save_pretrained` writes it.",
    ),
    (
        errors.WeightsMismatch(model="tiny", problems=["a: missing, of shape (2,)", "b: its dtype is float32, it must be bfloat16"]),
        "these are not the weights of tiny:\n  - a: missing, of shape (2,)\n  - b: its dtype is float32, it must be bfloat16\n"
        "  remedy: pass the tensors of the model's Hugging Face state_dict, in the decoder's dtype and all on its device.",
    ),
    (
        errors.UnknownModel(name="llama-9", known=("a", "b")),
        "there is no model 'llama-9': no preset has this name and no config.json lies there.\n"
        "  remedy: use one of a, b, or the path of a Hugging Face config.json.",
    ),
    (errors.UnknownPart(name="h300", known=("h100-sxm", "h200")), "there is no part 'h300'.\n  remedy: use one of h100-sxm, h200."),
    (
        errors.NoTarget(),
        "this needs a GPU of compute capability 9.0, found no GPU.\n"
        "  remedy: run it on such a machine; compiling and inspecting work without one when a part is named (part='h100-sxm').",
    ),
    (
        errors.SharedMemoryExceeded(needed=245760, limit=232448, breakdown=(("ring", 229376), ("x", 16384)), src=SRC),
        f"a CTA needs 245,760 bytes of shared memory, the limit is 232,448: ring 229,376 + x 16,384 = 245,760.{AT}"
        "  remedy: make the largest of them smaller, or use fewer or smaller ring stages, a larger cluster, or fewer CTAs per SM.",
    ),
    (
        errors.SharedMemoryExceeded(needed=245760, limit=232448),
        "a CTA needs 245,760 bytes of shared memory, the limit is 232,448.\n"
        "  remedy: make the largest of them smaller, or use fewer or smaller ring stages, a larger cluster, or fewer CTAs per SM.",
    ),
    (
        errors.NotResident(clusters=32, resident=30, size=4, part="h100-sxm"),
        "the launch has 32 clusters of 4, but h100-sxm holds 30 at once (CTAs per SM: 1).\n"
        "  remedy: use at most 30 clusters, a smaller cluster, or less shared memory per CTA: a grid barrier waits for all of them.",
    ),
    (
        errors.NotLowered(op="gelu", src=SRC),
        f"gelu cannot be compiled: the compiler has no lowering for it.{AT}"
        "  remedy: interpret() runs it; for a kernel, write it with the ops of a shipped fusion.",
    ),
    (
        errors.PlanError(what="barrier q_in waits for the wrong bytes", sum="3 x 512 = 1536, not 1024"),
        "the plan is wrong: barrier q_in waits for the wrong bytes: 3 x 512 = 1536, not 1024.\n"
        "  remedy: this is a mistake in cfdsl unless you edited the plan; report it with `show --stage plan`.",
    ),
    (
        errors.ConfigError(name="warps", value=0, expected="1 to 15"),
        "the config has warps=0, it must be 1 to 15.\n"
        "  remedy: leave warps out and it is chosen for you, or give a value that is 1 to 15.",
    ),
    (
        errors.NoLegalConfig(fusion="rms_norm", part="h100-sxm", given=" with warps=9", reasons=("a", "b")),
        "rms_norm has no config that runs on h100-sxm with warps=9:\n  - a\n  - b\n"
        "  remedy: give fewer fields of the config, or take another part; `explain` shows every config with its reasons.",
    ),
    (
        errors.NoLegalConfig(fusion="rms_norm", part="h100-sxm", given="", reasons=("a",), src=SRC),
        f"rms_norm has no config that runs on h100-sxm:\n  - a{AT}"
        "  remedy: change what the reasons name, or take another part; `explain` shows every config with its reasons.",
    ),
    (
        errors.CompileFailed(source="/cache/k.py", detail="ptxas: out of registers"),
        "the generated kernel /cache/k.py did not compile: ptxas: out of registers.\n"
        "  remedy: this is a mistake in cfdsl; report it with the generated source.",
    ),
    (
        errors.AlgorithmUnsupported(
            request="gather of f32 9 on clusters of 4", algorithm="bulk", reasons=[("bulk", "36 bytes")], possible=["push", "global"]
        ),
        "gather of f32 9 on clusters of 4 cannot be done by 'bulk':\n  - bulk: 36 bytes\n"
        "  remedy: use 'push' or 'global', or leave the algorithm to the cost model.",
    ),
    (
        errors.AlgorithmUnsupported(request="broadcast of f32 99999 on clusters of 4", algorithm=None, reasons=[("push", "no room")]),
        "broadcast of f32 99999 on clusters of 4 cannot be done:\n  - push: no room\n"
        "  remedy: use a smaller payload; or do it in several calls, each with a part of the payload.",
    ),
    (
        errors.AlgorithmUnsupported(request="gather of f32 9999 over 8", algorithm=None, reasons=[("push", "no room")], grows=True),
        "gather of f32 9999 over 8 cannot be done:\n  - push: no room\n"
        "  remedy: use a smaller payload or a smaller cluster, whose payloads together are the result; or do it in several calls, each "
        "with a part of the payload.",
    ),
    (
        errors.ColdCompileInCapture(kernel="rms_norm"),
        "the kernel rms_norm is not loaded yet and a CUDA graph is being captured.\n"
        "  remedy: call the kernel (or kernel.prepare()) once before the capture.",
    ),
    (
        errors.NotTraced(kernel="rms_norm_1234"),
        "the kernel rms_norm_1234 was compiled without trace, so it does not note when its steps ran.\n"
        "  remedy: compile it with trace=True.",
    ),
    (
        errors.TokenOutOfRange(token=-1, vocab=320),
        "token -1 was chosen, of a vocabulary of 320.\n  remedy: return tokens of the model, if the sampler is your own; a Sampler says -1 "
        "of logits that are not numbers: look at the weights, and at the decoder's status().",
    ),
    (
        errors.SequenceSuperseded(yielded=2),
        "the decoder has begun another sequence since this generator yielded its token 2: the caches are no longer its own.\n"
        "  remedy: use up one generator before the next begins, or make a decoder for each (weights are shared between them, not copied).",
    ),
    (
        errors.RecordingFull(kernel="rms_norm_1234", room=2),
        "the recording has room for 2 launches of rms_norm_1234, and this is one more.\n"
        "  remedy: open it with more: recording(kernels, launches=...).",
    ),
    (
        errors.MarksMissing(launch=1, cta=3, lane="producer"),
        "launch 1 of the recording has no times of CTA 3's producer: it has not run to its end.\n"
        "  remedy: read the recording after its launches, and replay the CUDA graph if they were captured in one.",
    ),
    (
        errors.DisassemblerMissing(found="none on the PATH"),
        "SASS needs nvdisasm, found none on the PATH.\n  remedy: pip install -U nvidia-cuda-nvdisasm.",
    ),
    (
        errors.CacheUnusable(folder="/proc/x", problem="No such file or directory"),
        "the kernel cache /proc/x cannot be used: No such file or directory.\n"
        "  remedy: set CFDSL_CACHE_DIR to a folder that can be made and written to, or make room in this one.",
    ),
    (
        errors.CacheFull(cache="cache", length=128, capacity=128),
        "the cache 'cache' is full: it holds 128 of 128 tokens and a call appends one.\n"
        "  remedy: allocate a larger cache, or drop tokens from it.",
    ),
    (
        errors.CapacityExceeded(prompt=20, new=100, capacity=64),
        "20 tokens of the prompt and 100 new ones do not fit caches of 64 tokens.\n"
        "  remedy: make the decoder with a capacity of at least their sum, or ask for fewer tokens.",
    ),
    (
        errors.BatchUnsupported(batch=4),
        "a batch of 4 sequences is not supported: a decoder decodes one.\n"
        "  remedy: decode the sequences one after another, each with a decoder (and caches) of its own or with reset() in between.",
    ),
    (
        errors.LengthOutOfRange(argument="length", value=-1, low=0, high=127),
        "argument 'length' is -1, outside of 0 to 127.\n  remedy: pass the number of tokens that the cache holds before the call.",
    ),
    (
        errors.PatchRefused(model="the LlamaForCausalLM", problem="its weights are float32", advice="load it in bfloat16"),
        "the LlamaForCausalLM cannot be patched: its weights are float32.\n  remedy: load it in bfloat16.",
    ),
    (
        errors.DecodeRefused(problem="it has a batch of 2 sequences", advice="call it with one"),
        "the patched model cannot decode this call: it has a batch of 2 sequences.\n"
        "  remedy: call it with one; or unpatch(model), and Hugging Face computes it.",
    ),
    (
        errors.PeerUnsupported(model="small", reasons=["its rotary pairs are interleaved", "it rotates 32 dimensions"]),
        "LlamaForCausalLM cannot be small: its rotary pairs are interleaved; it rotates 32 dimensions.\n"
        "  remedy: measure without it (--no-peers), or a model without these.",
    ),
    (
        errors.PatchedCopy(model="the LlamaForCausalLM"),
        "the LlamaForCausalLM is patched and cannot be copied or pickled: graphs and caches on the GPU, and the weights that they read, "
        "are its own.\n  remedy: call cfdsl.hf.unpatch(model) first, and patch the copy if need be; model.state_dict() and save_pretrained "
        "work as they are.",
    ),
    (
        errors.NotPatched(model="the LlamaForCausalLM"),
        "the LlamaForCausalLM is not patched.\n  remedy: give the model that patch was called on, before unpatch was.",
    ),
    (
        errors.PackageMissing(package="tokenizers", needs="reading tokenizer.json"),
        "reading tokenizer.json needs the package tokenizers, which is not installed.\n  remedy: pip install tokenizers.",
    ),
    (
        errors.WeightsUnusable(folder="smol", reasons=["there is no *.safetensors file", "it has no config.json"]),
        "the model in smol cannot be used:\n  - there is no *.safetensors file\n  - it has no config.json\n"
        "  remedy: give a folder with config.json, *.safetensors and tokenizer.json, as `save_pretrained` writes it.",
    ),
]


@pytest.mark.parametrize(("error", "text"), EXAMPLES, ids=[type(error).__name__ for error, _ in EXAMPLES])
def test_text(error: CfdslError, text: str) -> None:
    assert str(error) == text


def test_every_class_has_an_example_here() -> None:
    classes = {cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, CfdslError)}
    assert classes - {CfdslError, Errors} == {type(error) for error, _ in EXAMPLES}


@pytest.mark.parametrize("error", [error for error, _ in EXAMPLES], ids=[type(error).__name__ for error, _ in EXAMPLES])
def test_every_mistake_names_a_remedy_and_survives_pickling(error: CfdslError) -> None:
    assert error.remedy
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


A = errors.HeadDimUnsupported(head_dim=96, supported=(64, 128))
B = errors.GroupUnsupported(group=32, limit=16, src=SRC)


def test_several_are_one_error_with_a_count() -> None:
    with pytest.raises(Errors) as caught:
        raise_all([A, B])
    assert caught.value.errors == (A, B)
    assert str(caught.value) == (
        "2 mistakes:\n"
        "1. HeadDimUnsupported: head_dim 96 is not supported.\n"
        "     remedy: use a model with head_dim 64 or 128.\n"
        "2. GroupUnsupported: 32 query heads per key/value head are not supported.\n"
        "     spec.py:12: y = cf.silu(x)\n"
        "     remedy: use a model with at most 16."
    )


def test_one_is_itself_and_none_is_nothing() -> None:
    raise_all([])
    with pytest.raises(errors.HeadDimUnsupported) as caught:
        raise_all([A])
    assert caught.value is A


def test_groups_are_flattened_and_repeats_dropped() -> None:
    with pytest.raises(Errors) as caught:
        raise_all([Errors(errors=(A, B)), errors.HeadDimUnsupported(head_dim=96, supported=(64, 128)), B])
    assert caught.value.errors == (A, B)


def test_they_are_exceptions_like_any_other() -> None:
    assert issubclass(CfdslError, Exception)
    with pytest.raises(CfdslError):
        raise errors.NotResident(clusters=32, resident=30, size=4, part="h100-sxm")


def test_a_whole_number_is_no_flag_and_not_below_the_least() -> None:
    assert [errors.is_whole(value) for value in (-1, 0, 2**40, True, 1.0, "1", None)] == [True, True, True, False, False, False, False]
    assert [errors.is_whole(value, 1) for value in (0, 1, True)] == [False, True, False]


def test_alternatives_in_words() -> None:
    assert errors.listed([8]) == "8"
    assert errors.listed(name for name in ("f32", "f16", "bf16")) == "f32, f16 or bf16"
    assert errors.listed((1, 2), "and") == "1 and 2"
