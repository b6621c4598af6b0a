"""Captions from public weights: CLIP's picture tower, a language model of the Llama kind, a new projector between them.

    mmjax train --config configs/warm_start.py --workdir runs/warm_start --config.data.root=PATH
        --config.init.patch_encoder=CLIP_FOLDER --config.init.decoder=LLAMA_FOLDER

PATH holds `train.csv`, `dev.csv` (image,caption) and `images/`; the two folders are as Hugging Face keeps them (CLIP
ViT-B/32 and SmolLM2-135M, say). Any tower of pictures that can be read will do, and any decoder; their sizes come from
the folders. First the projector alone (LLaVA: Liu et al., 2023, section 4.1), then the language model too.
1 GPU, 30 minutes for SmolLM2-135M (estimated, not measured). What is expected: not measured on real weights yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = {"train": {"path": "train.csv", "batch_size": 32}, "validation": {"path": "dev.csv"}}
    config.init = {"patch_encoder": "CLIP_FOLDER", "decoder": "LLAMA_FOLDER"}
    config.model = {
        # The tokens before the last layer, without the class token, as LLaVA reads them.
        "patch_encoder": {"tokens_layer": 1, "tokens_cls": False},
        "decoder": {"memory": "prefix", "connector": "mlp", "prefix_attention": "causal"},
    }
    config.tasks = {"captioning": {}}

    config.optimizer = {"name": "adamw", "lr": 2e-5, "warmup": "3%"}
    config.stages = {  # in the order of their names, for a ConfigDict sorts its keys
        "1_projector": {"length": "30%", "optimizer": {"lr": 1e-3, "train": ("decoder/memory_projection.*",)}},
        "2_both": {"optimizer": {"freeze": ("patch_encoder/.*",)}},
    }
    config.train = {"steps": 2000, "log_every": 10}
    config.eval = {"every": "25%"}
    config.checkpoint = {"every": "25%"}
    return config
