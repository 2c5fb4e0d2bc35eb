"""One loop on accelerate, below hosts and models: it knows tasks and objectives, no method."""

from ..core.renamed import renamed
from .distill import distill as distill
from .distill import staged_distillation as staged_distillation
from .evaluate import evaluate as evaluate
from .evaluate import predict as predict
from .interrupt import Interrupted as Interrupted
from .objectives import OBJECTIVES as OBJECTIVES
from .objectives import Objective as Objective
from .objectives import Staged as Staged
from .objectives import local_variance as local_variance
from .objectives import logits_of as logits_of
from .objectives import one_backward as one_backward
from .objectives import pace as pace
from .objectives import plain as plain
from .objectives import two_pass as two_pass
from .one_pass import OnePass as OnePass
from .optimisers import adamw as adamw
from .optimisers import cosine as cosine
from .outcome import Outcome as Outcome
from .outcome import TargetLoss as TargetLoss
from .preference import PreferenceRounds as PreferenceRounds
from .probe import features as features
from .probe import linear_probe as linear_probe
from .processes import DataShards as DataShards
from .run import Run as Run
from .scores import Metrics as Metrics
from .scores import Named as Named
from .scores import Scores as Scores
from .scores import TokenMetrics as TokenMetrics
from .settings import Recipe as Recipe
from .settings import Running as Running
from .settings import Training as Training
from .squarehead import SquareHead as SquareHead
from .tasks import Classes as Classes
from .tasks import Heads as Heads
from .tasks import MultiLabel as MultiLabel
from .tasks import NextItem as NextItem
from .tasks import Pairs as Pairs
from .tasks import Reconstruction as Reconstruction
from .tasks import Regression as Regression
from .tasks import Task as Task
from .tasks import Tokens as Tokens
from .tasks import task_of as task_of
from .tasks.classes import own_task as own_task
from .tasks.classes import task_accuracy as task_accuracy
from .tasks.classes import task_heads as task_heads
from .tasks.tokens import next_token as next_token
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
