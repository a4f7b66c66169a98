"Tests keep no presized pictures in the user's own cache"
import os, tempfile

cache = tempfile.TemporaryDirectory(prefix='fgvc_cache')
os.environ['FGVC_CACHE'] = cache.name # notebooks that run as processes of their own have it too
