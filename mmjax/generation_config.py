"""How a task writes: the settings of `tasks.NAME.generation`."""

from __future__ import annotations

from dataclasses import dataclass

from mmjax.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """Settings that mean what they do in Hugging Face's `generate`; `mmjax eval` and `predict` may change them.

    Attributes:
      length: most tokens to write; 0 is the task's own (captions and answers: as long as the training's).
      min_length: no end before so many tokens.
      prefix: words that every text begins with ("a picture of"); they are part of it.
      num_beams: 1 takes the likeliest token each time; above, beam search over so many texts.
      length_penalty: beams are compared by log-probability / length ** length_penalty: above 0 favours longer texts.
      early_stopping: stop when num_beams texts are finished, instead of when no running one is likely to beat them.
      repetition_penalty: above 1, what is in the prompt or was written gets less likely (Keskar et al., 2019).
      no_repeat_ngram: no sequence of so many tokens twice; 0 allows all.
      temperature: 0 is deterministic; above, tokens are drawn from softmax(logits / temperature).
      top_k: draw among the k likeliest only; 0 is all.
      top_p: draw among the likeliest that together have this probability (Holtzman et al., 2020); 1 is all.
      seed: of the draws. A row's draws depend on it and on the row alone.
    """

    length: int = 0
    min_length: int = 0
    prefix: str = ""
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self, where: str) -> None:
        """Called by `config.build`."""
        least = {"length": 0, "min_length": 0, "num_beams": 1, "no_repeat_ngram": 0, "temperature": 0, "top_k": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected {low} or more.")
        if self.repetition_penalty <= 0:
            raise ConfigError(f"{where}.repetition_penalty: found {self.repetition_penalty}, expected more than 0.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"{where}.top_p: found {self.top_p}, expected a share in (0, 1].")
        if 0 < self.length < self.min_length:
            raise ConfigError(f"{where}.min_length: found {self.min_length}, expected up to length ({self.length}).")
        if self.num_beams > 1 and self.temperature > 0:
            raise ConfigError(f"{where}.temperature: beams are not drawn. Expected 0 with num_beams {self.num_beams}.")
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ConfigError(f"{where}: top_k and top_p change nothing at temperature 0. Set {where}.temperature.")
        if self.num_beams == 1 and (self.length_penalty != 1 or self.early_stopping):
            raise ConfigError(f"{where}: length_penalty and early_stopping are for beams. Set {where}.num_beams.")


GREEDY = GenerationConfig()
