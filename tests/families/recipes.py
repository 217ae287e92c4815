"""Which models there are: configurations of two layers, example inputs, names of the dynamic axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from architectures import CRNN, DiffusionBlock, mobilenet_v3
from torch import nn

BATCH, SEQ, PAST = 2, 7, 5
VOCAB, HIDDEN, HEADS, LAYERS = 101, 32, 4, 2
TEXT = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
TEXT |= {"intermediate_size": 48, "max_position_embeddings": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


@dataclass
class Example:
    """A module with inputs to trace it with.

    Attributes:
        module: Called with the inputs by position; returns a tensor or a tuple of them.
        inputs: Tensors by name.
        axes: Names of the dynamic axes of each input.
        outputs: Names of the outputs.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]
    outputs: list[str]


@dataclass
class Family:
    """How to build one model.

    Attributes:
        build: Makes the example for an implementation of attention.
        attention: The implementations that it is exported with.
        named: Whether the dynamic axes are given names; without them each input has dims of its own.
    """

    build: Callable[[str], Example]
    attention: Sequence[str] = ("sdpa",)
    named: bool = True


class Call(nn.Module):
    """A model called by keyword, its wanted outputs as a tuple."""

    def __init__(self, inner: nn.Module, names: Sequence[str], wanted: Sequence[str], **fixed: Any) -> None:
        super().__init__()
        self.inner, self.names, self.wanted, self.fixed = inner, list(names), list(wanted), fixed

    def forward(self, *args):
        result = self.inner(**dict(zip(self.names, args, strict=True)), **self.fixed)
        return tuple(getattr(result, name) for name in self.wanted)


class CachedCall(nn.Module):
    """A decoder called with keys and values of earlier tokens, which returns those of all tokens."""

    def __init__(self, inner: nn.Module, names: Sequence[str], layers: int, cross: bool = False) -> None:
        super().__init__()
        self.inner, self.names, self.layers, self.cross = inner, list(names), layers, cross

    def forward(self, *args):
        own = len(args) - 2 * self.layers
        past = args[own:]
        cache = tf.DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        if self.cross:
            cache = tf.EncoderDecoderCache(cache, tf.DynamicCache())
        result = self.inner(**dict(zip(self.names, args[:own], strict=True)), past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        layers = (cache.self_attention_cache if self.cross else cache).layers
        logits = getattr(result, "logits", None)
        first = result.last_hidden_state if logits is None else logits
        return (first, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))


def ids(batch: int = BATCH, seq: int = SEQ) -> torch.Tensor:
    return torch.randint(3, VOCAB, (batch, seq))


def text_example(model: nn.Module, wanted: Sequence[str], **more: Any) -> Example:
    """Token ids and their mask."""
    names = ["input_ids", "attention_mask"]
    inputs = {"input_ids": ids(), "attention_mask": torch.ones(BATCH, SEQ, dtype=torch.int64)}
    axes = {name: {0: "batch", 1: "seq"} for name in names}
    return Example(Call(model, names, wanted, **more), inputs, axes, list(wanted))


def encoder(model: str, config: str, **options: Any) -> Callable[[str], Example]:
    def build(attention: str) -> Example:
        made = getattr(tf, config)(**{**TEXT, **NO_DROPOUT, **options})
        made._attn_implementation = attention
        return text_example(getattr(tf, model)(made), ["last_hidden_state"])

    return build


def decoder(
    model: str,
    config: str,
    *,
    cached: bool = True,
    positions: bool = False,
    kv_heads: int = HEADS,
    size: int = 8,
    **options: Any,
) -> Callable[[str], Example]:
    """A causal language model, with a cache as generation uses it or without."""

    def build(attention: str) -> Example:
        made = getattr(tf, config)(**{**TEXT, "use_cache": cached, **options})
        made._attn_implementation = attention
        lm = getattr(tf, model)(made)
        if not cached:
            return text_example(lm, ["logits"], use_cache=False)
        names = ["input_ids", "attention_mask"] + ["position_ids"] * positions
        inputs = {"input_ids": ids(), "attention_mask": torch.ones(BATCH, PAST + SEQ, dtype=torch.int64)}
        axes = {"input_ids": {0: "batch", 1: "seq"}, "attention_mask": {0: "batch", 1: "total"}}
        if positions:
            inputs["position_ids"] = torch.arange(PAST, PAST + SEQ).repeat(BATCH, 1)
            axes["position_ids"] = {0: "batch", 1: "seq"}
        outputs = ["logits"]
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                inputs[f"past_{layer}_{kind}"] = torch.randn(BATCH, kv_heads, PAST, size)
                axes[f"past_{layer}_{kind}"] = {0: "batch", 2: "past"}
                outputs.append(f"present_{layer}_{kind}")
        return Example(CachedCall(lm, names, LAYERS), inputs, axes, outputs)

    return build


def seq2seq_decoder(
    make: Callable[[str], nn.Module], wanted: str, *, cached: bool, encoder_mask: bool = True, own_mask: bool = False
) -> Callable[[str], Example]:
    """A decoder with cross attention to a given encoder result, with or without a cache for its own attention."""

    def build(attention: str) -> Example:
        names = ["input_ids", "encoder_hidden_states"] + ["encoder_attention_mask"] * encoder_mask
        inputs = {"input_ids": ids(), "encoder_hidden_states": torch.randn(BATCH, 6, HIDDEN)}
        axes = {"input_ids": {0: "batch", 1: "seq"}, "encoder_hidden_states": {0: "batch", 1: "encoded"}}
        if encoder_mask:
            inputs["encoder_attention_mask"] = torch.ones(BATCH, 6, dtype=torch.int64)
            axes["encoder_attention_mask"] = {0: "batch", 1: "encoded"}
        if own_mask:
            names.append("attention_mask")
            inputs["attention_mask"] = torch.ones(BATCH, SEQ, dtype=torch.int64)
            axes["attention_mask"] = {0: "batch", 1: "seq"}
        model = make(attention)
        if not cached:
            return Example(Call(model, names, [wanted], use_cache=False), inputs, axes, [wanted])
        outputs = [wanted]
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                inputs[f"past_{layer}_{kind}"] = torch.randn(BATCH, HEADS, PAST, HIDDEN // HEADS)
                axes[f"past_{layer}_{kind}"] = {0: "batch", 2: "past"}
                outputs.append(f"present_{layer}_{kind}")
        return Example(CachedCall(model, names, LAYERS, cross=True), inputs, axes, outputs)

    return build


def vision(model: str, config: str, wanted: str, size: int = 32, spatial: bool = False, **options: Any):
    def build(attention: str) -> Example:
        made = getattr(tf, config)(**options)
        made._attn_implementation = attention
        net = getattr(tf, model)(made)
        axes = {0: "batch"} | ({2: "height", 3: "width"} if spatial else {})
        inputs = {"pixel_values": torch.randn(BATCH, 3, size, size)}
        return Example(Call(net, ["pixel_values"], [wanted]), inputs, {"pixel_values": axes}, [wanted])

    return build


VIT = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 48}
VIT |= {"image_size": 32, "patch_size": 8, **NO_DROPOUT}


def _t5(kind: str):
    def make(attention: str) -> nn.Module:
        options = {"gated-gelu": {"feed_forward_proj": "gated-gelu"}, "relu": {}}[kind]
        config = tf.T5Config(
            vocab_size=VOCAB, d_model=HIDDEN, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, **options,
        )  # fmt: skip
        config._attn_implementation = attention
        return tf.T5ForConditionalGeneration(config)

    return make


def _t5_encoder(kind: str):
    return lambda attention: text_example(_t5(kind)(attention).encoder, ["last_hidden_state"])


BART = {"vocab_size": VOCAB, "d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "dropout": 0.0}
BART |= {
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}


def _bart(attention: str) -> nn.Module:
    config = tf.BartConfig(**BART, max_position_embeddings=64)
    config._attn_implementation = attention
    return tf.BartModel(config)


def _whisper(attention: str) -> nn.Module:
    config = tf.WhisperConfig(**BART, num_mel_bins=16, max_source_positions=10, max_target_positions=40, **SPECIAL)
    config._attn_implementation = attention
    return tf.WhisperModel(config)


def _whisper_encoder(attention: str) -> Example:
    inputs = {"input_features": torch.randn(BATCH, 16, 20)}
    call = Call(_whisper(attention).encoder, list(inputs), ["last_hidden_state"])
    return Example(call, inputs, {"input_features": {0: "batch"}}, ["last_hidden_state"])


def _trocr(attention: str) -> nn.Module:
    config = tf.TrOCRConfig(
        vocab_size=VOCAB, d_model=HIDDEN, decoder_layers=LAYERS, decoder_attention_heads=HEADS, decoder_ffn_dim=48,
        max_position_embeddings=40, dropout=0.0, cross_attention_hidden_size=HIDDEN, is_decoder=True, **SPECIAL,
    )  # fmt: skip
    config._attn_implementation = attention
    return tf.TrOCRForCausalLM(config)


def _clip_text(attention: str) -> Example:
    config = tf.CLIPTextConfig(**TEXT, projection_dim=16, eos_token_id=2)
    config._attn_implementation = attention
    return text_example(tf.CLIPTextModelWithProjection(config), ["text_embeds", "last_hidden_state"])


def _wav2vec2(model: str, config: str, **options: Any):
    def build(attention: str) -> Example:
        made = getattr(tf, config)(
            vocab_size=32, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=48,
            conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 2), num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4, num_feat_extract_layers=3, hidden_dropout=0.0, activation_dropout=0.0,
            attention_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, **options,
        )  # fmt: skip
        made._attn_implementation = attention
        inputs = {"input_values": torch.randn(BATCH, 400)}
        net = getattr(tf, model)(made)
        return Example(
            Call(net, list(inputs), ["logits"]), inputs, {"input_values": {0: "batch", 1: "samples"}}, ["logits"]
        )

    return build


def _mobilenet_v3(attention: str) -> Example:
    inputs = {"pixel_values": torch.randn(BATCH, 3, 32, 32)}
    return Example(mobilenet_v3(), inputs, {"pixel_values": {0: "batch", 2: "height", 3: "width"}}, ["logits"])


def _crnn(attention: str) -> Example:
    return Example(CRNN(), {"image": torch.randn(BATCH, 1, 16, 40)}, {"image": {0: "batch", 3: "width"}}, ["scores"])


def _diffusion(attention: str) -> Example:
    inputs = {
        "sample": torch.randn(BATCH, 4, 8, 8),
        "timestep": torch.tensor([3, 17]),
        "context": torch.randn(BATCH, 5, 24),
    }
    axes = {
        "sample": {0: "batch", 2: "height", 3: "width"},
        "timestep": {0: "batch"},
        "context": {0: "batch", 1: "tokens"},
    }
    return Example(DiffusionBlock(), inputs, axes, ["noise"])


GQA = {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "vocab_size": VOCAB}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BOTH = ("sdpa", "eager")
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
SEGFORMER = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
    "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 5,
}  # fmt: skip
EFFICIENTNET = {
    "image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320, "in_channels": [32, 64],
    "out_channels": [64, 96], "kernel_sizes": [3, 5], "strides": [1, 2], "num_block_repeats": [1, 2],
    "expand_ratios": [1, 4], "depthwise_padding": [], "depth_divisor": 8,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "distilbert": Family(
        encoder("DistilBertModel", "DistilBertConfig", dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=48), BOTH
    ),
    "roberta": Family(encoder("RobertaModel", "RobertaConfig", type_vocab_size=1, **SPECIAL), BOTH),
    "bert_unnamed": Family(encoder("BertModel", "BertConfig"), named=False),
    "deberta": Family(
        encoder("DebertaModel", "DebertaConfig", relative_attention=True, pos_att_type=["c2p", "p2c"]), ("eager",)
    ),
    "deberta_v2": Family(
        encoder(
            "DebertaV2Model",
            "DebertaV2Config",
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        ),
        ("eager",),
    ),
    "albert": Family(encoder("AlbertModel", "AlbertConfig", embedding_size=16), BOTH),
    "electra": Family(encoder("ElectraModel", "ElectraConfig", embedding_size=16)),
    "mpnet": Family(encoder("MPNetModel", "MPNetConfig", **SPECIAL), ("eager",)),
    "modernbert": Family(
        encoder(
            "ModernBertModel",
            "ModernBertConfig",
            local_attention=4,
            global_attn_every_n_layers=2,
            num_hidden_layers=3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        BOTH,
    ),
    "t5_encoder": Family(_t5_encoder("relu"), BOTH),
    "t5_decoder": Family(seq2seq_decoder(lambda a: _t5("gated-gelu")(a).decoder, "last_hidden_state", cached=False)),
    "t5_decoder_cached": Family(
        seq2seq_decoder(lambda a: _t5("gated-gelu")(a).decoder, "last_hidden_state", cached=True)
    ),
    "bart_encoder": Family(lambda a: text_example(_bart(a).encoder, ["last_hidden_state"]), BOTH),
    "bart_decoder": Family(seq2seq_decoder(lambda a: _bart(a).decoder, "last_hidden_state", cached=False), BOTH),
    "bart_decoder_cached": Family(seq2seq_decoder(lambda a: _bart(a).decoder, "last_hidden_state", cached=True)),
    "whisper_encoder": Family(_whisper_encoder, BOTH),
    "whisper_decoder": Family(
        seq2seq_decoder(
            lambda a: _whisper(a).decoder, "last_hidden_state", cached=False, encoder_mask=False, own_mask=True
        )
    ),
    "whisper_decoder_cached": Family(
        seq2seq_decoder(lambda a: _whisper(a).decoder, "last_hidden_state", cached=True, encoder_mask=False)
    ),
    "trocr_decoder": Family(seq2seq_decoder(_trocr, "logits", cached=False), ("eager",)),
    "clip_text": Family(_clip_text, BOTH),
    "clip_vision": Family(
        vision("CLIPVisionModelWithProjection", "CLIPVisionConfig", "image_embeds", **VIT, projection_dim=16), BOTH
    ),
    "siglip_vision": Family(vision("SiglipVisionModel", "SiglipVisionConfig", "last_hidden_state", **VIT)),
    "deit": Family(vision("DeiTForImageClassification", "DeiTConfig", "logits", **VIT), BOTH),
    "dinov2": Family(vision("Dinov2Model", "Dinov2Config", "last_hidden_state", **VIT, mlp_ratio=2)),
    "swin": Family(vision("SwinForImageClassification", "SwinConfig", "logits", **SWIN), ("eager",)),
    "segformer": Family(
        vision("SegformerForSemanticSegmentation", "SegformerConfig", "logits", spatial=True, **SEGFORMER), ("eager",)
    ),
    "efficientnet": Family(
        vision("EfficientNetForImageClassification", "EfficientNetConfig", "logits", **EFFICIENTNET), ("eager",)
    ),
    "regnet": Family(
        vision(
            "RegNetForImageClassification",
            "RegNetConfig",
            "logits",
            spatial=True,
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 2],
            groups_width=8,
            layer_type="y",
        ),
        ("eager",),
    ),
    "mobilenet_v3": Family(_mobilenet_v3, ("eager",)),
    "crnn": Family(_crnn, ("eager",)),
    "diffusion_block": Family(_diffusion),
    "wav2vec2": Family(_wav2vec2("Wav2Vec2ForCTC", "Wav2Vec2Config"), BOTH),
    "wav2vec2_stable": Family(
        _wav2vec2(
            "Wav2Vec2ForCTC", "Wav2Vec2Config", do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True
        )
    ),
    "llama": Family(decoder("LlamaForCausalLM", "LlamaConfig", positions=True, kv_heads=2, **GQA), BOTH),
    "llama_prefill": Family(decoder("LlamaForCausalLM", "LlamaConfig", cached=False, **GQA)),
    "llama_unnamed": Family(decoder("LlamaForCausalLM", "LlamaConfig", positions=True, kv_heads=2, **GQA), named=False),
    "mistral": Family(decoder("MistralForCausalLM", "MistralConfig", kv_heads=2, sliding_window=4, **GQA)),
    "qwen2": Family(decoder("Qwen2ForCausalLM", "Qwen2Config", kv_heads=2, num_key_value_heads=2), BOTH),
    "qwen3": Family(decoder("Qwen3ForCausalLM", "Qwen3Config", kv_heads=2, **GQA), BOTH),
    "qwen3_prefill": Family(decoder("Qwen3ForCausalLM", "Qwen3Config", cached=False, **GQA)),
    "gemma": Family(decoder("GemmaForCausalLM", "GemmaConfig", kv_heads=1, num_key_value_heads=1, head_dim=8)),
    "gemma2": Family(
        decoder("Gemma2ForCausalLM", "Gemma2Config", kv_heads=2, query_pre_attn_scalar=8, sliding_window=4, **GQA),
        ("eager",),
    ),
    "gemma2_prefill": Family(
        decoder("Gemma2ForCausalLM", "Gemma2Config", cached=False, query_pre_attn_scalar=8, sliding_window=4, **GQA),
        ("eager",),
    ),
    "phi": Family(decoder("PhiForCausalLM", "PhiConfig", partial_rotary_factor=0.5), BOTH),
    "phi3": Family(decoder("Phi3ForCausalLM", "Phi3Config", kv_heads=2, num_key_value_heads=2, pad_token_id=0)),
    "gpt2": Family(decoder("GPT2LMHeadModel", "GPT2Config", **GPT2), BOTH),
    "gptj": Family(decoder("GPTJForCausalLM", "GPTJConfig", positions=True, rotary_dim=4, **GPT2), ("eager",)),
    "gpt_neox": Family(decoder("GPTNeoXForCausalLM", "GPTNeoXConfig", rotary_pct=0.5), BOTH),
}
