"Everything about what fools a model"
from .attack import *
from .corrupt import *
from .train import *
from .curve import *
from .occlude import *
