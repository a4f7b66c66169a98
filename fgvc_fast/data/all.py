"Everything about data"
from .block import *
from .catalog import *
from .formats import *
from .image import *
from .table import *
from .toy import *
