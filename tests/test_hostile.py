"""Every public call with every wrong kind of each argument: one clear error that names the culprit, and nothing is lost

The table comes in sections, a row for each call: who it is, how it is called rightly, and what kind of thing each argument is.
From the kind follow the wrong values. `python tests/test_hostile.py` prints what does not hold, by area."""
import hashlib, importlib, inspect, io, json, math, os, pkgutil, re, shutil, signal, sys, warnings, zipfile
import numpy as np, pandas as pd, pytest, torch
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from PIL import Image
from types import SimpleNamespace
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
from fastai.vision.all import Callback, Learner, accuracy
import fgvc_fast
from fgvc_fast.all import * # chkstyle: ignore (what a notebook has)
for k in [k for k in globals() if k.startswith('test')]: del globals()[k] # of fastcore, and no tests of ours
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.image import to_picture
from fgvc_fast.robust.all import *
from torch import nn

pytestmark = [pytest.mark.usefixtures('one_thread'), pytest.mark.filterwarnings('ignore')]
nan,inf = math.nan,math.inf

# ---- Kinds of arguments: what is wrong for each ------------------------------------------------------------------------------------

class Thing:
    "Nothing that any call could want"
    def __repr__(self): return 'Thing()'
thing = Thing()

@dataclass
class Of:
    "A wrong value that is made where the test stands: `make(w)`"
    name: str
    make: object
    def __repr__(self): return self.name

class Kind:
    "Wrong values for an argument, and words that may stand for it in the error besides its name"
    def __init__(self, *wrong, none=False, words=''):
        self.wrong = [o for o in wrong if not (none and o is None)]
        self.words = words.split()
    def __add__(self, more): return Kind(*self.wrong, *more, words=' '.join(self.words))
    def but(self, *fine): return Kind(*[o for o in self.wrong if repr(o) not in map(repr, fine)], words=' '.join(self.words))
    def called(self, words): return Kind(*self.wrong, words=' '.join(self.words)+' '+words)

@dataclass
class Free:
    "An argument that takes anything, and why"
    why: str

def number(low=None, high=None, above=None, below=None, none=False, words=''):
    "Any number from `low` to `high`, or above `above` and below `below`"
    wrong = [None, 'x', nan, inf, [], {}, thing]
    if low is not None: wrong.append(low-1)
    if above is not None: wrong += [above, above-1]
    if high is not None: wrong.append(high+.5)
    if below is not None: wrong.append(below)
    return Kind(*wrong, none=none, words=words)

def whole(low=None, high=None, none=False, words=''):
    wrong = [None, 'x', nan, 1.5, [], {}, thing]
    if low is not None: wrong.append(low-1)
    if high is not None: wrong.append(high+1)
    return Kind(*wrong, none=none, words=words)

share = number(0, 1)
positive = number(above=0)
count = whole(1)
seed = Kind('x', -1, 1.5, nan, [], thing)
flag = Kind('no', 7, [1], thing)
def choice(none=False, words=''): return Kind('no such word', 5, '', [], {}, thing, None, none=none, words=words)
def size_of(none=False, words=''): return Kind(0, -1, 1.5, '64', (64,), (64,0), (8,8,8), nan, [], {}, thing, None, none=none, words=words)
def pair_of(low, high, words=''): return Kind(None, 'x', (1,), (high,low-1), (nan,high), (low-1,high), [], {}, thing, ('a','b'), words=words)
range_or_number = Kind(None, 'x', -1, 1.5, nan, (.5,.2), (nan,.5), ('a','b'), [], (.1,.2,.3), thing)
def name_of(words=''): return Kind('No such name', 5, None, nan, [], {}, thing, words=words)
text = Kind(None, 5, [], {}, thing)
func = Kind(None, 5, 'no such function', [], thing)
def instance(words='', none=False): return Kind(None, 5, 'x', [], thing, none=none, words=words)

not_there = Of("'.../not/there'", lambda w: w.tmp/'not'/'there')
a_text = Of("'.../notes.txt'", lambda w: w.text)
a_folder = Of("'.../empty'", lambda w: w.empty)
below_file = Of("'.../notes.txt/below'", lambda w: w.text/'below')
old_folder = Kind(None, 5, [], {}, thing, not_there, a_text, a_folder, words='folder file there')
old_file = Kind(None, 5, [], {}, thing, not_there, a_folder, words='file there')
new_folder = Kind(None, 5, [], {}, thing, a_text, below_file, words='folder file')
new_file = Kind(None, 5, [], {}, thing, '', a_folder, below_file, words='folder file')
pictures = Kind(None, [], 5.5, [10**6], [-1], [nan], [None], [thing], thing, ['no/such.jpg'], 'no/such.jpg', [a_text], Of('halves', lambda w: np.full(7, .5)), [Of('an array of 7', lambda w: np.zeros(7))],
    Of('halves of torch', lambda w: torch.full((3,), .5)), Of('zeros(2,7,8,8)', lambda w: torch.zeros(2, 7, 8, 8)), words='picture pictures row rows tensor path item image images batch array')
# (whole numbers in an array of floats are rows: a column of pandas with a gap in it is of floats)
picture = pictures.but([])
rows = Kind([10**6], [-1], ['x'], [1.5], [None], [nan], 'x', 1.5, thing, None, words='row rows')
frame = Kind(None, 5, 'x', [], {}, thing, Of('an empty table', lambda w: pd.DataFrame()), Of('a table of other columns', lambda w: pd.DataFrame(dict(a=[1]))), words='table column columns pairs')
pixels = Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3)), Of('zeros(2,3)', lambda w: torch.zeros(2, 3)), words='pixels pixel pictures picture')
unit_pixels = (pixels + [Of('300 of pixels', lambda w: torch.full((2,3,8,8), 300.)), Of('NaN pixels', lambda w: torch.full((2,3,8,8), nan)), Of('negative pixels', lambda w: torch.full((2,3,8,8), -1.)),
    Of('bytes', lambda w: torch.ones(2, 3, 8, 8, dtype=torch.uint8))])
numbers_of_classes = Kind(None, 5, 'x', [], thing, Of('of floats', lambda w: torch.tensor([.5,.5])), Of('of another length', lambda w: torch.tensor([0,1,0,1,0,1,0])),
    Of('class 99', lambda w: torch.tensor([99,0])), Of('class -1', lambda w: torch.tensor([-1,0])), words='class classes label labels target targets targs')
matrix = Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3)), Of('of words', lambda w: [['a']]), words='rows shape embeddings scores preds probs')
device = Kind('nosuch', 5.5, thing, words='device')
workers = whole(0, none=True)
callbacks = Kind(5, 'x', [5], ['x'], thing, words='callback callbacks')
by_torch = Free('of every batch: a check would cost time, and what hands it over has been checked')
by_builder = Free('handed over by what builds the model')
look = Free('how something looks: any truth value will do')
theirs = Free("fastai's own")
axes = Free("matplotlib's own: what is no axes says so itself")
figsize = Kind('x', 5, (4,), (0,3), (nan,3), ('a','b'), [], {}, thing, words='inches')
options = Free('of the call that is named there, which is in this table')

loader = Kind(5, 'x', [], thing, words='loader loaders')

# ---- Calls --------------------------------------------------------------------------------------------------------------------------

@dataclass
class Call:
    key: str; owner: str; f: object; good: object; args: dict
table = {}

def call(key, owner, f, good, /, **args):
    "A row of the table: `f(w)` is called, rightly with what `good(w)` gives (None: elsewhere), and wrongly for each of `args`"
    assert key not in table, key
    table[key] = Call(key, owner, f, good, args)
def it(o): return lambda w: o

class Flat: fit_transform = staticmethod(lambda x: x[:,:2]) # in the place of t-SNE

class Accepted(BaseException): "Something wrong went through as far as training"

def _birds(tmp): return toy_birds(tmp/'birds', families=2, species=2, per_class=8, size=48)

def a_run(seed, a=1, b=2):
    "What a study trains; asked for by name, as studies follow what is read directly"
    return sys.modules[__name__].world.learn

class World(SimpleNamespace):
    "One small data set, and everything that is made of it"
    def __init__(self, tmp):
        global world
        world = self
        self.tmp,self.text,self.empty,self.guard = tmp,tmp/'notes.txt',tmp/'empty',False
        self.text.write_text('nothing\n'), self.empty.mkdir()
        self.data = _birds(tmp)
        self.plain = FineGrainedData(self.data.items[['path','label','split']], self.data.root)
        self.dls = self.data.dls(32, bs=4, num_workers=0, seed=0, cache=False)
        self.parts_dls = self.data.dls(32, bs=4, num_workers=0, seed=0, cache=False, parts=True)
        torch.manual_seed(0)
        self.learn = fine_grained_learner(self.dls, 'toy_resnet', metrics=accuracy)
        self.learn.model.eval()
        self.learn.remove_cb(self.learn.progress)
        self.learn.logger = noop
        self.body,self.model = self.learn.model.body,self.learn.model
        self.interp = FineGrainedInterpretation.from_learner(self.learn)
        self.interp.preds = (self.interp.targs+torch.arange(len(self.interp.targs))%2)%4 # half of it wrong
        self.x,self.y = torch.rand(2, 3, 32, 32),torch.tensor([0,1])
        self.jpg = self.data.path(0)
        self.bundle = load_bundle(self.learn.save_bundle(tmp/'bundle'), 'cpu')
        self.hierarchy = FeatureHierarchy(self.learn)
        self.levels = Levels(self.data)
        self.study = Study('runs', a_run, dict(a=[1,2]), 2, tmp/'studies').run(progress=False)
        self.robustness = self.interp.robustness(eps=(.1,), corrupted=False, attack='fgsm', n=2, steps=1)
        self.report = self.interp.cam_report(methods=['gradcam'], n=2, steps=0)
        self.prototypes = self.learn.prototypes()
        self.neighbors = self.learn.retrieve(0)
        self.pairs,self.far_pairs = (self.data.duplicates(distance=o, progress=False) for o in (48,128))
        self.files = sorted(o for o in tmp.rglob('*') if o.is_file())
        plt.close('all')

    def mark(self):
        "A checksum of all that a failed call must leave as it was"
        h = hashlib.sha256()
        for k,v in self.model.state_dict().items(): h.update(k.encode()+v.detach().cpu().contiguous().numpy().tobytes())
        h.update(self.data.items.to_csv().encode()+self.data.parts.to_csv().encode())
        for o in self.files: h.update(str(o).encode()+o.read_bytes())
        h.update(repr(sorted(self.empty.iterdir())).encode()) # where we stand
        state = [id(self.learn.dls), self.learn.model.training, len(self.learn.cbs), [p.requires_grad for p in self.model.parameters()],
            self.learn.dls.train.bs, str(self.learn.dls.device), torch.is_grad_enabled(), self.model.norm.mean.shape, len(self.model.state_dict())]
        return h.hexdigest()+repr(state)

# -- data: tables (D)
by = Kind('no such column', 5, 1.5, [], thing, words='column')
levels = Kind(5, 'x', ['x'], [], [5,'label'], thing, ['label','family'], words='level column')
small = dict(size=32, bs=4, num_workers=0, cache=False)
call('FineGrainedData', 'D', it(FineGrainedData), lambda w: dict(items=w.data.items, root=w.data.root, levels=['family','label'], parts=w.data.parts),
    items=frame, root=Kind(5, [], {}, thing, words='root'), levels=Kind(5, 'x', ['x'], ['nowhere','label'], [5,'label'], [None,'label'], thing, ['label','family'], words='level column'),
    parts=frame.but(None).called('parts'), card=Kind(5, 'x', [1], thing), valid=number(0, below=1), seed=seed, by=by)
call('FineGrainedData.path', 'D', lambda w: w.data.path, it(dict(row=0)), row=Kind(10**6, -1, 'x', 1.5, nan, None, [], thing, words='row'))
call('FineGrainedData.picture', 'D', lambda w: w.data.picture, it(dict(row=0)), row=Kind(10**6, -1, 'x', 1.5, nan, None, [], thing, words='row'),
    size=size_of(none=True).but((8,8,8)) + [5.5, (0,0)])
call('FineGrainedData.split', 'D', lambda w: w.plain.split, it(dict(valid=.2)), valid=number(0, below=1), test=number(0, below=1), seed=seed, by=by.but([]))
call('FineGrainedData.subset', 'D', lambda w: w.data.subset, it(dict(classes=2)), classes=Kind(0, -1, 99, 1.5, 'no such class', ['no such class'], [5], [None], [], {}, thing, nan, words='class label called'),
    per_class=whole(1, none=True), level=choice(), seed=seed)
call('FineGrainedData.at_level', 'D', lambda w: w.data.at_level, it(dict(level='family')), level=choice())
call('FineGrainedData.check', 'D', lambda w: w.data.check, it(dict(progress=False)), progress=look)
call('FineGrainedData.drop', 'D', lambda w: w.data.drop, it(dict(rows=[0])), rows=rows + [Of('a table of other columns', lambda w: pd.DataFrame(dict(a=[1])))])
call('FineGrainedData.show', 'D', lambda w: w.data.show, it(dict(n=1)), rows=rows.but(None) + [[]], n=count, cols=count, boxes=look, parts=look, seed=seed, size=positive,
    figsize=figsize)
call('FineGrainedData.long_tail', 'D', lambda w: w.data.long_tail, it(dict(ratio=2)), ratio=number(1), seed=seed)
call('FineGrainedData.rename', 'D', lambda w: w.data.rename, lambda w: dict(names={w.data.vocab[0]: 'Robin'}), names=Kind(None, 5, 'x', ['x'], {'No such bird': 'Robin'}, thing, {5: 'Robin'}, words='called'), level=choice())
call('FineGrainedData.merge', 'D', lambda w: w.plain.merge, lambda w: dict(others=w.plain), others=instance(words='data'))
call('stratified_split', 'D', it(stratified_split), lambda w: dict(items=w.data.items), items=frame.called('column'), share=number(0, below=1), seed=seed, take=choice(), give=choice(),
    by=by)
call('FineGrainedData.duplicates', 'D', lambda w: w.data.duplicates, it(dict(progress=False)), distance=whole(0, 128), progress=look)
call('FineGrainedData.show_duplicates', 'D', lambda w: w.data.show_duplicates, lambda w: dict(pairs=w.far_pairs, n=1), pairs=frame, n=count, cols=count, size=positive, figsize=figsize)
call('FineGrainedData.drop_duplicates', 'D', lambda w: w.data.drop_duplicates, lambda w: dict(pairs=w.pairs), pairs=frame)

# -- data: readers (D)
reader = dict(root=old_folder, kwargs=options)
call('fine_grained_data', 'D', it(fine_grained_data), lambda w: dict(source=w.data.root), kwargs=options,
    source=Kind(None, 5, nan, [], {}, thing, 'no_such_name', '', 'x.zip', 'https://example.org/birds', not_there, a_text, a_folder, words='data pictures'), path=Kind('x', 5, thing))
call('read_folder', 'D', it(read_folder), lambda w: dict(root=class_folders(w)), **reader, levels=levels.but(['label','family'], ['x']) + [['label','family']])
def class_folders(w):
    for i in range(8):
        (w.tmp/'classes'/'ab'[i%2]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(w.data.path(i), w.tmp/'classes'/'ab'[i%2]/f'{i}.png')
    return w.tmp/'classes'
call('read_table', 'D', it(read_table), lambda w: dict(df=w.data.items, root=w.data.root), df=old_file.called('table DataFrame')
    + [a_text, Of('an empty table', lambda w: pd.DataFrame()), Of('a table of other columns', lambda w: pd.DataFrame(dict(a=[1])))],
    root=Kind(5, [1], {1}, thing), levels=levels, kwargs=options)
call('read_cub', 'D', it(read_cub), lambda w: dict(root=w.data.root), **reader)
for f in (read_cars, read_dogs, read_flowers, read_food, read_nabirds, read_pets): call(f.__name__, 'D', it(f), None, **reader)
call('read_aircraft', 'D', it(read_aircraft), None, **reader, val=choice())
call('read_cifar_10', 'D', it(read_cifar_10), None, **reader, pictures=Free('tried with the whole tree in test_formats_b'))
call('read_cifar_100', 'D', it(read_cifar_100), None, **reader, pictures=Free('tried with the whole tree in test_formats_b'))
call('read_inaturalist', 'D', it(read_inaturalist), None, **reader, year=Kind('x', 1999, 5.5, [], thing), mini=look, boxes=look)
call('toy_birds', 'D', it(toy_birds), lambda w: dict(path=w.tmp/'birds', families=2, species=2, per_class=8, size=48), path=Kind(5, [], {}, thing, a_text, below_file, words='folder file'),
    families=whole(1, 8), species=whole(2, 6), per_class=whole(4), size=whole(32, 1024), difficulty=share, seed=seed)
call('toy_species', 'D', it(toy_species), it(dict(families=2, species=2)), families=whole(1, 8), species=whole(2, 6), difficulty=share, seed=seed)
call('draw_bird', 'D', it(draw_bird), it(dict(bird=toy_species(2, 2)[0], size=32)), bird=instance(words='toy_species'), seed=Kind('x', 1.5, nan, thing, None), size=whole(1),
    difficulty=share)

# -- data: pictures, cache, loaders (C)
four = Kind(None, 5, 'x', (), (0,0,5), (0,0,nan,5), (5,5,1,1), ('a','b','c','d'), thing, words='box region')
call('read_image', 'C', it(read_image), lambda w: dict(fn=w.jpg), fn=Kind(None, 5, [], {}, thing, not_there, a_text, a_folder, words='picture'), region=four.but(None, ()),
    size=size_of(none=True).called('size'))
call('CropResize', 'C', it(CropResize), it(dict(size=32)), size=size_of(), crop=choice(none=True), margin=number(0), min_scale=number(high=1, above=0), flip=share,
    light=number(0, below=1), more=Kind(5, 'x', [], thing),
    cache=Free('made by `block(cache=…)`'), twins=Free('made by `block(parts=…)`'), kwargs=theirs)
call('FineGrainedData.block', 'C', lambda w: w.data.block, it(dict(size=32, cache=False)), size=size_of(), crop=choice(none=True), aug=Kind('no such', ['no such'], 5, thing, {}, [5], words='aug group groups'),
    item_tfms=Kind(5, 'x', [5], thing),
    batch_tfms=Kind(5, 'x', [5], thing), valid=choice(), cache=Kind(5, [], {}, thing, a_text, words='folder'), max_gb=number(0).but(inf),
    parts=Kind('no such', 5, [], thing, None), device=device, kwargs=Free('of `CropResize`, below'))
for k,v in dict(margin=number(0), min_scale=number(high=1, above=0), flip=share, light=number(0, below=1)).items():
    call(f'FineGrainedData.block, {k}', 'C', lambda w: w.data.block, it(dict(size=32, cache=False)), **{k: v})
call('FineGrainedData.dls', 'C', lambda w: w.data.dls, it(small), size=size_of(), bs=whole(1), crop=choice(none=True), aug=Kind('no such', ['no such'], 5, thing, {}, [5], words='aug group groups'),
    block=Kind(5, 'x', [1], thing),
    valid=choice(), label_level=choice(none=True).but('', [], {}), balanced=flag, per_class=whole(1, none=True) + [3], seed=seed.but(-1), num_workers=workers,
    device=device, kwargs=Free('of `block`, above'))
call('FineGrainedLoaders.test_dl', 'C', lambda w: lambda **kw: w.dls.test_dl(**kw).one_batch(), it(dict(test_items=[0])), test_items=pictures.but([]).called('test_items'), rm_type_tfms=theirs,
    with_labels=flag, kwargs=theirs)
call('FineGrainedLoaders.resized', 'C', lambda w: w.dls.resized, it(dict(size=40)), size=size_of())
call('FineGrainedLoaders.show_batch', 'C', lambda w: w.dls.show_batch, it(dict(max_n=1)), b=Free('what a loader gave'), max_n=count, boxes=look, kwargs=theirs)
call('FineGrainedBlock.dataloaders', 'C', lambda w: w.data.block(32, cache=False).dataloaders, it(dict(bs=4, num_workers=0)), source=Kind(5, 'x', thing, words='block data'), kwargs=theirs,
    **{k: Free("fastai writes its loader's arguments into the signature at the first call; `dls` checks them") for k in ('seed','balance','per_class','wgts','quick')})
call('FineGrainedBlock.weighted_dataloaders', 'C', lambda w: w.data.block(32, cache=False).weighted_dataloaders, lambda w: dict(source=None, wgts=np.ones(len(w.data)), bs=4, num_workers=0),
    source=Kind(5, 'x', thing, words='block data'),
    wgts=Kind(None, 5, 'x', [], [1.], thing, *(Of(f'of {o}', lambda w, o=o: np.full(len(w.data), o)) for o in (0., -1., nan, inf))), bs=count, kwargs=theirs)
call('to_picture', 'C', it(to_picture), lambda w: dict(o=w.jpg), o=Kind(None, 5, [], {}, thing, b'', b'no picture', 'no/such.jpg', not_there, a_text, a_folder, Of('zeros(3)', lambda w: torch.zeros(3)),
    Of('zeros(7,8,8)', lambda w: np.zeros((7,8,8))), Of('NaN', lambda w: np.full((8,8), nan)), words='picture'))

# -- download (E)
call('fetch', 'E', it(fetch), None, url=Kind(None, 5, '', [], thing, 'no url', 'file:///etc/hostname', 'http://', 'http://[bad', 'gopher://x.org/y', words='url'), folder=new_folder, known_hash=Kind(5, 'x', [], thing, 'md5:', 'md5:zz', 'crc:00', words='hash checksum'), tries=count)
call('unpack', 'E', it(unpack), lambda w: dict(fns=an_archive(w), to=w.tmp/'unpacked'/str(np.random.randint(10**9))), fns=old_file.called('archive') + [a_text], to=new_folder.but(a_text))
def an_archive(w):
    with zipfile.ZipFile(w.tmp/'a.zip', 'w') as z: z.writestr('a/b.txt', 'hello')
    (w.tmp/'unpacked').mkdir(exist_ok=True)
    return w.tmp/'a.zip'

# -- models (F)
channels = whole(1)
arch = Kind(None, 5, '', 'no_such_model', [], {}, thing, nan, nn.Linear, words='architecture architectures model')
weights = Kind(5, [1], thing, '~/no/such.pth', not_there, a_text, a_folder, words='weights file')
pool = Kind(None, 5, 'no such', [], {}, thing, nn.Linear, words='pool')
head = Kind(None, 5, 'no such', [], {}, thing, words='head')
stats = Kind(5, 'x', (1,), ([0]*3,), ([0]*3,[0]*3), ([0]*2,[1]*2), ([nan]*3,[1]*3), ([0]*3,[-1]*3), thing, words='mean std stats')
blocks = Kind(5, 'x', {99: 'se'}, {-1: 'no such'}, {'no such': 'se'}, {-1: 5}, [1], thing, words='attention stage depth')
stage = Kind(99, -99, 'no such', 1.5, [], {}, thing, words='stage stages')
made = dict(arch=arch, pool=pool, head=head, drop=share, pretrained=flag, weights=weights, stats=stats, blocks=blocks, branch=stage.but([], {}), zoom=flag)
call('fine_grained_model', 'F', it(fine_grained_model), it(dict(arch='toy_resnet', n_out=4)), **made, n_out=whole(1), img_size=size_of(none=True).called('size'),
    parents=Kind(5, 'x', [5], [[0]], thing, words='parents'), kwargs=Free("timm's own"))
call('fine_grained_learner', 'F', it(fine_grained_learner), lambda w: dict(dls=w.dls, arch='toy_resnet'), dls=instance(words='loaders DataLoaders'), **made, channels_last=flag, amp=choice(none=True), kwargs=Free("fastai's and timm's own, below"))
call('fine_grained_learner, of Learner', 'B', it(fine_grained_learner), lambda w: dict(dls=w.dls, arch='toy_resnet'), loss_func=Kind(5, 'x', [], thing, words='loss'), opt_func=Kind(5, 'x', [], thing, None, words='optimizer optimiser'),
    lr=Kind('x', nan, -1, 0, [], thing, None), splitter=Kind(5, 'x', [], thing), metrics=Kind(5, 'accuracy', [5], thing, words='metric'), cbs=callbacks, wd=Kind('x', nan, -1, [], thing),
    path=theirs, moms=Kind(5, 'x', (1,), thing, None),
    train_bn=theirs, wd_bn_bias=theirs, model_dir=theirs, default_cbs=theirs)
call('Body', 'F', it(Body), it(dict(arch='toy_resnet')), arch=arch, pretrained=flag, weights=weights, img_size=size_of(none=True).called('size'), kwargs=Free("timm's own"))
call('Body.reinit', 'F', lambda w: deepcopy(w.body).reinit, it(dict(n=1)), n=whole(0, 99))
call('Body.check_size', 'F', lambda w: w.body.check_size, it(dict(size=32)), size=size_of())
call('Body.resize', 'F', lambda w: deepcopy(w.body).resize, it(dict(size=32)), size=size_of())
call('Body.stage_index', 'F', lambda w: w.body.stage_index, it(dict(o=-1)), o=stage)
call('Body.put_after', 'F', lambda w: deepcopy(w.body).put_after, it(dict(stage=-1, block=nn.Identity())), stage=stage, block=instance())
call('FineGrainedModel.reinit', 'F', lambda w: deepcopy(w.model).reinit, it(dict(n=1)), n=whole(0, 99))
call('FineGrainedModel.resize', 'F', lambda w: deepcopy(w.model).resize, it(dict(size=32)), size=size_of())
call('NormalizeInput', 'F', it(NormalizeInput), it(dict(mean=[0]*3, std=[1]*3)), mean=Kind(None, 'x', [], [nan]*3, ['a']*3, thing),
    std=Kind(None, 'x', [], [nan]*3, ['a']*3, [0]*3, [-1]*3, thing))
call('read_weights', 'F', it(read_weights), None, path=Kind(None, 5, [], thing, not_there, a_text, a_folder, words='file weights'))
call('TwoStreams', 'F', it(TwoStreams), it(dict(arch=('toy_resnet','toy_resnet'))), arch=Kind(None, 5, 'x', [], ('toy_resnet',), ('toy_resnet',None), ('toy_resnet','no_such_model'), thing, words='architecture architectures model'), pretrained=flag,
    weights=Kind(5, [1], 'x', thing, words='files'), img_size=size_of(none=True).called('size'), kwargs=Free("timm's own"))
call('TwoStreams.check_size', 'F', lambda w: two(w).check_size, it(dict(size=32)), size=size_of())
call('TwoStreams.resize', 'F', lambda w: two(w).resize, it(dict(size=32)), size=size_of())
call('TwoStreams.reinit', 'F', lambda w: two(w).reinit, it(dict(n=1)), n=whole(0, 99))
def two(w):
    if not hasattr(w, 'two'): w.two = TwoStreams(('toy_resnet','toy_resnet'))
    return w.two
call('MeanPool', 'F', it(MeanPool), it(dict(nf=8)), nf=channels)
call('GeM', 'F', it(GeM), it(dict(nf=8)), nf=channels, p=positive, eps=positive)
call('BilinearPool', 'F', it(BilinearPool), it(dict(nf=8, dim=4)), nf=channels, dim=whole(1, none=True), streams=Kind(5, 'x', (1,), thing))
call('CompactPool', 'F', it(CompactPool), it(dict(nf=8, dim=16)), nf=channels, dim=channels, seed=seed, streams=Kind(5, 'x', (1,), thing))
call('CovPool', 'F', it(CovPool), it(dict(nf=8, dim=4)), nf=channels, dim=whole(1, none=True), iters=whole(1))
call('newton_schulz', 'F', it(newton_schulz), it(dict(A=torch.eye(3)[None])), A=by_torch, iters=count, inverse=look)
call('signed_sqrt', 'F', it(signed_sqrt), it(dict(x=torch.ones(3, 2))), x=by_torch, eps=positive)
call('PartPool', 'F', it(PartPool), it(dict(nf=8, parts=2)), nf=channels, parts=whole(1, 8), dim=whole(1, none=True), pull=number(0), beta=share)
call('AnnotatedPartPool', 'F', it(AnnotatedPartPool), it(dict(nf=8, parts=2)), nf=channels, parts=count, dim=whole(1, none=True), given=share, sigma=positive, weight=number(0))
call('part_targets', 'F', it(part_targets), lambda w: dict(places=torch.rand(2, 3, 2), h=4, w=4), places=by_torch, h=by_torch, w=by_torch, sigma=positive)
call('ZoomIn', 'F', it(ZoomIn), it({}), crop=number(0), drop=number(0), crop_at=range_or_number, drop_at=range_or_number, whole_at=number(0, below=1),
    pad=number(0, below=1))
attention = pixels.called('attention shape')
call('attention_drop', 'F', it(attention_drop), lambda w: dict(x=w.x, attention=torch.rand(2, 4, 4)), x=pixels, attention=attention, thresh=range_or_number)
call('attention_crop', 'F', it(attention_crop), lambda w: dict(x=w.x, attention=torch.rand(2, 4, 4)), x=pixels, attention=attention, thresh=range_or_number,
    pad=number(0, below=1))
call('part_hits', 'F', it(part_hits), lambda w: dict(attention=torch.rand(2, 3, 4, 4), points=torch.rand(2, 5, 2)), attention=by_torch, points=by_torch, near=positive)
call('Attended', 'F', it(Attended), it(dict(nf=8, kind='se')), nf=channels, kind=choice())
call('AttentionPool', 'F', it(AttentionPool), it(dict(nf=8)), nf=channels, heads=count)
call('ClassAttentionPool', 'F', it(ClassAttentionPool), it(dict(nf=8)), nf=channels, heads=count, depth=count, width=whole(1, none=True), mlp=positive, scale=number())
stages = Kind(99, 'no such', [99], [], [1.5], thing, None, words='stage stages')
call('StagePool', 'F', it(StagePool), lambda w: dict(body=w.body), body=by_builder, stages=stages, pool=pool)
call('PyramidPool', 'F', it(PyramidPool), lambda w: dict(body=w.body, width=8), body=by_builder, stages=stages, width=count, pool=pool)
call('Branch', 'F', it(Branch), lambda w: dict(body=w.body, n_out=4, width=8), body=by_builder, n_out=count, stage=stage.but([], {}), width=count)
for f in (ClassTokenPool, TokenPool): call(f.__name__, 'F', it(f), lambda w: dict(body=a_vit(w)), body=by_builder)
call('CloserPool', 'F', it(CloserPool), lambda w: dict(body=w.body), body=by_builder, looks=whole(1), second=whole(0), mirrored=flag)
call('PartTokenPool', 'F', it(PartTokenPool), lambda w: dict(body=a_vit(w)), body=by_builder, parts=count)
def a_vit(w):
    if not hasattr(w, 'vit'): w.vit = Body('vit_tiny_patch16_224', pretrained=False, img_size=32, depth=1, embed_dim=24, num_heads=2)
    return w.vit
call('EmbeddingNorm', 'F', it(EmbeddingNorm), it(dict(nf=8)), nf=channels)
call('LinearHead', 'F', it(LinearHead), it(dict(nf=8, n_out=2)), nf=channels, n_out=count, drop=share)
call('FastaiHead', 'F', it(FastaiHead), it(dict(nf=8, n_out=2)), nf=channels, n_out=count, drop=share, hidden=count)
call('CosineHead', 'F', it(CosineHead), it(dict(nf=8, n_out=2)), nf=channels, n_out=count, drop=share, scale=number(above=0, none=True))
call('LevelHead', 'F', it(LevelHead), it(dict(nf=8, n_out=2, parents=[[0,1]])), nf=channels, n_out=count, drop=share,
    parents=Kind(None, 5, 'x', [], [5], [[0]], [[0,2]], [[0,nan]], thing, words='parents'), weight=number(0))

# -- losses, metric learning, metrics, levels (F)
call('Focal', 'F', it(Focal), it({}), gamma=number(0), weight=Kind('x', 5, [-1.,1.], [nan], thing, words='weight weights'), reduction=choice())
call('class_weights', 'F', it(class_weights), it(dict(counts=[5,3])), counts=Kind(None, 5, 'x', [], [-1,2], [nan,1], ['a'], [0,0], thing), beta=number(0, below=1))
call('PairwiseConfusion', 'F', it(PairwiseConfusion), it({}), reduction=choice())
call('MutualChannel', 'F', it(MutualChannel), it(dict(nf=8, n_out=2)), nf=channels, n_out=count, div=number(0), reduction=choice())
call('CenterLoss', 'F', it(CenterLoss), it(dict(nf=8, n_out=2)), nf=channels, n_out=count, reduction=choice())
call('metric_loss', 'F', it(metric_loss), it(dict(name='supcon', nf=8, n_out=2)), name=choice(), nf=channels, n_out=count, miner=Kind('no such', 5, [1], thing), kwargs=Free("pytorch-metric-learning's own"))
call('MetricLoss', 'F', it(MetricLoss), it(dict(loss=nn.Identity())), loss=Kind(None, 5, 'x', [], thing), miner=Kind(5, 'x', [1], thing))
ref = Kind(5, 'x', Of('zeros(3)', lambda w: torch.zeros(3)), Of('of another width', lambda w: torch.zeros(3, 9)), thing, words='embeddings rows')
def rows_and(**kw): return lambda w: dict(embeddings=torch.eye(4), **{k: torch.tensor([0,0,1,1]) for k in ('targs',)}, **kw)
call('nearest', 'F', it(lambda **kw: list(nearest(**kw))), it(dict(embeddings=torch.eye(4))), embeddings=matrix, k=count, ref=ref, chunk=count)
own_classes = Kind(None, 5, 'x', [], thing, Of('of floats', lambda w: torch.tensor([.5]*4)), Of('of another length', lambda w: torch.tensor([0,1])), Of('class -1', lambda w: torch.tensor([-1,0,0,1])),
    words='class classes label labels')
other_classes = Free('goes with `ref`, checked like `targs`')
call('recall_at_k', 'F', it(recall_at_k), rows_and(), embeddings=matrix, targs=own_classes, k=count, ref=ref, ref_targs=other_classes)
call('r_precision', 'F', it(r_precision), rows_and(), embeddings=matrix, targs=own_classes, ref=ref, ref_targs=other_classes)
call('map_at_r', 'F', it(map_at_r), rows_and(), embeddings=matrix, targs=own_classes, ref=ref, ref_targs=other_classes)
call('knn_accuracy', 'F', it(knn_accuracy), rows_and(), embeddings=matrix, targs=own_classes, k=count, ref=ref, ref_targs=other_classes)
def scores(w): return dict(preds=torch.rand(2, 4), targs=w.y)
call('in_top', 'F', it(in_top), scores, preds=by_torch, targs=by_torch, k=count)
call('top_k', 'F', it(top_k), scores, preds=by_torch, targs=by_torch, k=count)
call('per_class_accuracy', 'F', it(per_class_accuracy), lambda w: dict(preds=w.y, targs=w.y, n=4), preds=by_torch, targs=by_torch, n=whole(1, none=True))
call('Levels', 'F', it(Levels), lambda w: dict(data=w.data), data=instance() + [Of('a data set of one level', lambda w: w.plain)])
call('level_metrics', 'F', it(level_metrics), lambda w: dict(data=w.data), data=instance() + [Of('a data set of one level', lambda w: w.plain)])
def answers(w): return dict(preds=w.y, targs=w.y)
call('Levels.right', 'F', lambda w: w.levels.right, answers, preds=by_torch, targs=by_torch, level=choice())
for k in ('accuracy','severity','meet','mistakes'): call(f'Levels.{k}', 'F', lambda w, k=k: getattr(w.levels, k), answers, preds=by_torch, targs=by_torch)
probs = matrix + [Of('of another width', lambda w: torch.rand(2, 9))]
call('Levels.at', 'F', lambda w: w.levels.at, lambda w: dict(level='family', probs=torch.rand(2, 4)), level=choice(), probs=probs)
for k in ('sum_up','best','top_down'): call(f'Levels.{k}', 'F', lambda w, k=k: getattr(w.levels, k), lambda w: dict(probs=torch.rand(2, 4)), probs=probs)

# -- augmentation (F)
call('AttentionCrop', 'F', it(AttentionCrop), it({}), crop=share, drop=share, crop_at=range_or_number, drop_at=range_or_number, pad=number(0, below=1))
call('Erase', 'F', it(Erase), it({}), p=share, area=pair_of(0, 1), aspect=pair_of(1, 3), fill=Kind('no such', None, [], {}, thing, ['a'], nan))
call('Cutout', 'F', it(Cutout), it({}), size=number(high=1, above=0), p=share, fill=Kind('no such', None, [], {}, thing, ['a'], nan))
call('square_boxes', 'F', it(square_boxes), it(dict(n=2, h=8, w=8, size=.5)), n=by_torch, h=by_torch, w=by_torch, size=number(high=1, above=0), device=by_torch)
call('random_boxes', 'F', it(random_boxes), it(dict(n=2, h=8, w=8)), n=by_torch, h=by_torch, w=by_torch, area=pair_of(0, 1), aspect=pair_of(1, 3), device=by_torch)
call('erase', 'F', it(erase), lambda w: dict(x=w.x, boxes=torch.tensor([[0,2,0,2]]*2)), x=by_torch, boxes=by_torch, fill=Kind('no such', None, {}, thing, ['a']))
call('evidence', 'F', it(evidence), lambda w: dict(model=w.model, x=w.x, y=w.y), model=by_torch, x=by_torch, y=Kind(Of('of floats', lambda w: torch.tensor([.5,.5])),
    Of('of another length', lambda w: torch.tensor([0,1,0])), words='label targets'))
two_pictures = lambda w: dict(x=w.x, perm=torch.tensor([1,0]))
call('mixup', 'F', it(mixup), lambda w: two_pictures(w)|dict(lam=.5), x=by_torch, perm=by_torch, lam=share)
call('cut_box', 'F', it(cut_box), it(dict(h=8, w=8, lam=.5)), h=by_torch, w=by_torch, lam=share, center=Kind(5, 'x', (1,), ('a','b'), thing))
call('cutmix', 'F', it(cutmix), lambda w: two_pictures(w)|dict(lam=.5), x=by_torch, perm=by_torch, lam=share, center=Kind(5, 'x', (1,), ('a','b'), thing))
call('snapmix', 'F', it(snapmix), lambda w: two_pictures(w)|dict(seen=torch.rand(2, 32, 32), lams=(.5,.5)), x=by_torch, perm=by_torch, seen=by_torch,
    lams=pair_of(0, 1).but((1,-1)) + [(2.,.5)], centers=Kind(5, 'x', (1,), thing, None))
alpha = number(above=0, none=True)
call('Mix', 'F', it(Mix), it(dict(mixup=.4)), mixup=alpha, cutmix=alpha, snapmix=alpha, p=share, weights=Kind(5, 'x', (1,2,3), (-1,), (nan,), ('a',), thing))
for f in (MixUp, CutMix, SnapMix): call(f.__name__, 'F', it(f), it({}), alpha=number(above=0, words='Mix'), p=share)

# -- training (B)
rate = number(above=0, none=True)
plan = Kind(None, 0, -1, 1.5, 'x', nan, [], {}, thing, [1], True, words='plan epochs Phase')
depth = Kind(99, -99, 1.5, 'no such', None, [], {}, thing, words='depth')
call('Learner.fit_phases', 'B', lambda w: w.learn.fit_phases, None, plan=plan, lr=rate, wd=number(0, none=True), cbs=callbacks,
    resume=Kind(5, thing, not_there, a_folder, a_text, [1], words='resume snapshot folder'), folder=new_folder.but(None))
call('Learner.fit_phases, a phase', 'B', lambda w: lambda **kw: w.learn.fit_phases([Phase(**dict(to='head', epochs=1)|kw)]), None, to=depth, epochs=count, lr=rate.but([]), ratio=positive,
    decay=number(high=1, above=0, none=True), size=size_of(none=True),
    cached_views=whole(0, none=True), reinit=whole(0, 99), patience=whole(1, none=True), freeze_bn=flag, pct_start=number(above=0, below=1), div=positive)
call('Phase', 'B', it(Phase), it(dict(to='head', epochs=1)), to=Kind(None, 1.5, [], {}, thing, nan), epochs=count,
    lr=rate + [slice(None), slice('a'), slice(-1,1), slice(nan), slice(1,2,3)], ratio=positive, decay=number(high=1, above=0, none=True),
    size=size_of(none=True), cached_views=whole(0, none=True), reinit=whole(0), patience=whole(1, none=True), freeze_bn=flag,
    pct_start=number(above=0, below=1), div=positive)
call('Plan', 'B', it(Plan), it(dict(phases=[Phase('all', 1)])), phases=Kind(5, 'x', [5], [None], thing, words='plan Phase'))
call('default_plan', 'B', it(default_plan), it(dict(epochs=3)), epochs=count, lr=positive, drop=positive, ratio=positive, pretrained=flag)
call('learner_plan', 'B', lambda w: partial(learner_plan, w.learn), it(dict(epochs=3)), learn=Free('given by `learn.plan`'), epochs=count, lr=positive, kwargs=Free('checked by `default_plan`'))
call('phase_rates', 'B', it(phase_rates), lambda w: dict(learn=w.learn, plan=2), learn=Free("a learner or its model, from the calls that take one"), plan=plan, lr=rate)
call('Learner.plan', 'B', lambda w: w.learn.plan, it(dict(name='default', epochs=3)), name=choice(), epochs=count, lr=rate, kwargs=options)
for k in ('fastai','gradual','reinit','layers'):
    call(f'{k}_plan', 'B', lambda w, k=k: partial(globals()[f'{k}_plan'], w.learn), it(dict(epochs=12)), learn=Free('given by `learn.plan`'), epochs=count, lr=positive, **(dict(n=whole(1)) if k=='reinit' else {}))
call('blocks_plan', 'B', lambda w: partial(blocks_plan, w.learn), None, learn=Free('given by `learn.plan`'), epochs=Kind(3, words='blocks'), lr=Free('as in the other plans'))
call('Learner.plot_phases', 'B', lambda w: w.learn.plot_phases, it(dict(plan=2)), plan=plan.but(None), lr=rate, figsize=figsize)
call('Learner.lr_find_phase', 'B', lambda w: w.learn.lr_find_phase, None, phase=Kind(None, 5, 'x', [], thing), **{k: theirs for k in ('start_lr','end_lr','num_it','stop_div','show_plot','suggest_funcs')})
call('param_groups', 'B', it(param_groups), lambda w: dict(learn=w.learn), learn=Free("a learner or its model, from the calls that take one"))
call('by_layer', 'B', it(by_layer), lambda w: dict(model=w.model), model=Free("a learner or its model, from the calls that take one"))
call('group_names', 'B', it(group_names), lambda w: dict(learn=w.learn), learn=Free("a learner or its model, from the calls that take one"))
call('group_index', 'B', it(group_index), lambda w: dict(learn=w.learn, to='head'), learn=Free("a learner or its model, from the calls that take one"), to=depth)
call('depth_name', 'B', it(depth_name), lambda w: dict(learn=w.learn, to='head'), learn=Free("a learner or its model, from the calls that take one"), to=depth)
call('spread', 'B', it(spread), it(dict(lr=1., n=2)), lr=positive, n=count, ratio=positive)
call('group_rates', 'B', it(group_rates), it(dict(lr=1., n=2)), lr=positive + [slice(None), slice('a'), slice(-1,1)], n=count, ratio=positive,
    decay=number(high=1, above=0, none=True))
def entered(f):
    def g(**kw):
        with f(**kw): pass
    return g
def in_frozen(learn, **kw):
    with freeze_below(learn, 'head') if isinstance(learn, Learner) else frozen_features(learn):
        with frozen_features(learn, **kw): pass
call('freeze_below', 'B', it(entered(freeze_below)), lambda w: dict(learn=w.learn, to='head'), learn=Free("a learner or its model, from the calls that take one"), to=depth, stats=depth.but(None))
call('frozen_maps', 'B', it(frozen_maps), lambda w: dict(learn=w.learn), learn=instance(), few=whole(1))
call('frozen_rows', 'B', it(frozen_rows), lambda w: dict(learn=w.learn), learn=instance(), ds_idx=whole(0, 1), mirrored=flag)
call('Learner.fit_head', 'B', lambda w: deepcopy(w.learn).fit_head, it({}), folds=whole(2), seed=seed)
call('Learner.fit_minutes', 'B', lambda w: deepcopy(w.learn).fit_minutes, it(dict(minutes=.001)), minutes=positive, cbs=callbacks, use_valid=flag)
call('frozen_features', 'B', it(in_frozen), lambda w: dict(learn=w.learn), learn=instance(), cached_views=whole(0), seed=seed.but(-1), max_gb=number(0).but(inf))
call('Accumulate', 'B', it(Accumulate), it(dict(n=2)), n=count)
call('EMA', 'B', it(EMA), it({}), decay=number(0, below=1))
call('L2SP', 'B', it(L2SP), it(dict(alpha=.1)), alpha=number(0), beta=number(0, none=True))
call('AddLoss', 'B', it(AddLoss), it(dict(loss='center')), loss=Kind(None, 5, 'no such', [], {}, thing), weight=number(above=0, none=True), on=choice(none=True),
    name=Kind(5, 'a.b', [1], thing), alone=flag)
call('undecayed', 'B', it(undecayed), lambda w: dict(model=w.model), model=Free("a learner or its model, from the calls that take one"))
call('write_snapshot', 'B', it(write_snapshot), lambda w: dict(folder=w.tmp/'snap', o=[1]), folder=new_folder, o=Kind(thing, [thing], {'a': thing}, {thing: 1}, words='Thing'))
call('read_snapshot', 'B', it(read_snapshot), lambda w: dict(folder=write_snapshot(w.tmp/'snap', [1]).parent), folder=old_folder.called('snapshot'))
call('FineGrainedLearner.distrib_ctx', 'B', lambda w: lambda **kw: entered(w.learn.distrib_ctx)(**kw), None, sync_bn=flag, in_notebook=look, kwargs=Free("Accelerate's own"))
call('Learner.mix_report', 'B', lambda w: w.learn.mix_report, None, settings=Kind(5, 'x', None, [], [5], thing, words='mix_report'), epochs=count,
    seeds=Kind(0, 2, -1, 1.5, 'x', [], [0,1], [0,0,0], ['a']*3, thing, None), kwargs=Free('of `fit_phases`'))
call('CSVLog', 'B', it(CSVLog), it({}), fname=Kind(None, 5, [], thing, ''))
call('tensorboard_log', 'B', it(tensorboard_log), None, folder=Kind(None, 5, [], thing, ''))

# -- learner, interpretation, numbers (A)
call('FineGrainedInterpretation.from_learner', 'A', it(FineGrainedInterpretation.from_learner), lambda w: dict(learn=w.learn), learn=instance(), ds_idx=Kind(99, 'x', 1.5, None, [], thing), dl=loader,
    act=theirs)
interp = lambda k: lambda w: getattr(w.interp, k)
method = Kind(None, 5, 'no such', [], {}, thing, words='method')
against = Kind('no such', 10**6, -1, 1.5, nan, [], {}, thing, (0,1), words='against')
call('FineGrainedInterpretation.most_confused', 'A', interp('most_confused'), it({}), min_val=count)
call('FineGrainedInterpretation.plot_per_class', 'A', interp('plot_per_class'), it({}), most=count, ax=axes)
call('FineGrainedInterpretation.plot_confusion_matrix', 'A', interp('plot_confusion_matrix'), it({}), most=whole(1), ax=axes)
call('FineGrainedInterpretation.plot_confused_pairs', 'A', interp('plot_confused_pairs'), it(dict(n=1, k=1)), n=count, k=count, method=method, against=against, figsize=figsize)
call('FineGrainedInterpretation.plot_pair', 'A', interp('plot_pair'), lambda w: dict(one=w.dls.vocab[0], other=w.dls.vocab[1], k=1), one=name_of('pair'), other=name_of('pair'), k=count, method=method, against=against,
    figsize=figsize)
call('FineGrainedInterpretation.top_losses', 'A', interp('top_losses'), it({}), k=whole(1, none=True), largest=look, items=look)
call('FineGrainedInterpretation.plot_top_losses', 'A', interp('plot_top_losses'), it(dict(k=1)), k=count, largest=look, method=method, ncols=count, against=against, figsize=figsize)
call('FineGrainedInterpretation.calibration', 'A', interp('calibration'), it({}), bins=count)
call('FineGrainedInterpretation.ece', 'A', interp('ece'), it({}), bins=count)
call('FineGrainedInterpretation.plot_calibration', 'A', interp('plot_calibration'), it({}), bins=count, ax=axes)
call('FineGrainedInterpretation.plot_errors', 'A', interp('plot_errors'), it(dict(n=1)), n=count, idxs=Kind([99], [-1], ['x'], [1.5], 'x', [], thing, [None], words='Pictures picture number'), method=method, layer=Kind('no such', 99, 1.5, {}, thing),
    against=against, figsize=figsize)
call('FineGrainedInterpretation.label_issues', 'A', interp('label_issues'), it({}), least=share)
call('FineGrainedInterpretation.walk', 'A', interp('walk'), it(dict(n=1, k=1)), n=count, k=count, method=method, against=against)
call('FineGrainedInterpretation.to_html', 'A', interp('to_html'), lambda w: dict(path=w.tmp/'pairs.html', n=1, k=1), path=new_file, n=count, k=count, method=method, side=count, title=text, against=against)
call('Learner.calibrate', 'A', lambda w: lambda **kw: (w.learn.calibrate(**kw), w.model.temperature.fill_(1.)), it({}), dl=loader)
sure = number(high=1, above=0)
call('Learner.answer_level', 'A', lambda w: w.learn.answer_level, it(dict(items=[0])), items=pictures, confidence=sure)
confidences = Kind(None, 5, 'x', [], [0], [2], [nan], ['a'], thing, words='confidence')
call('FineGrainedInterpretation.level_coverage', 'A', lambda w: w.interp.level_coverage, it({}), confidences=confidences)
call('FineGrainedInterpretation.plot_level_coverage', 'A', lambda w: w.interp.plot_level_coverage, it({}), confidences=confidences, ax=axes)
call('Learner.embeddings', 'A', lambda w: w.learn.embeddings, it({}), split=choice())
call('Learner.plot_embeddings', 'A', lambda w: w.learn.plot_embeddings, it(dict(how=Flat())), split=choice(), by=choice(none=True).but('', []), how=Kind(5, 'x', [], thing), ax=axes)
call('Learner.retrieve', 'A', lambda w: w.learn.retrieve, it(dict(item=0)), item=Kind(None, [], 5.5, 10**6, -1, nan, thing, 'no/such.jpg', a_text, [0], words='picture row'), k=count)
call('Neighbors.show', 'A', lambda w: w.neighbors.show, it({}), figsize=figsize)
call('Learner.retrieval_metrics', 'A', lambda w: w.learn.retrieval_metrics, it({}), ks=Kind(None, 'x', (), (0,), (-1,), (1.5,), ('a',), (nan,), thing))
call('Learner.prototypes', 'A', lambda w: w.learn.prototypes, it(dict(new={'a new bird': [0]})), new=Kind(5, 'x', ['x'], {'a': []}, {'a': None}, {'a': [10**6]}, {'a': ['no/such.jpg']}, {5: [0]}, thing, words='pictures row'))
call('Prototypes.scores', 'A', lambda w: w.prototypes.scores, it(dict(items=[0])), items=pictures)
call('Prototypes.predict', 'A', lambda w: w.prototypes.predict, it(dict(items=[0])), items=pictures)

# -- studies (A)
call('measure', 'A', it(measure), lambda w: dict(learn=w.learn), learn=instance(), most=count)
runs = Kind(0, -1, 1.5, 'x', [], [1.5], [0,0], ['a'], None, thing, {})
study_name = Kind(None, 5, '', 'a/b', '..', [], thing)
call('Study', 'A', it(Study), lambda w: dict(name='mine', train=a_run, settings=dict(a=[1]), folder=w.tmp/'studies'), name=study_name, train=func,
    settings=Kind(None, 5, 'x', {'a': 5}, {'a': []}, {'a': 'xy'}, {'no such': [1]}, {5: [1]}, [5], [], {'seed': [1]}, thing),
    seeds=runs, folder=new_folder)
call('Study.left', 'A', lambda w: w.study.left, it({}), now=number(0))
call('Study.run', 'A', lambda w: w.study.run, it(dict(progress=False)), progress=look)
call('Study.to_markdown', 'A', lambda w: w.study.to_markdown, it({}), columns=Kind(5, 'no such', ['no such'], [5], thing, words='column'))
call('Study.best', 'A', lambda w: w.study.best, it({}), by=choice())
call('Study.compare', 'A', lambda w: w.study.compare, it(dict(base=1)), base=Kind(None, 'no such', 99, {'no such': 1}, {'a': 99}, [], thing), of=choice())
call('Study.plot', 'A', lambda w: w.study.plot, it({}), x=choice(none=True).but('', []), hue=choice(none=True).but(''), y=choice(), figsize=axes, ax=axes)
call('value_name', 'A', it(value_name), it(dict(o=1)), o=Kind(thing, lambda: 1, [thing], {'a': thing}, words='Thing lambda'))
given = dict(name=study_name, seeds=runs, folder=new_folder, kwargs=options)
some_data = Kind(None, 5, 'no such data', [], thing)
quick = lambda w: dict(data=w.data, folder=w.tmp/'studies')
call('train_one', 'A', it(train_one), None, seed=seed, data=some_data, arch=Free('as `fine_grained_learner`'), epochs=plan, lr=rate, plan=Kind(5, 'x', {'name': 'no such'}, thing), size=Free('as `dls`'), bs=Free('as `dls`'), aug=Free('as `dls`'),
    crop=Free('as `dls`'), dls=Kind(5, 'x', thing),
    cbs=Kind(5, [5], thing), smooth=share, kwargs=options)
archs = Kind(None, 5, [], thing, words='arch model architecture')
in_its_row = Free('of each run: one that fails keeps its error as its row')
call('depth_study', 'A', it(depth_study), quick, data=some_data, archs=archs, pretrained=Kind(5, [], thing), **given)
call('batch_study', 'A', it(batch_study), quick, data=some_data, arch=in_its_row, sizes=Kind(None, 5, 'x', [], [0], ['a'], thing), **given)
call('layer_plans', 'A', it(layer_plans), it(dict(epochs=4)), epochs=count, stages=whole(0))
call('layers_study', 'A', it(layers_study), quick, data=some_data, arch=in_its_row, epochs=count, stages=whole(0), **given)
call('training_tricks', 'A', it(training_tricks), it({}), alpha=number(0), smooth=share, drop=share)
call('tricks_study', 'A', it(tricks_study), quick, data=some_data, arch=in_its_row, tricks=Kind(5, 'x', [1], {'a': 5}, thing, words='settings'), aug=in_its_row, **given)
call('all_that_help', 'A', it(all_that_help), None, study=instance(), by=choice())
call('vit_study', 'A', it(vit_study), quick, data=some_data, archs=archs, blocks=Kind(None, 5, 'x', [0], [-1], ['a'], thing), epochs=count, **given)
call('reinit_study', 'A', it(reinit_study), quick, data=some_data, bodies=Kind(5, 'x', [1], {'a': 5}, thing, words='settings'), stages=Kind(None, 5, 'x', [], [-1], ['a'], thing), epochs=in_its_row,
    **given)
call('transfer_study', 'A', it(transfer_study), lambda w: quick(w)|dict(source=w.data), data=some_data, source=some_data.called('data'), arch=in_its_row, epochs=in_its_row,
    source_epochs=in_its_row, **given)

# -- explanations (G)
target = Kind('No such bird', 10**6, -1, 1.5, nan, [], {}, thing, (0,0), ('x','y'), (0,1,2), [0,1,2,3,4,5,6], words='target targets class')
layer = Kind('no such', 99, 1.5, {}, thing, [], ['no such'], nn.Linear(1, 1), words='layer stage stages Linear')
call('cam', 'G', it(cam), lambda w: dict(learn=w.learn, items=[0]), learn=instance(), items=pictures, method=method, target=target, layer=layer, against=against)
call('Learner.show_cam', 'G', lambda w: w.learn.show_cam, it(dict(n=1)), items=pictures.but(None), n=count, method=method, target=target.but([0,1,2,3,4,5,6]), layer=layer,
    ncols=count, against=against, figsize=figsize)
call('spotlight', 'G', it(spotlight), lambda w: dict(im=w.x[0], cam=torch.rand(32, 32)), im=Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3))),
    cam=Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3)), Of('of another size', lambda w: torch.zeros(7, 9))))
call('draw_cam', 'G', it(draw_cam), lambda w: dict(ax=plt.subplots()[1], im=w.x[0], cam=torch.rand(32, 32)), ax=axes, im=Kind(None, 5, 'x', [], thing),
    cam=Kind(None, 5, 'x', [], thing), title=Free("matplotlib's own"), right=Kind('no', 7, [1], thing))
call('find_layer', 'G', it(find_layer), lambda w: dict(model=w.model), model=Free("a learner or its model, from the calls that take one"), layer=layer.but([], ['no such']), x=Free('of `view_layers`'))
call('find_method', 'G', it(find_method), it(dict(method='gradcam')), method=method)
call('view_layers', 'G', it(view_layers), lambda w: dict(model=w.model, x=w.x), model=Free('a learner or its model, from the calls that take one'), x=by_torch, logit_weights=by_torch, layers=Kind(5, 'x', ['no such'], thing, words='layer'))
call('target_weights', 'G', it(target_weights), lambda w: dict(classes=w.y, n=4), classes=numbers_of_classes.but(Of('of another length', None)), n=count, against=Kind('no such', 99, -1, 1.5, nan, [], thing))
call('center_logits', 'G', it(center_logits), lambda w: dict(model=deepcopy(w.model)), model=instance(words='head last layer linear') + [Of('a cosine head', lambda w: nn.Sequential(nn.Flatten(), CosineHead(4, 2)))])
call('FeatureHierarchy', 'G', it(FeatureHierarchy), lambda w: dict(learn=w.learn), learn=instance())
call('FeatureHierarchy.from_learner', 'G', it(FeatureHierarchy.from_learner), lambda w: dict(learn=w.learn), learn=instance())
fh = lambda k: lambda w: getattr(w.hierarchy, k)
call('FeatureHierarchy.maps', 'G', fh('maps'), it(dict(items=[0])), items=pictures)
call('FeatureHierarchy.show', 'G', fh('show'), it(dict(item=0, k=1)), item=picture + [[0,1]], k=count, figsize=figsize)
call('FeatureHierarchy.show_filters', 'G', fh('show_filters'), it(dict(most=1)), most=count, figsize=figsize)
pairs = Kind(None, 5, 'x', [], [5], [('x','y')], [('x',)], thing, words='pair')
call('FeatureHierarchy.linear_probes', 'A', fh('linear_probes'), lambda w: dict(pairs=[tuple(w.dls.vocab[:2])]), pairs=pairs)
call('FeatureHierarchy.plot_linear_probes', 'A', fh('plot_linear_probes'), lambda w: dict(pairs=[tuple(w.dls.vocab[:2])]), pairs=pairs, ax=axes)
call('FeatureHierarchy.top_activations', 'G', fh('top_activations'), it(dict(stage=-1, channel=0, n=1)), stage=stage, channel=whole(0, 10**6), items=pictures.but(None), n=count)
call('FeatureHierarchy.receptive_fields', 'G', fh('receptive_fields'), it(dict(items=[0])), items=pictures.but(None))
call('FeatureHierarchy.plot_receptive_fields', 'G', fh('plot_receptive_fields'), it(dict(items=[0])), items=pictures.but(None), figsize=figsize)
call('FineGrainedInterpretation.cam_report', 'G', lambda w: w.interp.cam_report, it(dict(methods=['gradcam'], n=1, steps=0)), methods=Kind(None, 5, 'no such', [], ['no such'], [5], thing, words='method'),
    layers=Kind(5, ['no such'], [99], thing, [], words='layer stage stages'),
    asked=Kind(None, 5, 'x', [], ['x'], [5], thing), part=Kind('no such part', 5, [], thing), n=whole(1, none=True), steps=whole(0), tolerance=number(0))
call('CamReport.beats', 'G', lambda w: w.report.beats, it({}), base=choice())
call('CamReport.plot', 'G', lambda w: w.report.plot, it({}), score=choice(), ax=axes)
call('Learner.cam_sanity_check', 'G', lambda w: w.learn.cam_sanity_check, it(dict(items=[0])), items=pictures, methods=Kind(None, 5, 'no such', [], ['no such'], [5], thing, words='method'), layer=layer.but([], ['no such']),
    seed=seed, against=against)
maps = Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3)), words='maps shape')
masks = Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3)), words='masks shape')
two_maps = lambda w: dict(maps=torch.rand(2, 8, 8), masks=torch.ones(2, 8, 8, dtype=torch.bool))
call('pointing_game', 'G', it(pointing_game), two_maps, maps=maps, masks=masks, tolerance=number(0))
call('energy_inside', 'G', it(energy_inside), two_maps, maps=maps, masks=masks)
call('box_masks', 'G', it(box_masks), it(dict(boxes=torch.tensor([[0.,0,2,2]]), size=(8,8))), boxes=Kind(None, 5, 'x', [], thing, Of('zeros(3)', lambda w: torch.zeros(3))),
    size=Kind(None, 'x', 0, (8,), thing, (nan,8)))
call('disc_masks', 'G', it(disc_masks), it(dict(discs=torch.tensor([[1.,1,2]]), size=(8,8))), discs=Kind(None, 5, 'x', [], thing, Of('zeros(2)', lambda w: torch.zeros(2))),
    size=Kind(None, 'x', 0, (8,), thing, (nan,8)))
call('deletion_insertion', 'G', it(deletion_insertion), lambda w: dict(f=w.model, x=w.x, maps=torch.rand(2, 32, 32), classes=w.y, steps=1), f=func, x=pixels, maps=maps,
    classes=numbers_of_classes, steps=count)

# -- robustness (F)
attack = dict(model=func, x=unit_pixels, y=numbers_of_classes.called('y'), eps=number(0), norm=choice(), targeted=flag)
pictured = lambda w: dict(model=w.model, x=w.x, y=w.y, eps=.1)
call('fgsm', 'F', it(fgsm), pictured, **attack)
call('bim', 'F', it(bim), pictured, **attack, steps=count, alpha=number(above=0, none=True))
call('pgd', 'F', it(pgd), pictured, **attack, steps=count, alpha=number(above=0, none=True), generator=Kind(5, 'x', [], thing))
call('corrupt', 'F', it(corrupt), lambda w: dict(x=w.x, kind='dark', strength=1), x=unit_pixels, kind=choice(), strength=whole(1, 5))
call('hide', 'F', it(hide), lambda w: dict(x=w.x, discs=torch.tensor([[1.,1,2]]*2)), x=pixels, discs=Kind(None, 5, 'x', [], thing, Of('zeros(2)', lambda w: torch.zeros(2))))
attacks_of = Kind(None, 5, 'no such', ['no such'], [5], thing, words='attack')
call('FineGrainedInterpretation.robustness', 'F', lambda w: w.interp.robustness, it(dict(eps=(.1,), corrupted=False, attack='fgsm', n=1, steps=1)), attack=attacks_of,
    eps=Kind(None, 'x', [-1], [nan], ['a'], thing, [inf]), norm=choice(), corrupted=flag, n=whole(1, none=True), keep=whole(0), seed=seed, kwargs=Free('of the attacks, above'))
call('Robustness.wide', 'F', lambda w: w.robustness.wide, it({}), corrupted=flag)
call('Robustness.gallery', 'F', lambda w: w.robustness.gallery, lambda w: dict(kind='pgd') if any(w.robustness.shown) else None, kind=choice(), n=count, figsize=Free('asked for once there are pictures to draw'))
call('Robustness.plot', 'F', lambda w: w.robustness.plot, it({}), figsize=figsize)
call('plot_robustness', 'F', it(plot_robustness), lambda w: dict(results=w.robustness), results=instance(words='robustness'), figsize=figsize)
call('FineGrainedInterpretation.occlusion', 'F', lambda w: w.interp.occlusion, it({}), part=Kind('no such part', 5, [], thing), grow=positive)
call('PixelModel', 'F', it(PixelModel), lambda w: dict(learn=w.learn), learn=instance())
call('AdversarialTraining', 'F', it(AdversarialTraining), it({}), eps=positive, alpha=share, attack=Kind(None, 5, 'no such', [], thing), kwargs=Free('of the attack, above'))

# -- bundles (E)
call('load_bundle', 'E', it(load_bundle), lambda w: dict(folder=w.tmp/'bundle'), folder=old_folder, device=device)
call('Learner.save_bundle', 'E', lambda w: w.learn.save_bundle, lambda w: dict(folder=w.tmp/'again'), folder=new_folder)
call('Bundle.predict', 'E', lambda w: w.bundle.predict, lambda w: dict(images=w.jpg, progress=False), images=pictures.but(['no/such.jpg'], [a_text], Of('zeros(2,7,8,8)', None)), k=count, flip=flag, bs=count,
    num_workers=workers, boxes=Kind(5, 'x', [1], thing, [0,0,5,5]), progress=look)
call('Bundle.save_onnx', 'E', lambda w: w.bundle.save_onnx, None, path=new_file, images=Free('as `predict`'))
call('Bundle', 'E', it(Bundle), None, model=instance(), labels=Kind(None, 5, 'x', [], [1], thing), levels=Kind(5, 'x', thing), transforms=Kind(None, 5, 'x', {}, thing),
    device=device)
call('recipe', 'E', it(recipe), lambda w: dict(model=w.model), model=instance())
call('check_same', 'E', it(check_same), lambda w: dict(want=torch.ones(2, 2), got=torch.ones(2, 2)), want=instance(words='logits'),
    got=instance(words='logits') + [Of('another shape', lambda w: torch.ones(3, 3)), Of('other numbers', lambda w: torch.zeros(2, 2))], most=number(0))
call('write_bundle', 'E', it(write_bundle), lambda w: dict(folder=w.tmp/'third', model=w.model, labels=list(w.dls.vocab), size=(32,32)), folder=new_folder, model=instance(),
    labels=Kind(None, 5, 'x', [], ['a'], ['a']*4, thing), size=size_of(none=True), crop=choice(none=True), margin=number(0),
    levels=Kind(5, 'x', {'a': 5}, thing), stats=stats, facts=Kind(5, 'x', thing), verify=Kind(5, 'x', thing))

# ---- What is not in the table, and why ------------------------------------------------------------------------------------------------

exceptions = { # 'Class.*': what is written under it
    'called by torch or fastai for every batch: a check would cost time, and what is handed over was checked where it was made':
        'to_rgb upright_size upright_box Erase.* Cutout.* Mix.* decay_at evidence_of mixed_loss picture_losses own_loss random_region fit_aspect center_region resized open_lazily jpeg_pixels CropResize.* ToFloat.* TensorParts.* FineGrainedDL.new FineGrainedDL.do_item FineGrainedDL.create_batch FineGrainedDL.to_detach '
        'FineGrainedDL.show_batch FineGrainedDL.show_results LazyImage.* Presized.* CachedImages.* PartsOf.* MetricLoss.* Focal.* PairwiseConfusion.* MutualChannel.* CenterLoss.* Attended.* AttentionPool.* ClassAttentionPool.* Body.forward Body.see Body.group_of Body.before Body.from_last_block as_map AnnotatedPartPool.* EmbeddingNorm.* '
        'CosineHead.* LevelHead.* NormalizeInput.* FineGrainedModel.see FineGrainedModel.maps FineGrainedModel.features FineGrainedModel.forward FineGrainedModel.halves PartPool.* ZoomIn.* MeanPool.* GeM.* StagePool.* PyramidPool.* Branch.* BilinearPool.* CompactPool.* CovPool.* '
        'TwoStreams.forward TwoStreams.see FineGrainedModel.trace Trace.* ClassTokenPool.* TokenPool.* PartTokenPool.* CloserPool.* cube_mean closer_box cut_square look_closer PixelModel.* FeatureDL.* Layer.* Activations.* center_spot random_map',
    'made by the calls above, and not by hand':
        'Trace NonFiniteLoss FineGrainedError '
        'balanced_order shard_indices FineGrainedDL.shard TensorParts CachedImages open_cache Presized LazyImage BoxedFile Strings Taken PictureOf PartsOf LabelOf ToFloat FineGrainedLoaders FineGrainedBlock FineGrainedBlock.datasets FineGrainedDL FineGrainedInterpretation Layer Activations Neighbors Prototypes CamReport FineGrainedModel Stage '
        'Robustness FeatureDL FreezeBN Parallel SpreadRates PhaseRun PhaseRun.* PhaseWatch model_card DatasetSpec ToyResNet toy_resnet',
    'callbacks without arguments of their own': 'FiniteLoss CPUAutocast AuxLosses AuxColumns DecayWeights SyncBuffers NoValid',
    'all of it goes to what it wraps, which checks it': 'FineGrainedLearner FineGrainedLearner.one_batch FineGrainedLearner.predict wandb_log TwoStreams.stage_index',
    'what a callback said of itself, given back when a run goes on: a run is tried whole': 'EMA.load_state_dict L2SP.load_state_dict',
    'called inside of `distrib_ctx`': 'rank_and_world all_gather',
    'what all these checks are made of: tested where it stands': 'check check_number check_choice check_size check_folder digest listing wrap_label',
    'public because two of our modules need it, and handed only what these have checked: no user calls it':
        'half_interval written_to swapped caption no_box figure_size picture_grid write_below is_own function_parts class_attrs own_functions check_vocab precision_callback callback_key SameVocab FineGrainedLearner.validation_context in_plot shown as_text as_numbers shuffled_ranks naming reader is_one_picture asked_against only_logits test_read weights_checksum loader_key question learner_key items_of trained_on described run_marks marks.check_same '
        'with_progress check_replaceable check_keeps_shape split_augs open_picture exif_orientation stored_size turn_box '
        'pixel_tensor upright_points seed_all seeded follow_link real_paths read_mat corners_of text_lines match_ids check_unique '
        'read_part_table check_present find_tree check_boxes read_words retrieval_measures nearest_elsewhere contrast_class batches_of '
        'logits_and_maps asked_line resize_maps vocab_of bare_model score_of file_numbers kept_embeddings items_loader truth_of '
        'Discriminant Discriminant.weights logistic_weights solve_head TrainedOn.note name_of check_tree levels_of tree_of at_least_float32 called_by describe_frame later_attrs '
        'pickle_digest check_answers count_no_answers for_size as_pair shared_twin check_parents check_pad threshold_range RollOut '
        'check_token_flow hook_attention unpack_map as_pixels short_digest dependencies_of as_settings shortened library_versions '
        'whole_learner check_positive as_plan counted group_lrs rates_over_steps phase_label resize_learner learner_size stats_from '
        'cpu_weights body_rate dealt check_can_fit check_solvable solvable_rows write_head precision_of least_loss refers_to is_batch set_n_parts gather can_split split_model eval_mode eval_fp32 Capture to_images embeddings_of '
        'target_weights from_grad_cam ',
    'a script, whose arguments go to calls of the table': 'main three_ways fresh_process true_parts show_parts part_scores Report Report.*'}

def patched(cls):
    return {k: f for k in dir(cls) if callable(f := getattr(inspect.getattr_static(cls, k), '__func__', inspect.getattr_static(cls, k)))
        and str(getattr(f, '__module__', '')).startswith('fgvc_fast') and k[0]!='_'}

def arguments(f):
    try: return [k for k in inspect.signature(f).parameters if k not in ('self','cls')]
    except (TypeError,ValueError): return []

def public():
    "All that a user can call, by name: what modules list, what classes offer, what is put on fastai's learner"
    res = {}
    for m in pkgutil.walk_packages(fgvc_fast.__path__, 'fgvc_fast.'):
        if m.name.endswith('.all') or m.name=='fgvc_fast._modidx': continue
        mod = importlib.import_module(m.name)
        for k in getattr(mod, '__all__', ()):
            o = getattr(mod, k)
            if not callable(o): continue
            res[k if res.get(k, o) is o else f"{m.name.split('.')[-1]}.{k}"] = o # two of one name
            if isinstance(o, type): res.update({f'{k}.{n}': getattr(o, n) for n,f in vars(o).items() if n[0]!='_' and callable(getattr(o, n)) and not isinstance(f, type)})
    return res | {f'Learner.{k}': f for k,f in patched(Learner).items()}

# ---- Trying them -----------------------------------------------------------------------------------------------------------------------

class TooLong(BaseException): "A call that should have been refused at once"

@contextmanager
def at_most(seconds):
    def stop(*_): raise TooLong(f'was still at it after {seconds} s')
    was = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, was)

def made_of(w, o): return o.make(w) if isinstance(o, Of) else [made_of(w, v) for v in o] if type(o) is list else o

also = dict(learn='learner', dl='loader', dls='loaders', lr='rate')

def named(msg, arg, value, words):
    "Does the error say which argument, or which value, class, row, file is meant?"
    names = {arg, arg.removesuffix('s'), also.get(arg, arg), *words}
    if any(re.search(rf'(?<![a-z]){re.escape(o)}s?(?![a-z])', msg, re.I) for o in names): return True
    own = [value, *(value if isinstance(value, (list,tuple,set)) else ()), *([*value, *value.values()] if isinstance(value, dict) else ())]
    return any(s in msg for o in own for s in (repr(o), str(o)) if len(s)>1 or s.isdigit())

def run(c, w, kw):
    "Call `c` with `kw`"
    f,kw = c.f(w),dict(kw)
    more = next((p.name for p in inspect.signature(f).parameters.values() if p.kind is p.VAR_POSITIONAL and p.name in kw), None)
    args = [kw.pop(more)] if more else []
    if 'results' in kw: kw = {'one': kw.pop('results'), **kw}
    return f(*args, **kw)

def fails(c, arg, value, w):
    "What is wrong with what the call `c` says of `value`; None if nothing is"
    good = (c.good(w) if c.good else None) or {}
    if c.good is None: good = base_of.get(c.key, lambda w: {})(w)
    value = made_of(w, value)
    try:
        with at_most(5): run(c, w, good | {arg: value})
    except FineGrainedError as e:
        if type(e) is not FineGrainedError: return f'is a {type(e).__name__}'
        return None if named(str(e), arg, value, c.args[arg].words) else f'does not name it: {str(e)[:100]}'
    except Accepted: return 'accepted: trains'
    except (Exception,TooLong) as e: return f'raw {type(e).__name__}: {str(e)[:100]}'.replace('\n', ' ')
    finally:
        if plt.get_fignums(): plt.close('all')
    return 'accepted'

base_of = { # what goes with the one wrong argument, where a right call would take too long or a network
    'fetch': lambda w: dict(url='http://127.0.0.1:9/x.zip', folder=w.tmp/'fetched', known_hash=None, tries=1),
    'Learner.fit_phases': it(dict(plan=1)), 'Learner.lr_find_phase': lambda w: dict(phase=Phase('all', 1), show_plot=False),
    'Learner.mix_report': lambda w: dict(settings=MixUp(), epochs=1), 'tensorboard_log': it({}), 'all_that_help': lambda w: dict(study=tricks_study(w.data, 'toy_resnet', folder=w.tmp/'studies')),
    'train_one': lambda w: dict(seed=0, data=w.data, arch='toy_resnet', epochs=1, size=32, bs=4, dls=dict(num_workers=0, cache=False)),
    'Bundle.save_onnx': lambda w: dict(path=w.tmp/'a.onnx', images=w.jpg), 'Bundle': lambda w: dict(model=w.model, labels=list(w.dls.vocab), levels={},
    transforms=dict(size=(32,32), crop=None, margin=.1), device='cpu'),
    'read_inaturalist': lambda w: dict(root=w.empty), 'read_aircraft': lambda w: dict(root=w.empty)}

def cases(c): return [(k, v) for k,o in c.args.items() if isinstance(o, Kind) for v in o.wrong]

@pytest.fixture(scope='module')
def w(tmp_path_factory):
    here = os.getcwd()
    w = World(tmp_path_factory.mktemp('hostile'))
    train = Learner._do_epoch_train
    def guarded(self):
        if w.guard: raise Accepted
        return train(self)
    Learner._do_epoch_train = guarded
    os.chdir(w.empty)
    yield w
    os.chdir(here)
    Learner._do_epoch_train = train
    plt.close('all')

def as_numpy(c, good):
    "The numbers of a right call, and those that arguments have by themselves, as NumPy has them; paths as strings"
    try: own = {k: p.default for k,p in inspect.signature(c.f(world)).parameters.items() if k in c.args}
    except (TypeError,ValueError): own = {}
    def other(o): return np.int64(o) if type(o) is int else np.float64(o) if type(o) is float else str(o) if isinstance(o, Path) else o
    return {k: other(v) for k,v in (own|good).items() if isinstance(c.args.get(k), Kind) and other(v) is not v}

def tried(c, w):
    "All that does not hold of the call `c`, as (argument, value, what)"
    was,res = w.mark(),[]
    w.guard = True
    try:
        for arg,value in cases(c):
            what = fails(c, arg, value, w)
            if what: res.append((arg, repr(value)[:60], what))
    finally: w.guard = False
    if w.mark()!=was: res.append(('', '', 'something is not as it was'))
    if c.good is not None and c.good(w) is not None:
        try: run(c, w, c.good(w))
        except Exception as e: res.append(('', '', f'the right call fails: {type(e).__name__}: {e}'[:300]))
        if kw := as_numpy(c, c.good(w)):
            try:
                with at_most(30): run(c, w, c.good(w) | kw)
            except Exception as e: res.append(('', repr(kw)[:60], f'NumPy numbers or paths as words: {type(e).__name__}: {e}'[:300]))
    plt.close('all')
    return res

# ---- Malformed files and rows ------------------------------------------------------------------------------------------------------------

malformed = {}
def spoilt(owner, may_pass=False):
    "Decorates a generator of (what it is, a call, words of which the error must hold one); if it `may_pass`, being read is as good"
    def add(f):
        malformed[f.__name__] = owner,f,may_pass
        return f
    return add

def bytes_of(im, kind, **kw):
    f = io.BytesIO()
    im.save(f, kind, **kw)
    return f.getvalue()

def a_picture(mode='RGB'):
    x = np.random.default_rng(0).integers(0, 255, (24,32,3), dtype=np.uint8)
    return Image.fromarray(x).resize((96,72)).convert(mode)

kinds = dict(jpg=('JPEG','RGB'), png=('PNG','RGB'), webp=('WEBP','RGB'), gif=('GIF','P'), bmp=('BMP','RGB'), tif=('TIFF','RGB'), jp2=('JPEG2000','RGB'), avif=('AVIF','RGB'))

def mutations(data, rng, n):
    "`n` changed copies of `data` and what was done to it: cut short, bits flipped, a stretch of zeros, doubled, shuffled"
    for i in range(n):
        b,how = bytearray(data),('cut','bits','zeros','head','noise','twice')[i%6]
        at = int(rng.integers(len(b)))
        if how=='cut': b = b[:at]
        if how=='bits':
            for _ in range(8): b[int(rng.integers(len(b)))] ^= 1<<int(rng.integers(8))
        if how=='zeros': b[at:at+32] = bytes(len(b[at:at+32]))
        if how=='head': b[int(rng.integers(min(len(b), 64)))] = int(rng.integers(256))
        if how=='noise': b[at:at+16] = rng.bytes(len(b[at:at+16]))
        if how=='twice': b = b[:at]+b[:at]+b[at:]
        yield f'{how} {i}',bytes(b)

def spoilt_pictures(w, n=18):
    "Files in a folder of their own, whole ones among them"
    to,rng = w.tmp/'spoilt'/'bird',np.random.default_rng(1)
    if to.exists(): return sorted(to.iterdir())
    to.mkdir(parents=True)
    for ext,(kind,mode) in kinds.items():
        data = bytes_of(a_picture(mode), kind)
        for how,b in mutations(data, rng, n): (to/f'{ext} {how}.{ext}').write_bytes(b)
        if ext in ('jpg','png','webp'):
            for i,raw in enumerate((b'Exif\0\0II*\0', b'Exif\0\0MM\0*\0\0\0\x08\xff\xff', b'Exif\0\0'+bytes(20), b'no exif', b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0')):
                (to/f'{ext} exif {i}.{ext}').write_bytes(bytes_of(a_picture(mode), kind, exif=raw))
    for name,b in {'empty.jpg': b'', 'words.png': b'no picture\n'*9, 'page.jpg': b'<html>404</html>', 'postscript.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n', 'svg.png': b'<svg xmlns="http://www.w3.org/2000/svg"/>'}.items(): (to/name).write_bytes(b)
    return sorted(to.iterdir())

@spoilt('C', may_pass=True)
def pictures_read(w):
    for o in spoilt_pictures(w): yield o.name,lambda o=o: read_image(o),[o.name]

@spoilt('C', may_pass=True)
def pictures_good_but_for_exif(w):
    def read(o): assert read_image(o).size==(96,72), f'{o.name} is {read_image(o).size}'
    for o in spoilt_pictures(w):
        if 'exif' in o.name: yield o.name,lambda o=o: read(o),[]

def spoilt_data(w, some=None):
    files = spoilt_pictures(w) if some is None else some
    return FineGrainedData(pd.DataFrame(dict(path=[f'bird/{o.name}' for o in files], label=['a','b']*(len(files)//2)+['a']*(len(files)%2))), w.tmp/'spoilt')

@spoilt('D', may_pass=True)
def pictures_checked(w):
    def listed():
        bad = set()
        for i,o in enumerate(spoilt_pictures(w)):
            try: read_image(o)
            except FineGrainedError: bad.add(i)
        found = spoilt_data(w).check(progress=False)
        assert set(found.row[~found.usable].dropna())==bad, 'check() and read_image disagree'
    yield 'data.check()',listed,[]
    yield 'data.duplicates()',lambda: spoilt_data(w).duplicates(progress=False),[]

@spoilt('C', may_pass=True)
def pictures_shown_and_loaded(w):
    for o in spoilt_pictures(w)[::7]:
        yield f'data.show: {o.name}',lambda o=o: spoilt_data(w, [o]).show([0]),[o.name]
        yield f'test_dl: {o.name}',lambda o=o: w.dls.test_dl([o], num_workers=0).one_batch(),[o.name]
        yield f'dls: {o.name}',lambda o=o: FineGrainedData(pd.DataFrame(dict(path=[f'bird/{o.name}']*4, label=list('abab'), split=['train','train','valid','valid'])), w.tmp/'spoilt').dls(32, bs=2, num_workers=0,
            cache=w.tmp/'cache').valid.one_batch(),[o.name]

@spoilt('G', may_pass=True)
def pictures_explained(w):
    for o in spoilt_pictures(w)[3::9]: yield o.name,lambda o=o: cam(w.learn, o),[o.name]

@spoilt('E', may_pass=True)
def pictures_predicted(w):
    for o in spoilt_pictures(w)[::3]: yield o.name,lambda o=o: w.bundle.predict(o, progress=False),[o.name]
    yield 'all of them',lambda: w.bundle.predict(spoilt_pictures(w), num_workers=0, progress=False),[]

def table_of(w, **cells):
    "The table of the birds with other cells in a row of the training pictures"
    items = w.data.items.astype(object).copy()
    for k,v in cells.items(): items[k] = [v if i==a_row(w) else o for i,o in enumerate(items[k])]
    return items

def a_row(w): return w.data['train'].index[2]
wrong_cells = (dict(path=[None, nan, ''], label=[None, nan], family=[None, nan], split=['no such', 5, nan, None, ['train']], x0=['x', None, nan, inf, '1,5', '10px', 10**6, thing],
    y1=['x', None, nan, -inf, 0, -1, [], '']) | {'x1': [0, -5, 'wide'], 'y0': [10**6, 'x', None]})

@spoilt('D')
def rows_of_a_table(w):
    for k,vs in wrong_cells.items():
        for v in vs: yield f'{k}={v!r}',lambda k=k, v=v: FineGrainedData(table_of(w, **{k: v}), w.data.root, levels=['family','label']),[f'ow {a_row(w)}']
    for k in ('path','label','family'): yield f'no column {k}',lambda k=k: FineGrainedData(w.data.items.drop(columns=k), w.data.root, levels=['family','label']),[k]
    for k in ('x0','y1'): yield f'no column {k}',lambda k=k: FineGrainedData(w.data.items.drop(columns=k), w.data.root),['x0']

@spoilt('D')
def rows_of_parts(w):
    for k,vs in dict(item=[-1, 10**6, 'x', None, nan, 1.5, thing], part=[None, nan, ''], x=['x', None, inf, thing, '1,5'], y=['x', None, -inf, []],
        visible=['x', None, nan, -1, thing]).items():
        for v in vs:
            parts = w.data.parts.astype(object).copy()
            parts[k] = [v if i==5 else o for i,o in enumerate(parts[k])]
            yield f'{k}={v!r}',lambda parts=parts: FineGrainedData(w.data.items, w.data.root, parts=parts),[f'ow 5', str(v), str(w.data.items.path[w.data.parts.item[5]])]
    twice = pd.concat([w.data.parts, w.data.parts.iloc[[5]]])
    yield 'a part twice',lambda: FineGrainedData(w.data.items, w.data.root, parts=twice),['twice', 'row', str(len(twice)-1), 'more than once']
    for k in ('item','part','x','y'): yield f'no column {k}',lambda k=k: FineGrainedData(w.data.items, w.data.root, parts=w.data.parts.drop(columns=k)),[k]

@spoilt('D', may_pass=True)
def tables_as_text(w):
    "CSV files with something wrong in a line: read, or the file is named"
    rng,text = np.random.default_rng(2),w.data.items.assign(path=[str(w.data.path(i)) for i in range(len(w.data))]).to_csv(index=False)
    (w.tmp/'csv').mkdir(exist_ok=True)
    for i in range(60):
        lines = text.splitlines()
        at,how = int(rng.integers(len(lines))),i%10
        cells = lines[at].split(',')
        k = int(rng.integers(len(cells)))
        if how==0: cells[k] = ''
        if how==1: cells[k] = ['x','nan','NA','None','-1','1e999','"',"'"][i//10%8]
        if how==2: cells.append('more')
        if how==3: del cells[k]
        if how==4: cells[k] = '"'+cells[k]
        lines[at] = ','.join(cells)
        if how==5: lines[at] = lines[at].replace(',', ';')
        if how==6: lines[at] = ''
        if how==7: lines.insert(at, lines[at])
        b = '\n'.join(lines).encode()
        if how==8: b = b[:int(rng.integers(len(b)))]
        if how==9: b = b[:100]+rng.bytes(4)+b[100:]
        fn = w.tmp/'csv'/f'table {i}.csv'
        fn.write_bytes(b)
        yield f'{i}: {how} in line {at}',lambda fn=fn: fine_grained_data(fn),[fn.name]
    for i,b in enumerate((b'', b'\n\n', b'path,label\n', b'\xff\xfe\x00', b'path;label\na.jpg;b\n', bytes(100), b'path,label\na,b\n'*2)):
        (w.tmp/'csv'/f'whole {i}.csv').write_bytes(b)
        yield f'{b[:20]!r}',lambda i=i: fine_grained_data(w.tmp/'csv'/f'whole {i}.csv'),[f'whole {i}.csv']

@spoilt('D', may_pass=True)
def lists_of_cub(w):
    "A tree in CUB's layout with something wrong in one of its lists: read, or that list is named"
    rng,lists = np.random.default_rng(3),[o for o in sorted(w.data.root.rglob('*.txt'))]
    for i in range(0, 72, 5): # every list, and every way
        to = w.tmp/'cub'/str(i)
        to.mkdir(parents=True)
        (to/'images').symlink_to(w.data.root/'images')
        for o in lists:
            (to/o.relative_to(w.data.root)).parent.mkdir(exist_ok=True)
            shutil.copyfile(o, to/o.relative_to(w.data.root))
        fn,how = to/lists[i%len(lists)].relative_to(w.data.root),i//len(lists)%12
        lines = fn.read_text().splitlines()
        at = int(rng.integers(len(lines)))
        words = lines[at].split()
        if how==0: words = words[:-1]
        if how==1: words[-1] = 'word'
        if how==2: words[0] = '99999'
        if how==3: words.append('more')
        if how==4: words[0] = words[0]+','
        lines[at] = ' '.join(words)
        if how==5: del lines[at]
        if how==6: lines.append(lines[at])
        b = '\n'.join(lines).encode()
        if how==7: b = b''
        if how==8: b = b'\xef\xbb\xbf'+b
        if how==9: b = b[:9]+b'\xff\xfe'+b[9:]
        if how==10: b = b'\0'*50
        if how==11: b = b'1 '+b'9'*400+b'\n'
        fn.write_bytes(b)
        yield f'{how} in {fn.name}, line {at}',lambda to=to: read_cub(to),[fn.name, *[o.name for o in lists]]

def places(o, at=()):
    "All paths into a nest of dictionaries and lists; of long ones the first few"
    of = list(o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ())
    for k,v in of if len(of)<17 else of[:4]:
        yield (*at, k)
        yield from places(v, (*at, k))

def changed(o, at, v):
    "A copy of `o` with `v` at the place `at`; without what is there if `v` is `thing`"
    o = deepcopy(o)
    *way,last = at
    here = o
    for k in way: here = here[k]
    if v is thing: del here[last]
    else: here[last] = v
    return o

wrong_json = [None, -1, 0, .5, 'x', '', [], {}, True, 10**9, [1,2], {'a': 1}, thing]

def json_mutations(o, rng, each, most=10**6):
    all_of = list(places(o))
    for at in [all_of[i] for i in sorted(rng.permutation(len(all_of))[:most])]:
        for i in rng.permutation(len(wrong_json))[:each]: yield '/'.join(map(str, at)),wrong_json[i],changed(o, at, wrong_json[i])

def signed(cfg):
    cfg = {k: v for k,v in cfg.items() if k!='sha256'}
    return cfg | dict(sha256=hashlib.sha256(json.dumps(cfg, sort_keys=True).encode()).hexdigest())

def bundle_with(w, name, files):
    to = w.tmp/'bundles'/name
    if to.exists(): shutil.rmtree(to)
    to.mkdir(parents=True)
    for o in (w.tmp/'bundle').iterdir():
        if o.name in files and files[o.name] is not None: (to/o.name).write_bytes(files[o.name])
        elif o.name not in files: (to/o.name).hardlink_to(o)
    return to

def loaded(to, w):
    "Load it, and predict with it: what was accepted must work"
    load_bundle(to, 'cpu').predict(w.jpg, progress=False)

@spoilt('E', may_pass=True)
def bundles_with_another_config(w):
    cfg = json.loads((w.tmp/'bundle'/'config.json').read_text())
    for at,v,new in json_mutations({k: o for k,o in cfg.items() if k!='sha256'}, np.random.default_rng(4), 2):
        yield f'{at}={v!r}',lambda new=new: loaded(bundle_with(w, 'x', {'config.json': json.dumps(signed(new)).encode()}), w),['config.json', 'bundles/x', 'model.safetensors', at.split('/')[-1]]

@spoilt('E')
def bundles_with_other_bytes(w):
    rng = np.random.default_rng(5)
    for name in ('config.json','model.safetensors'):
        for how,b in mutations((w.tmp/'bundle'/name).read_bytes(), rng, 24): yield f'{name}: {how}',lambda b=b, name=name: loaded(bundle_with(w, 'x', {name: b}), w),[name]
        yield f'no {name}',lambda name=name: loaded(bundle_with(w, 'x', {name: None}), w),[name]
    for v in wrong_json[:-1]: yield f'config.json={v!r}',lambda v=v: loaded(bundle_with(w, 'x', {'config.json': json.dumps(v).encode()}), w),['config.json']
    for s in ('{', 'NaN', '{"format": 1}', '['*5000, '{"a":'*3000, '"\\ud800"', '1e999'): yield f'config.json={s[:20]}',lambda s=s: loaded(bundle_with(w, 'x', {'config.json': s.encode()}), w),['config.json']

@spoilt('E', may_pass=True)
def bundles_with_other_weights(w):
    "Weights that are whole, signed, and not this model's"
    from safetensors.torch import load_file, save
    ts,cfg = load_file(w.tmp/'bundle'/'model.safetensors'),json.loads((w.tmp/'bundle'/'config.json').read_text())
    def tried(ts):
        b = save(ts)
        return lambda: loaded(bundle_with(w, 'x', {'model.safetensors': b, 'config.json': json.dumps(signed(cfg|dict(files={'model.safetensors': dict(bytes=len(b),
            sha256=hashlib.sha256(b).hexdigest())}))).encode()}), w)
    names = list(ts)[::20]
    for k in names: yield f'without {k}',tried({a: b for a,b in ts.items() if a!=k}),[k, 'model.safetensors']
    for k in names: yield f'another shape of {k}',tried(ts | {k: torch.zeros(3, 3, 3)}),[k, 'model.safetensors']
    for k in names[::3]: yield f'NaN in {k}',tried(ts | {k: ts[k]*nan if ts[k].is_floating_point() else ts[k]}),[k, 'model.safetensors', 'finite']
    yield 'one too many',tried(ts | {'more': torch.zeros(3)}),['more', 'model.safetensors']
    yield 'none',tried({}),['model.safetensors']

def snapshot_with(w, to, top):
    to = Path(to)
    (to/'snapshot.json').write_text(json.dumps(top))
    return to

@spoilt('B', may_pass=True)
def snapshots_changed(w):
    "A snapshot whose JSON is other than it was written, signed again where that can be done"
    to = w.tmp/'snapshot'
    write_snapshot(to, dict(a=torch.arange(3.), b=[1,(2,3)], c=np.arange(4), d={1: 'x'}, e=inf, f=np.float32(2)))
    top = json.loads((to/'snapshot.json').read_text())
    for at,v,new in json_mutations(top, np.random.default_rng(6), 5):
        if at.startswith('data') and isinstance(new.get('data'), dict): new = new | dict(sha256=hashlib.sha256(json.dumps(new['data']).encode()).hexdigest())
        yield f'{at}={v!r}',lambda new=new: read_snapshot(snapshot_with(w, to, new)),['snapshot']
    snapshot_with(w, to, top)

@spoilt('B')
def snapshots_with_other_bytes(w):
    to,rng = w.tmp/'snapshot bytes',np.random.default_rng(7)
    write_snapshot(to, dict(a=torch.arange(300.), b=[1,2,3]))
    for fn in sorted(to.iterdir()):
        whole = fn.read_bytes()
        def cut(b, fn=fn, whole=whole):
            try:
                fn.write_bytes(b)
                read_snapshot(to)
            finally: fn.write_bytes(whole)
        for how,b in mutations(whole, rng, 24):
            if b!=whole: yield f'{fn.suffix}: {how}',lambda b=b, cut=cut: cut(b),['snapshot']

class StopAfter(Callback):
    "Somebody presses stop"
    order = 99
    def after_epoch(self): raise KeyboardInterrupt

@spoilt('B', may_pass=True)
def runs_changed(w):
    "The folder of a run that was stopped, changed and signed again: refused with the learner as it was, or taken up"
    to,state = w.tmp/'run',{k: v.clone() for k,v in w.model.state_dict().items()}
    def as_before():
        w.model.load_state_dict(state), w.model.eval()
        w.learn.opt = None
    def same(): return all(torch.equal(v, state[k]) for k,v in w.model.state_dict().items())
    w.guard = False
    try: w.learn.fit_phases(2, folder=to, cbs=StopAfter())
    finally: w.guard = True
    as_before()
    top = json.loads((to/'snapshot.json').read_text())
    def resumed(data):
        sure,here = top | dict(data=data, sha256=hashlib.sha256(json.dumps(data).encode()).hexdigest()),w.tmp/'resumed'
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(to, here)
        try: w.learn.fit_phases(resume=snapshot_with(w, here, sure), cbs=StopAfter())
        except Accepted: pass
        except FineGrainedError:
            assert same(), 'refused, but the weights are others now'
            raise
        finally: as_before()
    yield 'as it was',lambda: resumed(top['data']),[]
    for at,v,new in json_mutations(top['data'], np.random.default_rng(8), 1, 60): yield f'{at}={v!r}',lambda new=new: resumed(new),['run ', 'resumed', 'resume', at.split('/')[-1]]

@spoilt('E', may_pass=True)
def archives(w):
    import tarfile
    rng = np.random.default_rng(9)
    z,t = io.BytesIO(),io.BytesIO()
    with zipfile.ZipFile(z, 'w', zipfile.ZIP_DEFLATED) as o: [o.writestr(f'a/{i}.txt', 'hello'*200) for i in range(3)]
    def tar(mode):
        f = io.BytesIO()
        with tarfile.open(fileobj=f, mode=mode) as o:
            for i in range(3):
                info = tarfile.TarInfo(f'a/{i}.txt')
                info.size = 1000
                o.addfile(info, io.BytesIO(b'hello'*200))
        return f.getvalue()
    for ext,b in {'zip': z.getvalue(), 'tar': tar('w'), 'tgz': tar('w:gz'), 'tar.bz2': tar('w:bz2'), 'tar.xz': tar('w:xz')}.items():
        for i,(how,c) in enumerate(mutations(b, rng, 12)):
            fn = w.tmp/f'{ext} {i}.{ext}'
            fn.write_bytes(c)
            yield f'{ext}: {how}',lambda fn=fn: unpack(fn, fn.with_suffix('.out')),[fn.name]

@spoilt('A', may_pass=True)
def tables_of_studies(w):
    text,rng = (w.tmp/'studies'/'runs.jsonl').read_bytes(),np.random.default_rng(10)
    (w.tmp/'other').mkdir(exist_ok=True)
    def read(b):
        (w.tmp/'other'/'runs.jsonl').write_bytes(b)
        s = Study('runs', a_run, dict(a=[1,2]), 2, w.tmp/'other')
        s.runs, s.summary(), s.compare(1), repr(s)
    for how,b in mutations(text, rng, 36): yield how,lambda b=b: read(b),['runs.jsonl']
    lines = [json.loads(o) for o in text.splitlines()]
    for i in range(2):
        for at,v,new in json_mutations(lines[i], rng, 2):
            yield f'line {i}: {at}={v!r}',lambda new=new, i=i: read('\n'.join(json.dumps(new if j==i else o) for j,o in enumerate(lines)).encode()),['runs.jsonl']

def tried_malformed(name, w):
    owner,f,may_pass = malformed[name]
    was,res,n = w.mark(),[],0
    w.guard = True
    try:
        for what,go,words in f(w):
            n,bad = n+1,None
            try:
                with at_most(5): go()
                if not may_pass: bad = 'accepted'
            except FineGrainedError as e:
                if type(e) is not FineGrainedError: bad = f'is a {type(e).__name__}'
                elif not any(o in str(e) for o in words): bad = f'does not name it: {str(e)[:100]}'
            except (Exception,TooLong,Accepted) as e: bad = f'raw {type(e).__name__}: {str(e)[:100]}'
            finally:
                if plt.get_fignums(): plt.close('all')
            if bad: res.append((what[:70], '', bad.replace('\n', ' ')))
    finally: w.guard = False
    if w.mark()!=was: res.append(('', '', 'something is not as it was'))
    return n,res

# ---- What still fails: call → its arguments. To be emptied ---------------------------------------------------------------------------------

pending = {}

def judged(key, found):
    "Stop where something fails that is not `pending`, or no longer fails though it is"
    was,now = set(pending.get(key, '').split()),{a or '(state)' for a,*_ in found}
    new = [o for o in found if (o[0] or '(state)') not in was]
    assert not new, f'{len(new)} do not hold:\n'+'\n'.join(f'{key}({a}={v}): {what}' for a,v,what in new)
    assert not was-now, f'{key} holds now for {was-now}: take it out of `pending`'

@pytest.mark.parametrize('key', table)
def test_a_wrong_argument_is_named(key, w): judged(key, tried(table[key], w))

@pytest.mark.parametrize('name', malformed)
def test_a_malformed_file_is_named(name, w):
    n,res = tried_malformed(name, w)
    assert n>1
    judged(name, [('all' if pending.get(name) else o[0], *o[1:]) for o in res])

def test_every_public_call_is_here():
    "With all of its arguments, or there is a reason why not"
    calls,seen,lacks = public(),{},[]
    for c in table.values(): seen.setdefault(c.key.split(',')[0], set()).update(c.args)
    hooks = set(dir(Callback()))|{f'{o}_{e}' for o in ('before','after','after_cancel') for e in ('create','fit','epoch','train','batch','pred','loss','backward','step','validate','iter','call')}
    names = [o for names in exceptions.values() for o in names.split()]
    excused = {k for k in calls if k in names or f'{k.split(".")[0]}.*' in names and '.' in k and k not in seen or k.split('.')[-1] in hooks}
    for k,f in calls.items():
        if k in excused or not arguments(f): continue
        if k not in seen: lacks.append(k)
        elif more := [a for a in arguments(f) if a not in seen[k]]: lacks.append(f"{k}({', '.join(more)})")
    assert not lacks, lacks
    gone = [k for k in [*names, *seen] if k.removesuffix('.*') not in calls]
    assert not gone, f'these are no calls any more: {gone}'

def test_there_are_enough():
    n = sum(len(cases(c)) for c in table.values())
    assert n>=1500, n

if __name__=='__main__':
    import tempfile, time
    from collections import defaultdict
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    os.environ['FGVC_CACHE'] = tempfile.mkdtemp()
    only,start,by,spoils,n = sys.argv[1:],time.time(),defaultdict(list),defaultdict(list),0
    g = w.__wrapped__ if hasattr(w, '__wrapped__') else w.__pytest_wrapped__.obj
    gen = g(SimpleNamespace(mktemp=lambda s: Path(tempfile.mkdtemp(prefix=s))))
    world = next(gen)
    print('world', time.time()-start, file=sys.stderr)
    for c in table.values():
        if only and not any(o in c.key or o.strip('=')==c.owner for o in only): continue
        t = time.time()
        sys.stdout,out = io.StringIO(),sys.stdout
        try: res = tried(c, world)
        finally: sys.stdout = out
        t = time.time()-t
        if t>1.5: print(f'{c.key}: {t:.1f} s for {len(cases(c))}', file=sys.stderr)
        n += len(cases(c))
        by[c.owner].append((c, res))
    for k,(owner,*_) in malformed.items():
        if only and not any(o in k or o.strip('=')==owner for o in only): continue
        t = time.time()
        sys.stdout,out = io.StringIO(),sys.stdout
        try: m,res = tried_malformed(k, world)
        finally: sys.stdout = out
        print(f'{k}: {time.time()-t:.1f} s for {m}', file=sys.stderr)
        n += m
        spoils[owner].append((k, m, res))
    for owner in sorted({*by, *spoils}):
        print(f"\n## {owner}: {sum(len(r) for _,r in by[owner])} of {sum(len(cases(c)) for c,_ in by[owner])} cases, {sum(len({a for a,*_ in r}) for _,r in by[owner])} arguments\n")
        for c,res in by[owner]:
            for arg in dict.fromkeys(a for a,*_ in res):
                if not arg:
                    print(f'- `{c.key}`: **{res[-1][2]}**')
                    continue
                kinds = defaultdict(list)
                for a,value,what in res:
                    if a==arg: kinds[re.sub(r'^(raw \w+|accepted|does not name it|is a).*', r'\1', what)].append(value+(what[16:] if what.startswith('does not name') else ''))
                print(f'- `{c.key}({arg}=…)`: ' + '; '.join(f"{k}: {', '.join(v)}" for k,v in kinds.items()))
        for k,m,res in spoils[owner]:
            if res: print(f'- malformed: {k}: {len(res)} of {m}:')
            for what,_,bad in res[:40]: print(f'    - {what or "**afterwards**"}: {bad}')
            if len(res)>40: print(f'    - and {len(res)-40} more')
    print(f'\n{len(table)} calls, {n} cases, {sum(len(r) for v in by.values() for _,r in v)} fail and {sum(len(r) for v in spoils.values() for *_,r in v)} of the malformed, {time.time()-start:.0f} s')
