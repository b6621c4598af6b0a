"""Questions about pictures, from a model that was pre-trained on pairs (`flickr8k.py`): LoRA on both towers, a fresh
fusion and head, early stopping.

    mmjax train --config configs/vqa_lora.py --workdir runs/vqa --config.init.path=runs/flickr8k --config.data.root=PATH

PATH holds `train/questions.json` and `train/images/` (easy-VQA); DAQUAR: `daquar.py`.
A tenth of the pictures is held out. `mmjax compare --after runs/vqa` shows before and after.
2 CPU cores, 15 minutes; expected validation accuracy 98.9 % (question only 66 %).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = {"train": {"path": "train", "batch_size": 64}, "holdout": 0.1}
    config.processor = {
        "image": {"size": 80, "method": "bilinear"},
        "augment": {"crop_area": (0.8, 1.0), "crop_aspect": (0.9, 1.11), "flip": True, "brightness": 0, "contrast": 0},
        "question_length": 32,
        "questions": 6,
    }
    # The towers of flickr8k.py, and what reads one with the other.
    config.model = {
        "embed_dim": 256,
        "patch_encoder": {"width": 192, "depth": 4, "heads": 6, "patch": 16, "pool": "mean"},
        "text_encoder": {"width": 192, "depth": 2, "heads": 6, "pool": "mean"},
        "fusion": {"name": "cross_attention", "width": 192, "depth": 2, "heads": 6, "pool": "mean"},
    }
    config.tasks = {"vqa": {"answer": "class"}}
    config.adapt = {"lora": ("patch_encoder/.*", "text_encoder/.*"), "rank": 16, "alpha": 32.0}
    config.optimizer = {
        "name": "muon",
        "args": {"consistent_rms": 0.2},
        "lr": 4e-3,
        "warmup": "5%",
        "weight_decay": 0.05,
        "train": ("fusion/.*", "head_.*"),
    }
    config.train = {"epochs": 10, "log_every": 20, "early_stop": {"patience": 3}}
    config.eval = {"every": "5%", "batch_size": 100}
    config.checkpoint = {"every": "5%", "best": "validation/vqa/accuracy"}
    return config
