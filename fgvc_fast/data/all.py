"Everything about data"
from .augs import *
from .block import *
from .cache import *
from .duplicates import *
from .image import *
from .lazy import *
from .loader import *
from .merge import *
from .subsets import *
from .table import *
