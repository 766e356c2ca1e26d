"""What to train on: data as checked arrays, embedded or from the user's files."""

from experiments.tasks.task import Data, Task, default_config, load

__all__ = ["Data", "Task", "default_config", "load"]
