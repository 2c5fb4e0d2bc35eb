from .codec.recombiner import RecombinerSettings as RecombinerSettings
from .convergence import Convergence as Convergence
from .convergence import convergence_study as convergence_study
from .convergence import voronoi as voronoi
from .gaussian_mixture import Parameters as Parameters
from .gaussian_moe import SoftmaxGaussianMoE as SoftmaxGaussianMoE
