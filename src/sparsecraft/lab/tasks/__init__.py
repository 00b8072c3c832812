"""Tasks: real data, a real model and a metric, behind one small interface.

Example:
    >>> from sparsecraft.lab.tasks import task_names
    >>> "docs-retrieval" in task_names()
    True
"""

from __future__ import annotations

from sparsecraft.lab.tasks.base import Scores, Split, Task
from sparsecraft.lab.tasks.registry import TASKS, load_task, task_names
from sparsecraft.lab.tasks.text import text_task

__all__ = ["TASKS", "Scores", "Split", "Task", "load_task", "task_names", "text_task"]
