"""The catalogue of the survey: how each architecture is built, with random weights. Nothing is downloaded.

Families are represented by their smaller members. Image classifiers have 101 outputs and, where the architecture allows
it, images of 128 pixels; language models 2 layers of width 256 with 8 heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CLASSES = 101
"""Outputs of the image classifiers: a number no other layer has, so that the classifier can be told by it."""

_NARROW = {"embed_dim": 192, "num_heads": 6}

# name, or name@pixels
_PLAIN = (
    "resnet18@128 skresnet18@128 ecaresnet26t@128 gcresnext26ts@128 res2net50_26w_4s@128 resnest14d@128 "
    "resnetv2_18@128 regnetx_002@128 regnety_002@128 regnetz_b16@128 densenet121@128 dpn68@128 dla34@128 "
    "hrnet_w18_small@128 vgg11_bn@64 inception_v3@160 inception_resnet_v2@160 xception41@128 mobilenetv2_100@128 "
    "mobilenetv3_small_100@128 mobilenetv4_conv_small@128 mobilenetv4_hybrid_medium@128 mnasnet_100@128 "
    "efficientnet_b0@128 tf_efficientnetv2_b0@128 efficientnet_lite0@128 tinynet_e fbnetv3_b@128 ghostnet_100@128 "
    "ghostnetv2_100@224 rexnet_100@128 mixnet_s@128 lcnet_050@224 repvgg_a0@128 mobileone_s0@128 fastvit_t8 "
    "repghostnet_050@224 repvit_m0_9@128 hgnetv2_b0@128 selecsls42b@128 cspresnet50@128 cs3darknet_s@128 "
    "darknet53@128 ese_vovnet19b_slim@128 tresnet_m@128 nf_regnet_b0@128 eca_nfnet_l0@128 botnet26t_256 "
    "lambda_resnet26t bat_resnext26ts haloregnetz_b convnext_atto@128 convnextv2_atto@128 mambaout_femto@128 "
    "starnet_s1@128 rdnet_tiny@128 inception_next_atto@128 mixer_s32_224 gmlp_ti16_224 resmlp_12_224 "
    "vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 eva02_tiny_patch14_224 "
    "xcit_nano_12_p16_224 crossvit_tiny_240 levit_128s pit_ti_224 twins_svt_small swin_tiny_patch4_window7_224 "
    "swinv2_tiny_window8_256 pvt_v2_b0@128 poolformer_s12@128 caformer_s18@128 convformer_s18@128 coat_lite_tiny "
    "coatnet_pico_rw_224 maxvit_pico_rw_256 mobilevit_xxs@128 mobilevitv2_050@128 edgenext_xx_small@128 "
    "efficientformer_l1 efficientformerv2_s0 efficientvit_b0@128 efficientvit_m0 nextvit_small@128 "
    "focalnet_tiny_srf@128 davit_tiny mvitv2_tiny hiera_tiny_224 nest_tiny volo_d1_224 sequencer2d_s visformer_tiny "
    "tiny_vit_5m_224 swiftformer_xs convit_tiny gcvit_xxtiny"
)

# what else the constructor is told
TIMM: dict[str, dict[str, Any]] = {
    **{name: {} for name in _PLAIN.split()},
    "nasnetalarge@128": {"stem_size": 32, "num_features": 1056},
    "convmixer_768_32@64": {},
    "cait_xxs24_224": {"depth": 6},
    "tnt_s_patch16_224": {"depth": 4},
    "vit_relpos_medium_patch16_224": {**_NARROW, "depth": 4},
    "samvit_base_patch16_224": {**_NARROW, "depth": 4, "global_attn_indexes": (2,)},
    "beit_base_patch16_224": {**_NARROW, "depth": 4},
    "beitv2_base_patch16_224": {**_NARROW, "depth": 4},
}

_TEXT = {"vocab_size": 500}
_ENCODER = {
    **_TEXT,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_labels": 5,
}
_DECODER = {k: v for k, v in _ENCODER.items() if k != "num_labels"}
_GROUPED = {**_DECODER, "num_key_value_heads": 4}
_PAIR = {
    **_TEXT,
    "d_model": 256,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 640,
    "decoder_ffn_dim": 640,
}
_IMAGE = {k: v for k, v in _DECODER.items() if k != "vocab_size"} | {"image_size": 64, "num_labels": CLASSES}
_VAW = {"conv_dim": (64,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_TOWER = {k: v for k, v in _DECODER.items() if k != "vocab_size"}

# name: (what it reads, what it gives, class, configuration)
TRANSFORMERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "bert": ("text+mask", "logits", "BertForSequenceClassification", _ENCODER),
    "roberta": ("text+mask", "logits", "RobertaForSequenceClassification", _ENCODER),
    "electra": ("text+mask", "logits", "ElectraForSequenceClassification", {**_ENCODER, "embedding_size": 128}),
    "albert": ("text+mask", "logits", "AlbertForSequenceClassification", {**_ENCODER, "embedding_size": 64}),
    "distilbert": (
        "text+mask",
        "logits",
        "DistilBertForSequenceClassification",
        {**_TEXT, "dim": 256, "hidden_dim": 640, "n_layers": 2, "n_heads": 8, "num_labels": 5},
    ),
    "mpnet": ("text+mask", "logits", "MPNetForSequenceClassification", _ENCODER),
    "deberta_v2": (
        "text+mask",
        "logits",
        "DebertaV2ForSequenceClassification",
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    "xlnet": (
        "text",
        "logits",
        "XLNetForSequenceClassification",
        {**_TEXT, "d_model": 256, "n_layer": 2, "n_head": 8, "d_inner": 640, "num_labels": 5},
    ),
    "gpt2": ("text", "logits", "GPT2LMHeadModel", {**_TEXT, "n_embd": 256, "n_layer": 2, "n_head": 8}),
    "gpt_neox": ("text", "logits", "GPTNeoXForCausalLM", _DECODER),
    "gptj": (
        "text",
        "logits",
        "GPTJForCausalLM",
        {**_TEXT, "n_embd": 256, "n_layer": 2, "n_head": 8, "rotary_dim": 16},
    ),
    "opt": (
        "text",
        "logits",
        "OPTForCausalLM",
        {
            **_TEXT,
            "hidden_size": 256,
            "ffn_dim": 640,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "word_embed_proj_dim": 256,
        },
    ),
    "bloom": ("text", "logits", "BloomForCausalLM", {**_TEXT, "hidden_size": 256, "n_layer": 2, "n_head": 8}),
    "falcon": (
        "text",
        "logits",
        "FalconForCausalLM",
        {**_TEXT, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8},
    ),
    "phi": ("text", "logits", "PhiForCausalLM", _DECODER),
    "llama": ("text", "logits", "LlamaForCausalLM", _GROUPED),
    "mistral": ("text", "logits", "MistralForCausalLM", _GROUPED),
    "qwen2": ("text", "logits", "Qwen2ForCausalLM", {**_GROUPED, "num_key_value_heads": 2}),
    "qwen3": ("text", "logits", "Qwen3ForCausalLM", {**_GROUPED, "head_dim": 32}),
    "gemma": ("text", "logits", "GemmaForCausalLM", {**_GROUPED, "num_key_value_heads": 1, "head_dim": 32}),
    "mamba": ("text", "logits", "MambaForCausalLM", {**_TEXT, "hidden_size": 256, "num_hidden_layers": 2}),
    "t5": (
        "text+decoder",
        "logits",
        "T5ForConditionalGeneration",
        {**_TEXT, "d_model": 256, "d_kv": 32, "d_ff": 640, "num_layers": 2, "num_heads": 8},
    ),
    "bart": ("text+decoder", "logits", "BartForConditionalGeneration", _PAIR),
    "whisper": (
        "mel+decoder",
        "logits",
        "WhisperForConditionalGeneration",
        {
            **_PAIR,
            "num_mel_bins": 40,
            "max_source_positions": 100,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
    ),
    "wav2vec2": ("wave", "logits", "Wav2Vec2ForCTC", {**_DECODER, **_VAW, "vocab_size": 32}),
    "hubert": ("wave", "logits", "HubertForCTC", {**_DECODER, **_VAW, "vocab_size": 32}),
    "vit": ("image", "logits", "ViTForImageClassification", _IMAGE),
    "dinov2": ("image", "logits", "Dinov2ForImageClassification", {**_IMAGE, "patch_size": 16}),
    "segformer": ("image", "logits", "SegformerForImageClassification", {"num_labels": CLASSES}),
    "clip": (
        "image+text",
        "logits_per_image",
        "CLIPModel",
        {
            "text_config": {**_DECODER, "eos_token_id": 499},
            "vision_config": {**_TOWER, "image_size": 64, "patch_size": 16},
            "projection_dim": 128,
        },
    ),
}

TORCHVISION = ("shufflenet_v2_x1_0", "googlenet", "squeezenet1_1")


@dataclass(frozen=True)
class Built:
    """A network ready for export.

    Attributes:
        model: in evaluation mode.
        inputs: examples, two samples in the batch.
        names: of the inputs.
        axes: names of the dynamic axes of every input, by position.
    """

    model: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]
    names: tuple[str, ...]
    axes: tuple[dict[int, str], ...]


def names() -> list[str]:
    """Every architecture of the survey, as ``source/name``."""
    import handmade

    found = [f"timm/{n.partition('@')[0]}" for n in TIMM]
    found += [f"torchvision/{n}" for n in TORCHVISION]
    return found + [f"transformers/{n}" for n in TRANSFORMERS] + [f"own/{n}" for n in handmade.NETWORKS]


def recipe(name: str) -> str:
    """What a network depends on besides the versions of the libraries."""
    import hashlib
    from pathlib import Path

    source, _, short = name.partition("/")
    if source == "timm":
        return repr([(k, v) for k, v in TIMM.items() if k.partition("@")[0] == short])
    if source == "transformers":
        return repr(TRANSFORMERS[short])
    if source == "torchvision":
        return short
    import handmade

    file = Path(__file__).with_name(f"{handmade.NETWORKS[short].module}.py")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def build(name: str) -> Built:
    """Build a network with seeded random weights, alive in every layer.

    Args:
        name: one of ``names()``.
    """
    import torch
    import zoo

    torch.manual_seed(0)
    source, _, short = name.partition("/")
    makers = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformer, "own": _own}
    built = makers[source](short)
    built.model.eval()
    zoo.fill(built.model, equal=False)
    zoo.settle_statistics(built.model, equal=False, noise=built.inputs)
    return built


def _images(model: torch.nn.Module, pixels: int) -> Built:
    import torch

    return Built(model, (torch.randn(2, 3, pixels, pixels),), ("input",), ({0: "batch"},))


def _timm(name: str) -> Built:
    import zoo

    zoo.load_torchvision()  # timm imports it
    import timm

    key = next(k for k in TIMM if k.partition("@")[0] == name)
    model = timm.create_model(name, num_classes=CLASSES, **TIMM[key])
    return _images(model, int(key.partition("@")[2] or model.default_cfg["input_size"][1]))


def _torchvision(name: str) -> Built:
    import zoo

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model = getattr(zoo.load_torchvision(), name)(weights=None, num_classes=CLASSES, **options)
    return _images(model, 128)


def _own(name: str) -> Built:
    import importlib

    import handmade

    entry = handmade.NETWORKS[name]
    model, inputs, axes = getattr(importlib.import_module(entry.module), entry.function)()
    return Built(model, inputs, tuple(f"input{k}" for k in range(len(inputs))), axes)


def _transformer(name: str) -> Built:
    import torch
    import zoo

    zoo.load_torchvision()  # transformers imports it where it is installed
    import transformers

    transformers.logging.set_verbosity_error()
    reads, gives, kind, options = TRANSFORMERS[name]
    class_ = getattr(transformers, kind)
    network = class_(class_.config_class(**options))
    text = torch.randint(0, 499, (2, 16))
    sequence = {0: "batch", 1: "sequence"}
    readable = {
        "text": ("input_ids", text, sequence),
        "mask": ("attention_mask", torch.ones_like(text), sequence),
        "decoder": ("decoder_input_ids", text.flip(1), {0: "batch", 1: "target"}),
        "image": ("pixel_values", torch.randn(2, 3, 64, 64), {0: "batch"}),
        "wave": ("input_values", torch.randn(2, 4000), {0: "batch"}),
        "mel": ("input_features", torch.randn(2, 40, 200), {0: "batch"}),
    }
    chosen = [readable[r] for r in reads.split("+")]
    keys = tuple(c[0] for c in chosen)
    extra = {"use_cache": False} if hasattr(network.config, "use_cache") and gives == "logits" else {}
    if name in {"bert", "roberta", "electra", "albert", "distilbert", "mpnet", "deberta_v2"}:
        extra = {}

    class Wrapper(torch.nn.Module):
        """Named inputs, one output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(**dict(zip(keys, tensors, strict=True)), **extra)[gives]
            return found

    return Built(Wrapper(), tuple(c[1] for c in chosen), keys, tuple(c[2] for c in chosen))
