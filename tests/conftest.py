"Tests keep no presized pictures in the user's own cache; and what several test files share"
import os, tempfile
import pytest, torch

cache = tempfile.TemporaryDirectory(prefix='fgvc_cache')
os.environ['FGVC_CACHE'] = cache.name # notebooks that run as processes of their own have it too

@pytest.fixture(scope='module')
def one_thread():
    "Small batches on many threads wait for each other: twenty times slower on a busy machine"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)
