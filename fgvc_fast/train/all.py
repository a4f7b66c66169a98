"Everything about training"
from .groups import *
from .phases import *
from .plans import *
from .rates import *
