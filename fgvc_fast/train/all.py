"Everything about training"
from .frozen import *
from .groups import *
from .phases import *
