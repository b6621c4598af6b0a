"""easy-VQA from scratch: patch encoder, text encoder, cross-attention fusion, a class head over the answers.

    mmjax train --config configs/easy_vqa.py --workdir runs/easy_vqa --config.data.root=PATH

PATH holds `train/questions.json` and `train/images/` (`pip install easy-vqa` ships them); a tenth of the pictures is
held out for validation. Another split: `mmjax eval --workdir runs/easy_vqa --config.data.eval.path=FOLDER`.
2 CPU cores, 13 minutes; expected validation accuracy 99.9 % (question only: 67 %).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = {"train": {"path": "train", "batch_size": 64}, "holdout": 0.1}
    config.processor = {
        "image": {"size": 64},
        "augment": {"crop_area": (0.8, 1.0), "crop_aspect": (0.9, 1.11), "flip": True},
        "tokenizer": {"kind": "bpe", "vocab_size": 384},
        "question_length": 16,
        "questions": 6,
    }
    config.model = {
        "patch_encoder": {"width": 128, "depth": 4, "heads": 4, "patch": 8, "pool": "mean"},
        "text_encoder": {"width": 128, "depth": 1, "heads": 4, "pool": "mean"},
        "fusion": {"name": "cross_attention", "width": 128, "depth": 2, "heads": 4, "pool": "mean"},
    }
    config.tasks = {"vqa": {"answer": "class"}}
    # Muon leaves the question-only plateau within 50 steps; AdamW (1e-3 to 3e-3) was still on it after 200.
    config.optimizer = {
        "name": "muon",
        "args": {"consistent_rms": 0.2},
        "lr": 6e-3,
        "warmup": "5%",
        "weight_decay": 0.05,
    }
    config.train = {"epochs": 10, "log_every": 20}
    config.eval = {"every": "25%", "batch_size": 100}
    config.checkpoint = {"every": "10%", "best": "validation/vqa/accuracy"}
    return config
