"Everything about models"
from .annotated import *
from .attention import *
from .body import *
from .closer import *
from .head import *
from .model import *
from .parts import *
from .pool import *
from .pools import *
from .pyramid import *
from .second import *
from .stages import *
from .streams import *
from .tokens import *
from .toy import *
from .trace import *
