"""A language model that any machine runs: two layers of noise, half a megabyte of GGUF."""

from __future__ import annotations

import random
import struct
from array import array
from math import prod

_WIDTH, _HEADS, _KV_HEADS, _LAYERS, _INNER, _CONTEXT = 64, 4, 2, 2, 128, 2048
_TOKENS = [b"<unk>", b"<s>", b"</s>", *(f"<0x{byte:02X}>".encode() for byte in range(256))]
_TOKENS += [f"\u2581{letter}".encode() for letter in "abcdefgh"]
_KINDS = [2, 3, 3, *[6] * 256, *[1] * 8]  # unknown, control, bytes, words
_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_I32 = 5
_PAD = 32


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _list(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _settings() -> list[tuple[str, int, bytes]]:
    numbers = {
        "general.file_type": 0, "llama.context_length": _CONTEXT,
        "llama.embedding_length": _WIDTH, "llama.block_count": _LAYERS,
        "llama.feed_forward_length": _INNER, "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _KV_HEADS,
        "llama.rope.dimension_count": _WIDTH // _HEADS, "llama.vocab_size": len(_TOKENS),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    words = {
        "general.architecture": "llama", "general.name": "rae-tiny",
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.chat_template": _TEMPLATE,
    }  # fmt: skip
    fractions = {"llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0}
    switches = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False}
    scores = [struct.pack("<f", 0.0)] * len(_TOKENS)
    return [
        *((name, _STRING, _string(text.encode())) for name, text in words.items()),
        *((name, _U32, struct.pack("<I", number)) for name, number in numbers.items()),
        *((name, _F32, struct.pack("<f", number)) for name, number in fractions.items()),
        *((name, _BOOL, struct.pack("<?", switch)) for name, switch in switches.items()),
        ("tokenizer.ggml.tokens", _ARRAY, _list(_STRING, [_string(text) for text in _TOKENS])),
        ("tokenizer.ggml.scores", _ARRAY, _list(_F32, scores)),
        ("tokenizer.ggml.token_type", _ARRAY,
         _list(_I32, [struct.pack("<i", kind) for kind in _KINDS])),
    ]  # fmt: skip


def _shapes() -> dict[str, tuple[int, ...]]:
    narrow = _KV_HEADS * _WIDTH // _HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_WIDTH, len(_TOKENS)), "output_norm.weight": (_WIDTH,),
        "output.weight": (_WIDTH, len(_TOKENS)),
    }  # fmt: skip
    for layer in range(_LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (_WIDTH,), "ffn_norm": (_WIDTH,),
            "attn_q": (_WIDTH, _WIDTH), "attn_k": (_WIDTH, narrow), "attn_v": (_WIDTH, narrow),
            "attn_output": (_WIDTH, _WIDTH), "ffn_gate": (_WIDTH, _INNER),
            "ffn_up": (_WIDTH, _INNER), "ffn_down": (_INNER, _WIDTH),
        }  # fmt: skip
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def gguf() -> bytes:
    """The model, the same bytes each time."""
    noise, settings = random.Random(0), _settings()
    head = [b"GGUF", struct.pack("<IQQ", 3, len(_shapes()), len(settings))]
    head += [_string(name.encode()) + struct.pack("<I", kind) + value
             for name, kind, value in settings]  # fmt: skip
    data = bytearray()
    for name, shape in _shapes().items():
        layout = f"<I{len(shape)}QIQ"  # how many dimensions, each, float32, where
        head += [_string(name.encode()), struct.pack(layout, len(shape), *shape, 0, len(data))]
        norm, size = name.endswith("norm.weight"), prod(shape)
        data += array("f", (1.0 if norm else noise.gauss(0, 0.05) for _ in range(size))).tobytes()
        data += bytes(-len(data) % _PAD)
    start = b"".join(head)
    return start + bytes(-len(start) % _PAD) + bytes(data)
