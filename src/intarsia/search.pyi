from .areas.search.inference_free import InferenceFree as InferenceFree
from .areas.search.learning import LearnedRetrieval as LearnedRetrieval
from .areas.search.learning import fit_retriever as fit_retriever
from .areas.search.sparse_index import SparseIndex as SparseIndex
from .data.collections import load_collection as load_collection
