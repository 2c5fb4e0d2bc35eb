from .resident import residency as residency
from .ring import ring_offload as ring_offload
from .ring import ring_residency as ring_residency
from .store import pack_experts as pack_experts
