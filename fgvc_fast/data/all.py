"Everything about data"
from .aircraft import *
from .block import *
from .cars import *
from .catalog import *
from .cifar import *
from .dogs import *
from .download import *
from .flowers import *
from .food import *
from .formats import *
from .image import *
from .inaturalist import *
from .nabirds import *
from .pets import *
from .table import *
from .toy import *
