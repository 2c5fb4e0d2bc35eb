from .hosts.offload.resident import residency as residency
from .hosts.offload.ring import ring_offload as ring_offload
from .hosts.offload.ring import ring_residency as ring_residency
from .hosts.offload.store import pack_experts as pack_experts
