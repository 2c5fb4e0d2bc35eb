from .channels import top_units as top_units
from .disjoint import random_disjoint as random_disjoint
from .patterns import keep_blocks as keep_blocks
from .patterns import keep_n_of_m as keep_n_of_m
from .topk import entries as entries
from .topk import keep_random as keep_random
from .topk import keep_top as keep_top
