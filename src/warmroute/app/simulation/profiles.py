"""How fast engines are: a model on a GPU, from data sheets and the model's own shape.

A step of an engine computes a batch: `tokens` prompt and output tokens, whose attention reads `context` cached tokens::

    step = overhead + max(weights read once, tokens * flops per token) + attention flops + cached tokens read

Weights are read from memory in every step however small it is; beyond some hundred tokens arithmetic takes longer. Peak
rates are the data sheets' (dense BF16, without sparsity); what engines reach of them in practice is `EFFICIENCY`, the
shares that published vLLM and SGLang throughputs come to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COMPUTE_EFFICIENCY: Final = 0.5
BANDWIDTH_EFFICIENCY: Final = 0.75
MEMORY_SHARE: Final = 0.9
"""vLLM's gpu_memory_utilization."""
STEP_OVERHEAD_S: Final = 0.003
"""Scheduling, launching, sampling: a few milliseconds per step."""
HOST_BYTES_PER_S: Final = 25e9
"""PCIe 4.0 x16, as measured in practice."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a data sheet says of one GPU."""

    flops: float
    bytes_per_s: float
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class Model:
    """A model's shape, as its config.json says."""

    parameters: float
    layers: int
    kv_heads: int
    heads: int
    head_dim: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


GPUS: Final = {
    "h100": Gpu(989e12, 3.35e12, 80e9),  # NVIDIA H100 SXM data sheet
    "h200": Gpu(989e12, 4.8e12, 141e9),  # NVIDIA H200 data sheet
    "a100": Gpu(312e12, 2.039e12, 80e9),  # NVIDIA A100 80GB SXM data sheet
    "l4": Gpu(121e12, 0.3e12, 24e9),  # NVIDIA L4 data sheet, dense
}

MODELS: Final = {
    "llama-3.1-8b": Model(8.03e9, 32, 8, 32, 128),
    "qwen3-32b": Model(32.8e9, 64, 8, 64, 128),
    "llama-3.1-70b": Model(70.6e9, 80, 8, 64, 128),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """How fast one engine is and how much it holds."""

    name: str
    weights_s: float
    """Reading all weights once."""
    token_s: float
    """Arithmetic of one token, without attention."""
    attention_s: float
    """Arithmetic of one token's attention to one earlier token."""
    context_s: float
    """Reading one cached token for a generation step."""
    overhead_s: float
    kv_tokens: int
    """Tokens that the GPU cache has room for."""
    host_kv_tokens: int
    """Tokens that the host tier has room for; 0: none."""
    host_token_s: float
    """Loading one token from host memory."""
    batch_tokens: int = 8192
    """Tokens per step at most (vLLM's max_num_batched_tokens on large GPUs)."""
    sequences_max: int = 256
    """Running requests at most (vLLM's max_num_seqs)."""

    def prefill_s(self, tokens: int, context: int = 0) -> float:
        """Seconds for a prompt of which `context` tokens are cached, alone on the engine."""
        steps = -(-tokens // self.batch_tokens)
        compute = max(steps * self.weights_s, tokens * self.token_s)
        return steps * self.overhead_s + compute + self.attention_s * tokens * (context + tokens / 2)

    def decode_s(self, context: int, batch: int) -> float:
        """Engine seconds that one output token takes its share of, in a batch of so many."""
        step = self.overhead_s + max(self.weights_s, batch * self.token_s)
        return step / batch + context * self.context_s


def make_profile(model: str, gpu: str, gpus: int = 1, host_gib: float = 0.0) -> Profile:
    """A model on so many GPUs (tensor parallel). Raises KeyError for unknown names, ValueError if it does not fit."""
    m, g = MODELS[model], GPUS[gpu]
    memory = gpus * g.memory_bytes * MEMORY_SHARE - 2 * m.parameters - gpus * 2e9  # activations and graphs
    if memory <= 0:
        raise ValueError(f"{model} does not fit on {gpus} {gpu}")
    flops, bandwidth = gpus * g.flops * COMPUTE_EFFICIENCY, gpus * g.bytes_per_s * BANDWIDTH_EFFICIENCY
    return Profile(
        name=f"{model}@{gpu}" + (f"x{gpus}" if gpus > 1 else ""),
        weights_s=2 * m.parameters / bandwidth,
        token_s=2 * m.parameters / flops,
        attention_s=4 * m.layers * m.heads * m.head_dim / flops,
        context_s=m.kv_bytes_per_token / bandwidth,
        overhead_s=STEP_OVERHEAD_S,
        kv_tokens=int(memory / m.kv_bytes_per_token),
        host_kv_tokens=int(host_gib * 2**30 / m.kv_bytes_per_token),
        host_token_s=m.kv_bytes_per_token / (HOST_BYTES_PER_S * gpus),
    )


def parse_profile(text: str, host_gib: float = 0.0) -> Profile:
    """`MODEL@GPU` or `MODEL@GPUxN`. Raises ValueError with what there is."""
    model, _, gpu = text.partition("@")
    gpu, _, count = gpu.partition("x")
    if model not in MODELS or gpu not in GPUS or (count and not count.isdecimal()):
        raise ValueError(
            f"{text!r} is no profile: give MODEL@GPU or MODEL@GPUxN, of the models {', '.join(MODELS)} "
            f"and the GPUs {', '.join(GPUS)}"
        )
    return make_profile(model, gpu, int(count or 1), host_gib)
