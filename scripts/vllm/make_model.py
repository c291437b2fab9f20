#!/usr/bin/env python3
"""Build a generated model that real vLLM serves on a processor: random weights, a real tokenizer, a chat template.

No download is needed: the tokenizer is trained on the standard library's own sources, the weights come from a fixed
seed. The same CPython and library versions give the same bytes. Runs in vLLM's environment (see install.sh):

    make_model.py                                     the tiny model that the tests use
    make_model.py --hidden 512 --layers 12            23 M parameters: prefill is worth avoiding even here
    make_model.py --architecture gemma3               sliding windows: several KV cache groups
    make_model.py --adapter 1                         a LoRA adapter for the tiny model

It lies in ${WARMROUTE_CACHE:-~/.cache/warmroute}/models/NAME, and its path is the last line printed. A model that is
complete is kept; it is built beside its place and moved there whole, so that a broken one is never found.
"""

# vLLM's environment has what is imported inside the functions: a model that is kept needs none of it, and costs 0.04 s.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import json
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

REVISION = "1"
"""Part of the completeness mark: raise it when the models' content changes."""

VOCABULARY = 4096
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
TEXTS = [
    "argparse.py", "asyncio/base_events.py", "asyncio/streams.py", "datetime.py", "difflib.py", "doctest.py",
    "email/message.py", "http/client.py", "http/server.py", "json/__init__.py", "logging/__init__.py", "random.py",
    "socket.py", "statistics.py", "subprocess.py", "tarfile.py", "threading.py", "typing.py", "zipfile.py",
]  # fmt: skip

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if not (loop.first and message.role == 'system') %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def models_folder() -> Path:
    """Where generated models lie."""
    return Path(os.environ.get("WARMROUTE_CACHE") or Path.home() / ".cache" / "warmroute") / "models"


def train_tokenizer(folder: Path, max_model_len: int) -> int:
    """Write a byte-level BPE tokenizer with its chat template; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(library / name).read_text(encoding="utf-8") for name in TEXTS]
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": max_model_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return tokenizer.get_vocab_size()


def generate_weights(folder: Path, architecture: str, vocabulary: int, shape: argparse.Namespace) -> int:
    """Write config and random weights; return the number of parameters."""
    import torch
    import transformers

    torch.manual_seed(1234)
    torch.set_num_threads(1)  # sums in another order would be other weights
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.hidden * 2,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": shape.max_model_len,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }
    if architecture == "gemma3":
        windows = ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(shape.layers)]
        config = transformers.Gemma3TextConfig(**common, sliding_window=64, layer_types=windows)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common))
    model.to(torch.float32).save_pretrained(folder, safe_serialization=True)
    defaults = {"bos_token_id": 0, "eos_token_id": [2], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return int(sum(parameter.numel() for parameter in model.parameters()))


def generate_adapter(folder: Path, base: Path, seed: int) -> int:
    """Write a random LoRA adapter for the model in `base`; return the number of parameters."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    rank, hidden, width = 8, config["hidden_size"], config["head_dim"]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, heads in (("q_proj", config["num_attention_heads"]), ("v_proj", config["num_key_value_heads"])):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(heads * width, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": rank, "lora_alpha": 16,
        "lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "v_proj"], "inference_mode": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1))
    return sum(tensor.numel() for tensor in tensors.values())


def name_of(arguments: argparse.Namespace) -> str:
    """The model's folder name: the one asked for, or one made from what it is."""
    if arguments.name:
        return str(arguments.name)
    if arguments.adapter is not None:
        return f"adapter-{arguments.adapter}"
    shape = (arguments.architecture, arguments.hidden, arguments.layers)
    known = {("qwen3", 64, 2): "tiny", ("gemma3", 64, 4): "tiny-hybrid"}
    return known.get(shape, "{}-{}x{}".format(*shape))


def build(arguments: argparse.Namespace) -> Path:
    """Build what was asked for unless it is there; return its folder."""
    name = name_of(arguments)
    place = models_folder() / name
    mark = place / ".complete"
    wanted = json.dumps({"revision": REVISION, **vars(arguments)}, sort_keys=True)
    if mark.exists() and mark.read_text() == wanted:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
    try:
        if arguments.adapter is not None:
            parameters = generate_adapter(work, models_folder() / "tiny", arguments.adapter)
        else:
            vocabulary = train_tokenizer(work, arguments.max_model_len)
            parameters = generate_weights(work, arguments.architecture, vocabulary, arguments)
        (work / ".complete").write_text(wanted)
        work.chmod(0o755)
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{name}: {parameters:,} parameters")
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=["qwen3", "gemma3"], default="qwen3")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, help="default: 2, or 4 for gemma3")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--adapter", type=int, metavar="SEED", help="build a LoRA adapter for the tiny model instead")
    parser.add_argument("--name", help="folder name; default: made from the other options")
    arguments = parser.parse_args()
    arguments.layers = arguments.layers or (4 if arguments.architecture == "gemma3" else 2)
    print(build(arguments))


if __name__ == "__main__":
    main()
