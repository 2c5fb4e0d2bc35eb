"""One loop on accelerate, below hosts and models: it knows tasks and objectives, no method."""

from ..core.renamed import renamed
from .distill import distill as distill
from .distill import staged_distillation as staged_distillation
from .evaluate import Metrics as Metrics
from .evaluate import TokenMetrics as TokenMetrics
from .evaluate import evaluate as evaluate
from .evaluate import predict as predict
from .interrupt import Interrupted as Interrupted
from .objectives import OBJECTIVES as OBJECTIVES
from .objectives import Objective as Objective
from .objectives import Outcome as Outcome
from .objectives import Staged as Staged
from .objectives import local_variance as local_variance
from .objectives import logits_of as logits_of
from .objectives import next_token as next_token
from .objectives import one_backward as one_backward
from .objectives import own_task as own_task
from .objectives import plain as plain
from .objectives import task_accuracy as task_accuracy
from .objectives import task_heads as task_heads
from .objectives import two_pass as two_pass
from .optimisers import adamw as adamw
from .optimisers import cosine as cosine
from .probe import features as features
from .probe import linear_probe as linear_probe
from .run import Run as Run
from .settings import Recipe as Recipe
from .settings import Running as Running
from .settings import Training as Training
from .trainer import trainer_loss as trainer_loss

__getattr__ = renamed(
    __name__,
    {
        "PhasedRun": "fitting.PhasedRun",
        "fit": "fitting.fit",
        "fit_as": "fitting.fit_as",
        "fit_in_phases": "fitting.fit_in_phases",
        "from_sources": "hosts.sources.from_sources",
    },
)
