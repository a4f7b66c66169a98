"Everything about training"
from .add_loss import *
from .groups import *
from .phases import *
