"What loaders are asked for, and by whom: options, single pictures, labels of paths, weights, and folders that nobody writes to"
import os
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import LabelSmoothingCrossEntropy
from fgvc_fast.all import FineGrainedData, FineGrainedError, fine_grained_learner
from fgvc_fast.data.all import toy_birds
from fgvc_fast.data.loader import balanced_order, share_of

@pytest.fixture(scope='module')
def data(tmp_path_factory): return toy_birds(tmp_path_factory.mktemp('birds'), families=2, species=2, per_class=8, size=64)

def loaders(data, **kwargs): return data.dls(**{**dict(size=32, bs=6, num_workers=0, cache=False, device='cpu'), **kwargs})

nan = float('nan')
wrong = dict(size=[0, -1, '64', None, 2.5, (64,), (64,0), True, nan, [], {}], bs=[0, -1, 'x', None, 2.5, True, nan], crop=['part', 1, True, []], aug=[None, 5, 'wild', ['light','strong'], [None], {}], valid=['val', None, 'train', 1], label_level=['genus', 5, []],
    balanced=['yes', 2, None], per_class=[0, -1, 4, 'x', 2.5], seed=['x', 1.5, nan], num_workers=[-1, 'x', 1.5], device=['gpu', 'cuda:x', 2.5], block=[3, 'x', {}], margin=[-5, '1', None, nan, 99], min_scale=[0, 2, -1, 'x', None, nan], flip=[7, -1, 'x', None, nan],
    light=[1, -1, 'x', None], cache=[5, 2.5, ['x']], max_gb=[-1, 'x', None, nan], parts=['points', 3, None], batch_tfms=[5, ['x']], item_tfms=[5, 'x'], mragin=[.1])

@pytest.mark.parametrize('name,value', [(k,v) for k,vs in wrong.items() for v in vs], ids=str)
def test_wrong_options_of_dls(data, name, value):
    "One error that names the option"
    known = dict(mragin='no option mragin', label_level='level', block='block', per_class='per_class').get(name, f'{name}=')
    with pytest.raises(FineGrainedError, match=known): loaders(data, **{name: value})

def test_wrong_options_of_others(data, tmp_path):
    dls = loaders(data)
    (tmp_path/'file').write_text('x')
    for f,said in ((lambda: loaders(data, cache=tmp_path/'file'), 'is a file'), (lambda: dls.test_dl([0], bs=0), 'bs=0'), (lambda: dls.test_dl([0], num_workers=-1), 'num_workers=-1'), (lambda: dls.resized(0), 'size=0'), (lambda: dls.show_batch(max_n=0), 'max_n=0'),
        (lambda: balanced_order([0,1], np.random.default_rng(0), 0), 'per_class=0'), (lambda: share_of(10, 4, 2, 2), 'rank=2'), (lambda: share_of(10, 0, 0, 2), 'bs=0'), (lambda: dls.train.share(0, 0), 'ranks=0'), (lambda: data.duplicates(distance='x'), 'distance='),
        (lambda: data.drop_duplicates(None), 'NoneType'), (lambda: data.show_duplicates([1]), 'list'), (lambda: toy_birds(tmp_path/'file'/'x', per_class=4), 'file/x'), (lambda: toy_birds(tmp_path, size='x'), 'size='), (lambda: toy_birds(tmp_path, seed=-1), 'seed=-1'), (lambda: toy_birds(tmp_path, families=2.5), 'families=2.5')):
        with pytest.raises(FineGrainedError, match=said): f()

@pytest.mark.parametrize('bs', [1, 2, 1000])
def test_any_batch_size(data, bs):
    for kw in ({}, dict(balanced=True), dict(per_class=1)): assert len(list(loaders(data, bs=bs, **kw).train))>=1

def test_two_pictures_of_each_class(data):
    "Balanced, several of a class, and plain"
    two = data['train'].groupby('label').head(2).index
    few = data.drop(data['train'].index.difference(two))
    for kw in (dict(balanced=True), dict(per_class=2), {}):
        seen = torch.cat([y for _,y in loaders(few, bs=4, **kw).train])
        assert len(seen)==8 and (seen.bincount()==2).all()

# test_dl

def test_labels_of_paths(data, tmp_path):
    "As fastai's `with_labels`: paths of the table have its labels, others that of their folder"
    dls = loaders(data)
    rows = [0, 9, 20]
    def labels(items): return [dls.vocab[o] for o in dls.test_dl(items, with_labels=True).one_batch()[1]]
    want = data.items.label[rows].tolist()
    for items in (rows, [data.path(o) for o in rows], [str(data.path(o)) for o in rows], [os.path.relpath(data.path(o)) for o in rows], np.array(rows), pd.Index(rows), torch.tensor(rows)): assert labels(items)==want
    (tmp_path/want[0]).mkdir()
    Image.new('RGB', (40,40)).save(tmp_path/want[0]/'new.jpg')
    assert labels([tmp_path/want[0]/'new.jpg'])==want[:1]
    for items,said in (([tmp_path/'new.jpg'], 'new.jpg'), ([Image.new('RGB', (9,9))], 'Nobody knows')):
        with pytest.raises(FineGrainedError, match=said): labels(items)
    bare = FineGrainedData(data.items.assign(label=data.items.label.where(data.items.split!='test')), data.root)
    with pytest.raises(FineGrainedError, match='has no label'): loaders(bare).test_dl(bare['test'].index[:2], with_labels=True)

def test_paths_are_cut_to_their_boxes(data, tmp_path):
    "As their rows are, with labels or without; a path that the table has not, as a whole"
    dls,rows = loaders(data, crop='box'),[0, 9, 20]
    def seen(items, dls=dls, **kwargs): return dls.test_dl(items, **kwargs).one_batch()[0]
    want = seen(rows)
    for items in ([data.path(o) for o in rows], [str(data.path(o)) for o in rows], [os.path.relpath(data.path(o)) for o in rows]):
        for kwargs in ({}, dict(with_labels=True)): assert torch.equal(seen(items, **kwargs), want)
    Image.open(data.path(0)).save(tmp_path/'new.png')
    assert not torch.equal(seen([tmp_path/'new.png']), want[:1])
    learn = fine_grained_learner(dls, 'toy_resnet')
    with learn.no_bar(): assert torch.allclose(learn.predict(data.path(9))[2], learn.predict(9)[2], atol=1e-6)

@pytest.mark.parametrize('items', [None, 3, 'a.jpg', b'x', Image.new('RGB', (4,4)), np.zeros((4,4,3)), {}, [10_000], [-1], pd.DataFrame()], ids=lambda o: type(o).__name__)
def test_no_list_of_items(data, items):
    with pytest.raises(FineGrainedError, match='list|no row'): loaders(data).test_dl(items)

def test_one_picture_in_many_forms(data):
    "`predict`, `show_cam` and `test_dl` of an array or a tensor, as of its file"
    dls = loaders(data, size=48) # at half the size a JPEG would be decoded more coarsely than an array can be
    learn = fine_grained_learner(dls, 'toy_resnet')
    x = np.array(data.picture(0))
    want,same = dls.test_dl([0]).one_batch()[0],[x, x/255, x.astype(np.uint16)*257, x.transpose(2,0,1), torch.from_numpy(x).permute(2,0,1)/255, np.dstack([x, np.full(x.shape[:2], 255, np.uint8)]), x[None], Image.fromarray(x), data.path(0).read_bytes()]
    got = dls.test_dl(same).one_batch()[0]
    assert all((o-want[0]).abs().max()<=1/255+1e-6 for o in got)
    with learn.no_bar():
        p = learn.predict(0)[2]
        for o in same: assert torch.allclose(learn.predict(o)[2], p, atol=.02)
        for o in (None, x/255-.5, x[:0], np.zeros(3), np.array('x'), '/no/such.jpg', b'none'):
            with pytest.raises(FineGrainedError): learn.predict(o)
        from fgvc_fast.interpret.cam import _load
        assert [_load(learn, o)[0] for o in (x, data.path(0), [x,x], 3, data.path(0).read_bytes(), torch.from_numpy(x).permute(2,0,1)/255)]==[1,1,2,1,1,1]
        for o in (torch.from_numpy(x).permute(2,0,1)/255, data.path(0).read_bytes()): learn.show_cam(o)
        with pytest.raises(FineGrainedError, match='from 0 to 1'): _load(learn, torch.rand(1, 3, 48, 48)*255)

# Weights, and where files go

def test_weighted(data):
    "fastai's way to draw rare classes more often knows the data set, and draws by the weights"
    block,row = data.block(32, cache=False, device='cpu'),data['train'].index[3]
    dls = block.weighted_dataloaders(data, np.arange(len(data))==row, bs=6, num_workers=0)
    assert dls.data is data and len(dls.valid_ds)==len(data['valid'])
    want = data.vocab.index(data.items.label[row])
    assert (torch.cat([y for _,y in dls.train])==want).all()
    assert dls.test_dl([0]).one_batch()[0].shape==(1,3,32,32)
    for bad in (None, [1,2], ['x']*len(data), [nan]*len(data), [-1]*len(data), [0]*len(data)):
        with pytest.raises(FineGrainedError, match='wgts'): block.weighted_dataloaders(data, bad)

def test_nothing_is_written_to_the_data(data, tmp_path, monkeypatch):
    "To load, train, find a rate, save and export takes no place among the pictures"
    def files(): return sorted((str(o), o.stat().st_mtime_ns) for o in data.root.rglob('*'))
    monkeypatch.chdir(tmp_path)
    before = files()
    learn = fine_grained_learner(loaders(data, cache=tmp_path/'cache'), 'toy_resnet', loss_func=LabelSmoothingCrossEntropy())
    assert not data.root.resolve().is_relative_to(learn.path.resolve()/'x') and not str(learn.path.resolve()).startswith(str(data.root.resolve()))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.lr_find(num_it=4, show_plot=False)
        learn.save('mine')
        learn.load('mine')
    assert files()==before and (tmp_path/'models'/'mine.pth').exists()
