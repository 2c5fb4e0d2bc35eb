"""One runnable file for each paper's headline; a claim that fails is published as failed."""

from .ledger import Record as Record
from .ledger import claim as claim
from .ledger import claims as claims
from .ledger import run_claim as run_claim
