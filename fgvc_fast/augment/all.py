"Everything about augmentation"
from .attend import *
from .erase import *
from .evidence import *
from .mix import *
