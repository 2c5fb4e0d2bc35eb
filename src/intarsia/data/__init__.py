"""Where pictures and pretrained backbones come from, and how they become batches."""

from .backbones import backbone as backbone
from .backbones import outline as outline
from .backbones import trunk_fingerprint as trunk_fingerprint
from .calibration import load_calibration as load_calibration
from .fingerprint import fingerprint as fingerprint
from .fingerprint import shared as shared
from .images import ImageSet as ImageSet
from .language_models import language_model as language_model
from .loaders import ImageTensors as ImageTensors
from .loaders import Prepared as Prepared
from .loaders import tensors as tensors
from .packages import cache_dir as cache_dir
from .splits import Fold as Fold
from .splits import Splits as Splits
from .splits import hold_out as hold_out
from .splits import load_data as load_data
from .splits import make_splits as make_splits
from .tables import from_dataset as from_dataset
from .texts import load_texts as load_texts
from .transforms import InputConfig as InputConfig
from .transforms import eval_transform as eval_transform
from .transforms import input_config as input_config
from .transforms import train_transform as train_transform
