"""A file a task: features, heads, loss, prediction, judgement."""

from mmjax.tasks.task import KINDS, SumWeight, Task

__all__ = ["KINDS", "SumWeight", "Task"]
