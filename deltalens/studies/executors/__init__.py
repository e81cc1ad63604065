"""What measures the cells of a study: this process, several processes, Ray, or an executor of an
installed package."""

from deltalens.studies.executors.execution import Execution
from deltalens.studies.executors.protocol import (
    Executor,
    NotPrepared,
    Recipe,
    Report,
    Within,
    Worker,
    WorkerPool,
)

__all__ = [
    "Execution",
    "Executor",
    "NotPrepared",
    "Recipe",
    "Report",
    "Within",
    "Worker",
    "WorkerPool",
]
