"Many rows: arrays and not Python objects in the workers, the right picture for a row, and training in two processes"
import gc, json, os, pickle, psutil, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.data.block import Strings

rows,classes = 300_000,1_000

@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "A data set of many paths to few files: pixel values say which file, links make the paths"
    root = tmp_path_factory.mktemp('many')
    files = [f'a photograph of the year {o:03d}.png' for o in range(rows//classes)]
    (root/'photos').mkdir()
    for i,o in enumerate(files): Image.new('RGB', (16,16), (i%256, i//256, 7)).save(root/'photos'/o)
    names = [f'Class number {o:05d} of many' for o in range(classes)]
    items = pd.DataFrame(dict(path=[f'{c}/{o}' for c in names for o in files], label=np.repeat(names, len(files))))
    data = FineGrainedData(items.sample(frac=1, random_state=0), root)
    for o in names: (root/o).symlink_to('photos') # not before: by way of links a file would be one, however many paths it has
    return data

def loaders(data, **kwargs): return data.dls(16, bs=50, aug='none', cache=False, device='cpu', **kwargs)

def test_right_picture_and_label(many):
    "Path, pixels and class of random rows are those of the table"
    dls = loaders(many, num_workers=0)
    for split,ds in (('train',dls.train_ds), ('valid',dls.valid_ds)):
        assert list(ds.items[[0,-1]])==list(many[split].index[[0,-1]]) and len(ds)==len(many[split])
        for i in np.random.default_rng(0).integers(0, len(ds), 100):
            row,x,y = ds.items[i],*ds[int(i)]
            label,file = many.items.path[row].split('/')
            file = int(file[-7:-4])
            assert x.fn==str(many.root/many.items.path[row]) and dls.vocab[y]==many.items.label[row]==label
            assert np.asarray(x)[3,5].tolist()==[file%256, file//256, 7]

def test_batches_are_of_the_table(many):
    "What workers hand over, pixels and class together, are rows of the split, none twice"
    dls = loaders(many, num_workers=2, seed=3)
    seen = []
    assert next(iter(dls.train))[1].dtype==torch.int64 # 16 bits are too few for whoever counts pairs of classes
    for n,(xb,yb) in enumerate(dls.train):
        px,yb = (xb[:,:,8,8]*255).round().long().as_subclass(torch.Tensor),yb.as_subclass(torch.Tensor)
        seen += (yb*(rows//classes)+px[:,0]+256*px[:,1]).tolist()
        if n==60: break
    assert len(set(seen))==len(seen)==61*50
    at = {(c,f) for c,f in (o.split('/') for o in many['train'].path)}
    assert all((dls.vocab[o//(rows//classes)], f'a photograph of the year {o%(rows//classes):03d}.png') in at for o in seen)

def per_row(o):
    "The largest number of Python objects that any container reachable from `o` holds (modules and classes aside)"
    seen,todo,most = set(),[o],0
    while todo:
        o = todo.pop()
        if id(o) in seen or isinstance(o, (type, type(os), pd.DataFrame)) or callable(o) and hasattr(o, '__globals__'): continue
        seen.add(id(o))
        if isinstance(o, (list, tuple, dict, set, frozenset)): most = max(most, len(o))
        assert not (isinstance(o, np.ndarray) and o.dtype==object and o.size>2*classes)
        todo += gc.get_referents(o)
    return most

def test_no_object_per_row(many):
    "What a worker reads is arrays; the vocabulary is all that is Python's, and grows with the classes"
    dl = loaders(many, num_workers=0).train
    for o in (dl.quick, dl.dataset.items, dl.get_idxs(), [t.tfms for t in dl.dataset.tls]): assert per_row(o)<=2*classes
    dl.quick.picture.paths = list(many.items.path)
    assert per_row(dl.quick)==rows
    assert len(pickle.dumps(Strings(many.items.path)))<1.2*many.items.path.str.len().sum()+8*rows+1000

def grown(dl):
    "Megabytes that the workers came to own between the first batch of an epoch and its last"
    first,last = [],[]
    for i,_ in enumerate(dl):
        if i in (0, len(dl)-8): first,last = last,[o.memory_full_info().uss/1e6 for o in psutil.Process().children() if 'resource_tracker' not in ' '.join(o.cmdline())]
    return max(b-a for a,b in zip(first, last))

class Read:
    "Reads the path and the label of a row, and draws nothing: an epoch in seconds"
    def __init__(self, quick): self.picture,self.codes = quick.picture,quick.label.codes
    def fits(self, dl): return True
    def __call__(self, dl, i):
        row = dl.dataset.items[i]
        return len(self.picture(row).fn),int(self.codes[row])

class Nothing(Read):
    "What a worker needs to get going, on a machine as busy as this one is now"
    def __call__(self, dl, i): return 1,1

def test_workers_stay_small(many):
    "An epoch of all rows adds little to a worker, beside one that reads none; with a list of strings it copies them"
    dl = loaders(many, num_workers=1).train
    quick,dl.bs = dl.quick,500
    def least(read, n=2):
        dl.quick = read(quick)
        return min(grown(dl) for _ in range(n))
    nothing,arrays = least(Nothing),least(Read)
    quick.picture.paths = list(many.items.path)
    strings = least(Read, 1)
    assert arrays-nothing<(strings-nothing)/2, (nothing, arrays, strings)

@pytest.mark.parametrize('names', [[], [''], ['a','','b',''], ['Grünfink/é.jpg', '鳥.png', 'e\u0301', '🐦', 'a\nb\tc\0d', ' ', '"\\', 'b\udcff\udc80.jpg'], ['x'*100_000, 'y']])
def test_strings(names):
    for o in (names, tuple(names), pd.Series(names, dtype=object)):
        s = Strings(o)
        assert list(s)==list(names) and len(s)==len(names)
        assert list(pickle.loads(pickle.dumps(s)))==list(names)
        for i in range(-len(names), len(names)): assert s[i]==names[i]
        for i in (len(names), -len(names)-1):
            with pytest.raises(IndexError): s[i]

two = '''
import json, sys, torch
from fastai.torch_core import rank_distrib
from fgvc_fast.all import fine_grained_data, fine_grained_learner

class Noted:
    "Notes the rows of each epoch, as their pictures are read"
    def __init__(self, quick): self.quick,self.epochs = quick,[]
    def fits(self, dl):
        self.epochs.append([]) # asked once, before each
        return self.quick.fits(dl)
    def __call__(self, dl, i):
        self.epochs[-1].append(int(dl.dataset.items[i]))
        return self.quick(dl, i)

dls = fine_grained_data('toy_birds').subset(per_class=8).dls(32, bs=8, num_workers=0, cache=False, device='cpu')
learn = fine_grained_learner(dls, 'toy_resnet')
def numbers(): return torch.cat([o.detach().flatten() for o in learn.model.parameters()])
start = numbers()
dls.train.quick = noted = Noted(dls.train.quick)
with learn.no_bar(), learn.no_logging(), learn.distrib_ctx(sync_bn=False, cpu=True): learn.fit(3, 1e-3)
open(f'{sys.argv[1]}/{rank_distrib()}.json', 'w').write(json.dumps(dict(epochs=noted.epochs, train=dls.train_ds.items.tolist(), weights=numbers().tolist(), moved=(numbers()-start).abs().max().item(), valid=learn.recorder.values[-1][1])))
'''

def test_two_processes(tmp_path):
    "Each sees its half of every epoch, in a new order each time; both end with the same weights"
    pytest.importorskip('accelerate')
    (tmp_path/'train.py').write_text(two)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(sys.path)}
    res = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', tmp_path/'train.py', tmp_path], capture_output=True, text=True, env=env, timeout=1800)
    assert res.returncode==0, res.stderr[-4000:]
    a,b = (json.loads((tmp_path/f'{o}.json').read_text()) for o in (0,1))
    assert a['weights']==b['weights'] and a['moved']>0 and a['valid']==b['valid']
    for one,other in zip(a['epochs'], b['epochs'], strict=True):
        assert len(one)==len(other)==len(a['train'])//2
        assert sorted(one+other)==sorted(a['train'])
    assert len({tuple(o) for o in a['epochs']})==3
