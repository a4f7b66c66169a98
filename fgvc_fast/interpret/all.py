"Everything about looking at a trained model"
from .cam import *
from .errors import *
from .levels import *
from .retrieve import *
