"""One loop on accelerate; an objective is a function, the loop knows no method."""

from .evaluate import Metrics as Metrics
from .evaluate import evaluate as evaluate
from .evaluate import predict as predict
from .fit import Run as Run
from .fit import fit as fit
from .interrupt import Interrupted as Interrupted
from .objectives import OBJECTIVES as OBJECTIVES
from .objectives import Objective as Objective
from .objectives import Outcome as Outcome
from .objectives import local_variance as local_variance
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
from .settings import Recipe as Recipe
from .settings import Running as Running
from .settings import Training as Training
