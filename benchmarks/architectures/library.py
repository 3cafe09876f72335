"""Architectures of the transformers library, from small configurations with random weights.

One row a model; their exporters' spellings are those that users' files have. Needs transformers.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.architectures.catalogue import BATCH, SEQUENCE, Architecture, image, tokens

TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 160,
    "vocab_size": 64,
    "max_position_embeddings": 48,
}
KEYS = {"num_key_value_heads": 2, "head_dim": 8}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 4, "num_labels": 10}


class First(nn.Module):
    """A model of the library that gives its first tensor."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        return self.model(**given, **self.fixed, return_dict=False)[0]


def _model(name: str, kind: str, options: dict[str, object], names: tuple[str, ...]) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**options)
    config._attn_implementation = "eager"  # The library's switch; sdpa traces its masks in ways that differ by release.
    fixed = {"use_cache": False} if hasattr(config, "use_cache") else {}
    return First(getattr(transformers, f"{name}{kind}")(config), names, **fixed)


def _text(name: str, kind: str, family: str, *, mask: bool = False, **more: object) -> Architecture:
    options, names = {**TEXT, **more}, ("input_ids", "attention_mask") if mask else ("input_ids",)
    ids = tokens()
    inputs = (lambda: (*ids(), torch.ones(2, 10, dtype=torch.int64))) if mask else ids
    dynamic = {0: {0: "batch", 1: "sequence"}, 1: {0: "batch", 1: "sequence"}} if mask else SEQUENCE
    return Architecture(
        name=f"hf-{name.lower()}",
        family=family,
        build=lambda: _model(name, kind, options, names),
        inputs=inputs,
        dynamic=dynamic,
    )


def _image(name: str, kind: str, family: str, **more: object) -> Architecture:
    return Architecture(
        name=f"hf-{name.lower()}",
        family=family,
        build=lambda: _model(name, kind, more, ("pixel_values",)),
        inputs=image(side=32),
        dynamic=BATCH,
    )


_WHISPER: dict[str, object] = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64, "num_mel_bins": 20, "max_source_positions": 16,
    "max_target_positions": 24, "decoder_start_token_id": 1, **SPECIAL,
}  # fmt: skip
_T5: dict[str, object] = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 64,
    "decoder_start_token_id": 0, **SPECIAL,
}  # fmt: skip

ENTRIES: tuple[Architecture, ...] = (
    _text("Bert", "ForSequenceClassification", "BERT", mask=True),
    _text("Roberta", "ForMaskedLM", "BERT", mask=True, **SPECIAL),
    _text("Electra", "ForTokenClassification", "BERT", mask=True, embedding_size=16),
    _text("Albert", "Model", "BERT", mask=True, embedding_size=16),
    _text(
        "DistilBert", "ForSequenceClassification", "BERT", mask=True, dim=64, n_heads=8, n_layers=2, hidden_dim=160
    ),
    _text("GPT2", "LMHeadModel", "GPT", mask=True, n_embd=64, n_layer=2, n_head=8, n_positions=48, **SPECIAL),
    _text("GPTNeoX", "ForCausalLM", "GPT", mask=True, **SPECIAL),
    _text("OPT", "ForCausalLM", "GPT", mask=True, ffn_dim=160, word_embed_proj_dim=64, **SPECIAL),
    _text("Bloom", "ForCausalLM", "GPT", mask=True, n_layer=2, n_head=8, **SPECIAL),
    _text("Llama", "ForCausalLM", "LLaMA", mask=True, **KEYS, **SPECIAL),
    _text("Mistral", "ForCausalLM", "LLaMA", mask=True, **KEYS, **SPECIAL),
    _text("Qwen2", "ForCausalLM", "LLaMA", mask=True, num_key_value_heads=2, **SPECIAL),
    _text("Qwen3", "ForCausalLM", "LLaMA", mask=True, **KEYS, **SPECIAL),
    _text("Gemma", "ForCausalLM", "LLaMA", mask=True, **KEYS, **SPECIAL),
    _text("Phi", "ForCausalLM", "LLaMA", mask=True, **SPECIAL),
    _text("Phi3", "ForCausalLM", "LLaMA", mask=True, num_key_value_heads=2, **SPECIAL),
    _image("ViT", "ForImageClassification", "ViT", **VISION),
    _image("DeiT", "ForImageClassification", "ViT", **VISION),
    _image("Swin", "ForImageClassification", "Swin", image_size=32, patch_size=4, embed_dim=32, depths=[1, 2],
           num_heads=[4, 8], window_size=4, num_labels=10),
    _image("ConvNext", "ForImageClassification", "ConvNeXt", hidden_sizes=[64, 96], depths=[1, 2], num_stages=2),
    _image("ResNet", "ForImageClassification", "residual CNN", embedding_size=16, hidden_sizes=[32, 48], depths=[1, 2]),
    _image("RegNet", "ForImageClassification", "residual CNN", embedding_size=16, hidden_sizes=[32, 48], depths=[1, 1],
           groups_width=8),
    _image("MobileNetV2", "ForImageClassification", "inverted residual", depth_multiplier=0.25, image_size=32),
    _image("Segformer", "ForImageClassification", "ViT", num_encoder_blocks=2, depths=[2, 2], sr_ratios=[2, 1],
           hidden_sizes=[32, 64], patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[4, 8], mlp_ratios=[4, 4]),
    Architecture(
        name="hf-whisper",
        family="encoder-decoder",
        build=lambda: _model("Whisper", "ForConditionalGeneration", _WHISPER, ("input_features", "decoder_input_ids")),
        inputs=lambda: (torch.randn(2, 20, 32), torch.randint(0, 64, (2, 6))),
        dynamic={0: {0: "batch"}, 1: {0: "batch", 1: "sequence"}},
    ),
    Architecture(
        name="hf-t5",
        family="encoder-decoder",
        build=lambda: _model("T5", "ForConditionalGeneration", _T5, ("input_ids", "decoder_input_ids")),
        inputs=lambda: (torch.randint(0, 64, (2, 7)), torch.randint(0, 64, (2, 6))),
        dynamic={0: {0: "batch"}, 1: {0: "batch"}},
    ),
    Architecture(
        name="hf-clip",
        family="two towers",
        build=lambda: _model(
            "CLIP",
            "Model",
            {"text_config": {**TEXT, **SPECIAL}, "vision_config": {**TEXT, "image_size": 32, "patch_size": 4}},
            ("input_ids", "pixel_values"),
        ),
        inputs=lambda: (torch.randint(3, 64, (2, 6)), torch.randn(2, 3, 32, 32)),
        dynamic={0: {0: "batch"}, 1: {0: "batch"}},
    ),
    Architecture(
        name="hf-wav2vec2",
        family="audio 1-D",
        build=lambda: _model(
            "Wav2Vec2", "ForCTC", {**TEXT, "conv_dim": [16, 16], "conv_stride": [4, 2], "conv_kernel": [8, 3],
            "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
            ("input_values",),
        ),
        inputs=lambda: (torch.randn(2, 160),),
        dynamic=BATCH,
    ),
)  # fmt: skip
