"""Tasks: the loss of a model's output, and the scores of its field."""

from .answers import Answers as Answers
from .answers import answers_batch as answers_batch
from .choose import task_of as task_of
from .classes import Classes as Classes
from .classes import Heads as Heads
from .held_out import HeldOut as HeldOut
from .held_out import own_losses as own_losses
from .labels import MultiLabel as MultiLabel
from .next_item import NextItem as NextItem
from .next_session import NextSession as NextSession
from .pairs import Pairs as Pairs
from .regression import Reconstruction as Reconstruction
from .regression import Regression as Regression
from .task import Task as Task
from .tokens import Tokens as Tokens
