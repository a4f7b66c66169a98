"Everything about published data sets, drawn ones and your own"
from .aircraft import *
from .catalog import *
from .cars import *
from .cifar import *
from .dogs import *
from .download import *
from .flowers import *
from .food import *
from .formats import *
from .inaturalist import *
from .nabirds import *
from .pets import *
from .toy import *
