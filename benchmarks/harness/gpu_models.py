"""Whole models of the GPU benchmark: transformers' configurations with random weights, in 16 bits.

Used twice: where the models are exported, and on the machine with the GPU, where PyTorch runs the same modules. Needs
torch and transformers when a model is made, not before.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TINY_TEXT = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
_TINY_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
}  # fmt: skip
_TINY_GPT = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 5632, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip
_TINY_LLAMA = {**_TINY_TEXT, "num_key_value_heads": 1}


@dataclass(frozen=True)
class Model:
    """A model of the benchmark.

    Attributes:
        kind: What it takes: "text" (ids; without padding there is no mask), "image", or "step" (one token after a cache
            of ``seq``).
        model: The class in transformers.
        config: That of its configuration.
        options: The configuration.
        tiny: A configuration for tests.
        seq: Tokens, or those in the cache; the side of an image.
        tiny_seq: The same for tests.
        output: Which field of the result is the output.
    """

    kind: str
    model: str
    config: str
    options: Mapping[str, Any]
    tiny: Mapping[str, Any]
    seq: int = 128
    tiny_seq: int = 8
    output: str = "last_hidden_state"

    def module(self, tiny: bool = False) -> Any:
        """The module, with random weights, ready to run, and in 32 bits."""
        torch, library = importlib.import_module("torch"), importlib.import_module("transformers")
        torch.manual_seed(0)
        config = getattr(library, self.config)(**(self.tiny if tiny else self.options))
        with torch.no_grad():
            made = getattr(library, self.model)(config).eval()
        return _step(made) if self.kind == "step" else _whole(made, self.names(), self.output)

    def names(self) -> list[str]:
        """Its inputs, but for the cache."""
        return ["pixel_values"] if self.kind == "image" else ["input_ids"]

    def inputs(self, batch: int, tiny: bool = False, kind: Any = np.float16) -> dict[str, np.ndarray]:
        """Inputs, drawn; in the order in which the module takes them.

        Args:
            batch: How many at once.
            tiny: Of the size for tests.
            kind: The type of floats.
        """
        rng = np.random.default_rng(batch)
        options = self.tiny if tiny else self.options
        seq = self.tiny_seq if tiny else self.seq
        if self.kind == "image":
            return {"pixel_values": rng.standard_normal((batch, 3, seq, seq), np.float32).astype(kind)}
        tokens = 1 if self.kind == "step" else seq
        vocabulary = options.get("vocab_size", 30522)
        found = {"input_ids": rng.integers(1, vocabulary, (batch, tokens))}
        if self.kind == "step":
            heads = options["num_key_value_heads"]
            shape = (batch, heads, seq, options["hidden_size"] // options["num_attention_heads"])
            for layer in range(options["num_hidden_layers"]):
                for part in ("key", "value"):
                    found[f"past.{layer}.{part}"] = (0.5 * rng.standard_normal(shape, np.float32)).astype(kind)
        return found


def _text(**fields: Any) -> Model:
    return Model("text", "BertModel", "BertConfig", fields.pop("options"), {**_TINY_TEXT, **_NO_DROPOUT}, **fields)


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
#: By name; the order is that of their worth to the reader.
MODELS = {
    "bert-base s128": _text(options=_NO_DROPOUT),
    "resnet50": Model("image", "ResNetModel", "ResNetConfig", {},
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}, 224, 16, "pooler_output"),
    "llama step": Model("step", "LlamaForCausalLM", "LlamaConfig", _LLAMA, _TINY_LLAMA, 1024, 8, "logits"),
    "vit-b/16": Model("image", "ViTModel", "ViTConfig", _NO_DROPOUT, _TINY_VIT, 224, 32),
    "gpt2 s128": Model("text", "GPT2Model", "GPT2Config", {"use_cache": False}, {**_TINY_GPT, "use_cache": False}),
    "llama s128": Model("text", "LlamaForCausalLM", "LlamaConfig", {**_LLAMA, "use_cache": False},
        {**_TINY_LLAMA, "use_cache": False}, 128, 8, "logits"),
    "bert-large s384": _text(options={**_NO_DROPOUT, **_LARGE}, seq=384),
    "mobilenet-v2": Model("image", "MobileNetV2Model", "MobileNetV2Config", {},
        {"image_size": 32, "depth_multiplier": 0.35}, 224, 32, "pooler_output"),
    "convnext-t": Model("image", "ConvNextModel", "ConvNextConfig", {},
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 224, 16, "pooler_output"),
    "bert-large s128": _text(options={**_NO_DROPOUT, **_LARGE}),
    "bert-base s384": _text(options=_NO_DROPOUT, seq=384),
}  # fmt: skip


def slug(name: str) -> str:
    """A name as that of a file."""
    return "".join(char if char.isalnum() else "_" for char in name)


def _whole(inner: Any, names: list[str], output: str) -> Any:
    torch = importlib.import_module("torch")

    class Whole(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Takes its inputs by position and gives one output."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            return getattr(self.inner(**dict(zip(names, args, strict=True))), output)

    return Whole()


def _step(inner: Any) -> Any:
    torch, library = importlib.import_module("torch"), importlib.import_module("transformers")

    class Step(torch.nn.Module):  # type: ignore[misc, name-defined]
        """One token after a cache: takes ids, and keys and values of each layer; gives logits, keys, values."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            ids, *past = args
            cache = _cache(library, list(zip(past[::2], past[1::2], strict=True)))
            result = self.inner(input_ids=ids, past_key_values=cache, use_cache=True)
            made = [(layer.keys, layer.values) for layer in result.past_key_values.layers]
            return (result.logits, *(part for pair in made for part in pair))

    return Step()


def _cache(library: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """A cache that holds keys and values already. Versions of transformers fill it in different ways."""
    try:
        return library.DynamicCache(pairs)
    except TypeError:
        return library.DynamicCache.from_legacy_cache(tuple(pairs))


def export(name: str, path: Any, tiny: bool = False) -> None:
    """Write a model as ONNX in 16 bits, with any batch size.

    Args:
        name: Of :data:`MODELS`.
        path: The file.
        tiny: Of the size for tests, and in 32 bits, which every runtime computes.
    """
    torch = importlib.import_module("torch")
    model = MODELS[name]
    kind = np.float32 if tiny else np.float16
    module = model.module(tiny)
    module = module if tiny else module.half()
    given = model.inputs(2, tiny, kind)
    arguments = tuple(torch.from_numpy(array) for array in given.values())
    outputs = ["y"] + [name.replace("past", "present") for name in given if name.startswith("past")]
    axes = {0: torch.export.Dim.DYNAMIC}
    options: dict[str, Callable[..., Any] | Any] = {"input_names": list(given), "output_names": outputs}
    with torch.no_grad():
        torch.onnx.export(
            module, arguments, path, dynamic_shapes=(tuple(axes for _ in given),), dynamo=True,
            external_data=not tiny, verbose=False, optimize=False, opset_version=20, **options,
        )  # fmt: skip
