from .data.collections import load_collection as load_collection
from .models.retrieve.inference_free import InferenceFree as InferenceFree
from .models.retrieve.learning import LearnedRetrieval as LearnedRetrieval
from .models.retrieve.learning import fit_retriever as fit_retriever
from .models.retrieve.sparse_index import SparseIndex as SparseIndex
