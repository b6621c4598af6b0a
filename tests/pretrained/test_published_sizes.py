"""The configs of well-known models, as their config.json says it, give as many parameters as these models have."""

import math

import pytest

from mmjax.pretrained import bert, clip, dinov2, gpt2, llama, siglip, vit
from mmjax.pretrained.config_json import completed
from mmjax.pretrained.weights import described_shapes

CLIP_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
LLAMA_3_2_ROPE = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
PUBLISHED = {
    "google/vit-base-patch16-224": (
        vit, {"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000}, 86_567_656),
    "openai/clip-vit-base-patch32": (
        clip,
        {"model_type": "clip", "projection_dim": 512, "text_config_dict": None, "vision_config_dict": None,
         "text_config": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
         "vision_config": {**CLIP_TOWER, "patch_size": 32}},
        151_277_313),
    "google/siglip-so400m-patch14-384": (
        siglip,
        {"model_type": "siglip",
         "text_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
                         "num_hidden_layers": 27},
         "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16,
                           "num_hidden_layers": 27, "image_size": 384, "patch_size": 14}},
        877_960_498),
    "facebook/dinov2-base without its mask token": (
        dinov2, {"model_type": "dinov2", "image_size": 518, "patch_size": 14}, 86_580_480 - 768),
    "google-bert/bert-base-uncased": (bert, {"model_type": "bert"}, 109_482_240),
    "sentence-transformers/all-MiniLM-L6-v2": (
        bert,
        {"model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6},
        22_713_216),
    "openai-community/gpt2": (gpt2, {"model_type": "gpt2"}, 124_439_808),
    "HuggingFaceTB/SmolLM2-135M": (
        llama,
        {"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
         "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
         "rope_theta": 100000, "max_position_embeddings": 8192},
        134_515_008),
    "Qwen/Qwen2.5-0.5B": (
        llama,
        {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
         "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
         "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24},
        494_032_768),
    "meta-llama/Llama-3.2-1B": (
        llama,
        {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "head_dim": 64,
         "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
         "rope_theta": 500000.0, "rope_scaling": LLAMA_3_2_ROPE, "eos_token_id": [128001, 128008, 128009]},
        1_235_814_400),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_number_of_parameters(name):
    family, config, count = PUBLISHED[name]
    shapes = described_shapes(family.read(completed(config)))
    assert sum(map(math.prod, shapes.values())) == count
