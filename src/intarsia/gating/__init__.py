"""The contract of a router: settings, gates, random numbers, the state between layers, losses."""

from .balance import balance as balance
from .balance import entropy as entropy
from .balance import z_loss as z_loss
from .layer_state import LayerState as LayerState
from .layer_state import PassesState as PassesState
from .layer_state import join as join
from .layer_state import rejoin as rejoin
from .layer_state import start as start
from .random_source import RandomSource as RandomSource
from .random_source import passes as passes
from .random_source import random_sources as random_sources
from .random_source import redraw as redraw
from .reads_experts import Encoded as Encoded
from .reads_experts import ReadsExperts as ReadsExperts
from .reads_experts import expert_readers as expert_readers
from .router import Router as Router
from .router import aux_loss as aux_loss
from .router import check_task_ids as check_task_ids
from .router import learned_routers as learned_routers
from .router import of_samples as of_samples
from .router import set_valid as set_valid
from .router import task_ids as task_ids
from .settings import RouterConfig as RouterConfig
from .settings import non_causal as non_causal
from .settings import with_experts as with_experts
