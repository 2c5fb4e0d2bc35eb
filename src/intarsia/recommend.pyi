from .data.atomic_files import load_interactions as load_interactions
from .experiments.recommending import fit_recommender as fit_recommender
from .experiments.recommending import open_recommender as open_recommender
from .models.recommend.lightgcn import LightGcn as LightGcn
from .models.recommend.m2trec import M2TRec as M2TRec
from .models.recommend.multvae import MultVae as MultVae
from .models.recommend.neumf import NeuMf as NeuMf
from .models.recommend.onerec import OneRec as OneRec
