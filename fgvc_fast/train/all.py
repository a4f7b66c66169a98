"Everything about training"
from .groups import *
from .phases import *
