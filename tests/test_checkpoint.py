"State in plain files: bit by bit the same, whole after a crash, torn files named, nothing but data"
import json, math, os, random, signal, sys
import numpy as np, pytest, torch
from collections import OrderedDict, defaultdict, namedtuple
from fastai.basics import Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, L, Learner, params
from fastai.torch_core import TensorImage, get_random_states, set_random_states
from pathlib import Path
from torch import nn
from torch.utils.data import TensorDataset
from fgvc_fast.core import FineGrainedError
from fgvc_fast.train import checkpoint
from fgvc_fast.train.all import Phase
from fgvc_fast.train.checkpoint import read_snapshot, write_snapshot

def round_trip(o, tmp_path):
    write_snapshot(tmp_path, o)
    return read_snapshot(tmp_path)

def same(a, b):
    "Equal in type, value, and every bit of tensors and arrays"
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        assert a.dtype==b.dtype and a.shape==b.shape
        a,b = (o.reshape(-1).contiguous().view(torch.uint8) for o in (a, b))
        assert torch.equal(a, b)
    elif isinstance(a, (np.ndarray,np.generic)): assert (a.dtype, a.shape, a.tobytes())==(b.dtype, b.shape, b.tobytes())
    elif isinstance(a, dict):
        assert list(a)==list(b) and list(map(type, a))==list(map(type, b))
        for k in a: same(a[k], b[k])
    elif isinstance(a, (list,tuple)):
        assert len(a)==len(b)
        for x,y in zip(a, b): same(x, y)
    elif isinstance(a, random.Random): assert a.getstate()==b.getstate()
    elif isinstance(a, float): assert np.float64(a).tobytes()==np.float64(b).tobytes()
    else: assert a==b

floats = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
ints = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]

@pytest.mark.parametrize('dtype', [*floats, *ints, torch.bool, torch.complex64, torch.complex128], ids=str)
def test_tensors_of_every_type_and_shape(dtype, tmp_path):
    for shape in ((), (0,), (3,), (2,0,3), (2,3,5)):
        x = torch.randint(0, 2, shape).to(dtype) if dtype in [*ints, torch.bool] else torch.randn(shape).to(dtype)
        same([x], round_trip([x], tmp_path))

def test_what_floating_point_can_hold(tmp_path):
    odd = [0., -0., math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, .1+.2, 1/3]
    same(odd, round_trip(odd, tmp_path))
    for dt in (torch.float64, torch.float32, torch.bfloat16): same([torch.tensor(odd).to(dt)], round_trip([torch.tensor(odd).to(dt)], tmp_path))
    same([np.array(odd)], round_trip([np.array(odd)], tmp_path))

@pytest.mark.parametrize('a', [np.arange(6, dtype='>i4').reshape(2, 3), np.arange(6.)[::2], np.asfortranarray(np.random.rand(3, 2)), np.array(3.), np.zeros((0,2), 'f2'),
    np.array(['a','bcé']), np.array([b'x']),
    np.array([True,False]), np.array(['2024-02-29'], 'M8[D]'), np.arange(4, dtype=np.uint32), np.array([1j], np.complex64)], ids=lambda o: str(o.dtype))
def test_arrays(a, tmp_path):
    b = round_trip({'a': a}, tmp_path)['a']
    assert (a.dtype, a.shape)==(b.dtype, b.shape) and np.array_equal(a, b) and b.flags.writeable

def test_numpy_scalars_stay_what_they_are(tmp_path):
    o = [np.float64(.1), np.float32('inf'), np.int64(-3), np.bool_(True), np.uint8(255), np.str_('ab'), np.float16(2)]
    same(o, round_trip(o, tmp_path))

def test_containers_keys_and_strings(tmp_path):
    o = {'a': [], 'b': {}, 'c': (), 'd': [None, True, False, 10**40, -1], 'e': ((1,), [2], {'$x': 1}), '$y': {'$tensor': ['no']}, 'ü\n"\\\ud800': '\ud83d🐦',
        'keys': {1: 'int', '1': 'str', None: 0, True: 1, (1,'a'): 2, .5: 3, math.inf: 4, np.int64(7): 5}, 'one': {'$float': 'no'}}
    o['keys'].pop(True) # is 1
    same(o, round_trip(o, tmp_path))
    for o in ([], {}, (), None, 3, 'x', torch.ones(2)): same(o, round_trip(o, tmp_path))

def test_special_kinds_come_back_plain(tmp_path):
    d = defaultdict(list, a=1)
    o = [OrderedDict(b=1, a=2), d, L(1, L(2)), nn.Parameter(torch.ones(2)), TensorImage(torch.rand(3, 2, 2)), torch.rand(2, 3).t(),
        torch.rand(1, 4, 2, 2).to(memory_format=torch.channels_last)]
    b = round_trip(o, tmp_path)
    same(b[:3], [dict(b=1, a=2), dict(a=1), [1,[2]]])
    for x,y in zip(o[3:], b[3:]): assert type(y) is torch.Tensor and not y.requires_grad and torch.equal(torch.Tensor(x.detach()), y)

def test_what_is_one_tensor_is_written_once_and_is_one_again(tmp_path):
    x = torch.rand(1000)
    b = round_trip(dict(a=x, b=[x, x.detach()], view=x[:10], other=x.clone(), conj=torch.ones(2).to(torch.complex64)), tmp_path)
    assert b['a'] is b['b'][0] is b['b'][1] and b['a'] is not b['other']
    assert torch.equal(b['view'], x[:10]) and torch.equal(b['other'], x)
    assert next(tmp_path.glob('*.safetensors')).stat().st_size < 2.5*4000
    z = torch.complex(torch.rand(3), torch.rand(3))
    b = round_trip([z, z.conj()], tmp_path)
    assert torch.equal(b[0], z) and torch.equal(b[1], z.conj())

def test_random_states_go_on_as_they_were(tmp_path):
    rng = random.Random(5)
    rng.gauss(0, 1) # leaves a second one for later
    random.gauss(0, 1), np.random.randn()
    state = dict(random=get_random_states(), rngs=[rng, None])
    def draw(r): return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), torch.rand(()).item(), r.gauss(0, 1), r.random()]
    back = round_trip(state, tmp_path)
    want = draw(rng)
    set_random_states(**back['random'])
    assert draw(back['rngs'][0])==want

Point = namedtuple('Point', 'x y')

@pytest.mark.parametrize('o, at', [(dict(a=[1, lambda x: x]), r"state\['a'\]\[1\] is a builtins.function"), ([{2: object()}], r'state\[0\]\[2\] is a builtins.object'), ((Point(1, 2),), r'state\[0\] is a .*Point'),
    (dict(m=nn.Linear(1, 1)), r"state\['m'\] is a torch.nn.modules.linear.Linear"), ({1,2}, 'state is a builtins.set'), (b'x', 'state is a builtins.bytes'), ([Phase('head', 1)], r'state\[0\] is a fgvc_fast.train.phases.Phase'),
    (dict(a=np.array([None])), r"state\['a'\] is a NumPy ndarray of object"), (dict(t=torch.empty(2, device='meta')), r"state\['t'\] is a tensor .* on meta"), (dict(t=torch.eye(2).to_sparse()), 'sparse'),
    ({frozenset(): 1}, 'a key of state is a builtins.frozenset')], ids=lambda o: type(o).__name__)
def test_what_is_no_data_is_named_and_changes_nothing(o, at, tmp_path):
    write_snapshot(tmp_path, 'before')
    files = sorted(tmp_path.iterdir())
    with pytest.raises(FineGrainedError, match=at): write_snapshot(tmp_path, o)
    assert sorted(tmp_path.iterdir())==files and read_snapshot(tmp_path)=='before'

def test_a_state_that_holds_itself(tmp_path):
    o = []
    o.append(o)
    with pytest.raises(FineGrainedError, match='holds itself'): write_snapshot(tmp_path, o)

def test_only_one_snapshot_is_kept_and_other_files_are_left_alone(tmp_path):
    (tmp_path/'phase_log.csv').write_text('a')
    (tmp_path/'weights.safetensors').write_text('b')
    for i in range(3): write_snapshot(tmp_path, [i, torch.full((3,), i)])
    assert len(list(tmp_path.glob('snapshot-*')))==1 and len(list(tmp_path.iterdir()))==4
    assert read_snapshot(tmp_path)[0]==2

def in_a_child(f):
    "The exit status of a copy of this process that does `f` and nothing else"
    pid = os.fork()
    if not pid:
        try: f()
        finally: os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

forks = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='copies the process')

@forks
@pytest.mark.parametrize('obj, name', [(checkpoint, 'save_file'), (checkpoint, '_file_digest'), (os, 'fsync'), (os, 'replace')], ids=lambda o: str(o)[:12])
def test_killed_while_writing(obj, name, tmp_path):
    "A process that dies at once, anywhere before the move, leaves the old snapshot; the next write tidies up"
    write_snapshot(tmp_path, dict(n=1, x=torch.ones(5)))
    def die(*args, **kwargs):
        if name=='save_file': Path(args[1]).write_bytes(b'half a fi')
        os._exit(9)
    def dying():
        setattr(obj, name, die)
        write_snapshot(tmp_path, dict(n=2, x=torch.zeros(5)))
    assert in_a_child(dying)==9
    back = read_snapshot(tmp_path)
    assert back['n']==1 and torch.equal(back['x'], torch.ones(5)) and len(list(tmp_path.iterdir()))>2
    write_snapshot(tmp_path, dict(n=3))
    assert read_snapshot(tmp_path)==dict(n=3) and len(list(tmp_path.iterdir()))==2

@forks
@pytest.mark.parametrize('big', [dict(x=torch.rand(100_000)), dict(s='a'*200_000)], ids=['tensors','json'])
def test_a_full_disk(big, tmp_path):
    "The tensors do not fit, or the JSON does not: one clear error, the old snapshot whole, no leftovers"
    write_snapshot(tmp_path, dict(n=1))
    def no_room():
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,)*2)
        try: write_snapshot(tmp_path, big)
        except FineGrainedError as e: os._exit(7 if 'could not be written' in str(e) and 'as it was' in str(e) else 8)
    assert in_a_child(no_room)==7
    assert read_snapshot(tmp_path)==dict(n=1) and len(list(tmp_path.iterdir()))==2

def test_torn_files_are_named(tmp_path):
    fn = write_snapshot(tmp_path, dict(n=12345, x=torch.rand(50)))
    ts,text = next(tmp_path.glob('*.safetensors')),fn.read_text()
    good = ts.read_bytes()
    for bad,why in ((good[:-1], 'bytes instead of'), (good+b'x', 'bytes instead of'), (good[:200]+b'\x07'+good[201:], 'checksum')):
        ts.write_bytes(bad)
        with pytest.raises(FineGrainedError, match=f'{ts.name}.*damaged.*{why}'): read_snapshot(tmp_path)
    ts.write_bytes(good)
    for bad,why in ((text[:len(text)//2], 'no JSON'), ('', 'no JSON'), (text.replace('12345', '12346'), 'checksum')):
        fn.write_text(bad)
        with pytest.raises(FineGrainedError, match=f'snapshot.json.*damaged.*{why}'): read_snapshot(tmp_path)
    for bad in ('[]', '{}', json.dumps(json.loads(text) | dict(format=2))):
        fn.write_text(bad)
        with pytest.raises(FineGrainedError, match='no snapshot that this version'): read_snapshot(tmp_path)
    fn.write_text(text)
    assert read_snapshot(tmp_path)['n']==12345

def test_no_pickle(tmp_path):
    write_snapshot(tmp_path, dict(random=get_random_states(), x=torch.rand(3)))
    assert {o.suffix for o in tmp_path.iterdir()}=={'.json','.safetensors'}
    json.loads((tmp_path/'snapshot.json').read_text(), parse_constant=lambda o: pytest.fail(f'{o} is no JSON'))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(.2)),nn.Linear(6, 2)
    def forward(self, x): return self.head(self.body(x))

class Stop(Callback):
    order = 200
    def after_batch(self):
        if self.training and len(self.recorder.losses)==14: raise KeyboardInterrupt

def learner(seed=0):
    torch.manual_seed(seed), random.seed(seed)
    y = torch.arange(40)%2
    dls = DataLoaders(*[DataLoader(TensorDataset(torch.randn(40, 4)+y[:,None], y), bs=8, shuffle=s, num_workers=0) for s in (True,False)])
    learn = Learner(dls, Net(), loss_func=CrossEntropyLossFlat(), splitter=lambda m: L(m.body, m.head).map(params))
    learn.remove_cb(learn.progress)
    return learn

def test_what_a_run_of_phases_remembers_goes_through(tmp_path):
    "A stopped run whose memory went to disk and back comes to the losses of one that was left alone, bit by bit"
    plan,whole = [Phase('head', 2, lr=1e-2), Phase('all', 2, lr=1e-2)],learner()
    with whole.no_logging(): whole.fit_phases(plan)
    stopped = learner()
    with stopped.no_logging(): stopped.fit_phases(plan, cbs=Stop())
    run = stopped._phase_run
    snap = run.snap
    run.snap = round_trip(snap, tmp_path)
    same(run.snap['random'], snap['random'])
    same(run.snap['opt'], snap['opt'])
    for k,v in snap['model'].items(): same(run.snap['model'][k], v)
    run.best = run.phase_best = None # all that goes on comes from disk
    with stopped.no_logging(): stopped.fit_phases(resume=True, cbs=[])
    assert stopped.recorder.values==whole.recorder.values and len(whole.recorder.values)==4
    for a,b in zip(stopped.model.state_dict().values(), whole.model.state_dict().values()): assert torch.equal(a, b)

def test_curves_of_many_small_things(tmp_path):
    o = dict(losses=[torch.tensor(i/7) for i in range(2000)], rates=[[(np.float64(i), i/3)]*5 for i in range(500)])
    same(o, round_trip(o, tmp_path))

@pytest.mark.parametrize('folder', [3, None, '', True, b'x'], ids=str)
def test_what_is_no_folder(folder):
    for call in (lambda: write_snapshot(folder, 1), lambda: read_snapshot(folder)):
        with pytest.raises(FineGrainedError, match='folder='): call()

def test_snapshots_whose_parts_are_odd(tmp_path):
    "JSON that can be read, checksums that are right, and yet no state: one clear error each"
    fn = write_snapshot(tmp_path, dict(n=1, x=torch.ones(5)))
    good = json.loads(fn.read_text())
    def damaged(**kwargs):
        top = good | kwargs
        if 'data' in kwargs: top['sha256'] = checkpoint._digest(checkpoint._text(kwargs['data']).encode())
        fn.write_text(json.dumps({k: v for k,v in top.items() if v!='drop'}))
        with pytest.raises(FineGrainedError, match='damaged|no snapshot'): read_snapshot(tmp_path)
    for k in good.keys()-{'data'}: damaged(**{k: 'drop'}), damaged(**{k: None}), damaged(**{k: 3})
    for d in ({'$tensor': ['no','float32',[5]]}, {'$tensor': 3}, {'$tensor': ['state[\'x\']','beak',[5]]}, {'$array': ['state[\'x\']','<f9',[5]]}, {'$scalar': ['<f8','zz']}, {'$scalar': None}, {'$float': [1]}, {'$dict': [[1]]}, {'$random': [1,2]}, {'$beak': 1}):
        damaged(data=d)
    for t in (dict(file=3), dict(file='../x'), dict(bytes='x'), {}): damaged(tensors=good['tensors'] | t if t else {})

def test_a_snapshot_of_something_else_is_no_run(tmp_path):
    from fgvc_fast.train.runner import _read_run
    for o in (3, [], dict(model=torch.ones(2)), dict(snap={}, plan=[])):
        write_snapshot(tmp_path, o)
        with pytest.raises(FineGrainedError, match='something else than `fit_phases`'): _read_run(None, tmp_path, None)
