"Bundles: every kind of model kept as plain files, read back in a fresh process, and refused when they are not as they were written"
import copy, hashlib, json, os, shutil, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, timm, torch, torchvision
from PIL import Image, ImageOps
from fastai.data.transforms import Normalize
from fastai.learner import load_learner
from fastai.vision.augment import Resize, aug_transforms
from torch import nn
from fgvc_fast.bundle import Bundle, load_bundle, recipe, write_bundle
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.datasets.all import fine_grained_data
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.metrics import top_k
from fgvc_fast.models.all import fine_grained_model, pools
from fgvc_fast.train.all import Phase
import fgvc_fast.save # chkstyle: ignore (now learners can save bundles)

shared = Path(os.environ.get('FGVC_SHARED', '../shared'))
weights = shared/'weights'/'mobilenetv2_100.imagenet1k.safetensors'

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def birds(tmp_path_factory): return fine_grained_data('toy_birds', path=tmp_path_factory.mktemp('birds'), families=2, species=2, per_class=12, size=64)

def loaders(data, size=64, **kwargs): return data.dls(size=size, bs=8, num_workers=0, seed=0, **kwargs)

def learner(data, arch='toy_resnet', size=64, dls=None, **kwargs):
    "A learner whose batch norms have statistics of their own, without training"
    torch.manual_seed(0)
    learn = fine_grained_learner(dls or loaders(data, size), arch, **kwargs)
    for m in learn.model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.add_(.1*torch.randn_like(m.running_mean)), m.running_var.mul_(torch.rand_like(m.running_var)+.5)
    return learn

def save(learn, folder):
    with learn.no_bar(): return learn.save_bundle(folder)

@pytest.fixture(scope='module')
def saved(birds, tmp_path_factory):
    "A learner and its bundle"
    learn = learner(birds, pool='gem', head='fastai')
    return learn,save(learn, tmp_path_factory.mktemp('bundle')/'birds')

def probs_of(df, labels):
    "Probability of each label, a row a picture, from all columns of `predict(k=len(labels))`"
    ends = ['', *[f'_{i}' for i in range(2, len(labels)+1)]]
    res = np.zeros((len(df), len(labels)))
    for e in ends:
        for i,(l,p) in enumerate(zip(df[f'label{e}'], df[f'confidence{e}'])): res[i,labels.index(l)] = p
    return res

def agrees(learn, folder, rows, **kwargs):
    "The bundle says of files what the learner says of the same rows"
    bundle = load_bundle(folder, 'cpu')
    data,labels = learn.dls.data,list(learn.dls.vocab)
    got = probs_of(bundle.predict([data.path(i) for i in rows], k=len(labels), progress=False, **kwargs), labels)
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(rows, num_workers=0))[0]
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert got.std() > 1e-3 # and says something
    return bundle

tv = torchvision.models
made = dict(toy=('toy_resnet', 64, {}), own_pad=('mobilenetv2_100', 64, dict(pretrained=False, pad_type='same', stats=([.5]*3, [.5]*3), pool='gem')),
    torchvision=(tv.resnet18, 64, dict(pretrained=False, head='fastai', drop=.3)), vit=('vit_tiny_patch16_224', (48,80), dict(pretrained=False, head='fastai', drop=0.)),
    swin=('swin_tiny_patch4_window7_224', (128,64), dict(pretrained=False, pool='gem', depths=(1,1,1,1))))

@pytest.mark.parametrize('arch,size,kwargs', made.values(), ids=made)
def test_every_kind(birds, tmp_path, arch, size, kwargs):
    "Names and numbers are enough to build it again"
    learn = learner(birds, arch, size, **kwargs)
    folder = save(learn, tmp_path/'b')
    bundle = agrees(learn, folder, birds['test'].index[:6])
    cfg = json.loads((folder/'config.json').read_text())
    assert cfg['transforms']['size']==([size,size] if isinstance(size, int) else list(size))
    assert bundle.levels=={'family': dict(zip(birds.items.label, birds.items.family))} and bundle.labels==birds.vocab
    assert not bundle.model.training and not any(p.requires_grad for p in bundle.model.parameters())

@pytest.mark.skipif(not weights.is_file(), reason=f'no weights at {weights} (FGVC_SHARED)')
def test_real_weights_with_their_own_padding(birds, tmp_path):
    "Padding and statistics that are not the defaults, in a fresh process; either one wrong is seen"
    learn = learner(birds, 'mobilenetv2_100', 96, weights=weights, pad_type='same', stats=([.5]*3, [.5]*3))
    folder = save(learn, tmp_path/'b')
    agrees(learn, folder, birds['test'].index[:6])
    assert str(weights.parent) not in (folder/'README.md').read_text() # not where the file lay here
    here = load_bundle(folder, 'cpu').predict(birds.root/'images', k=4, progress=False)
    pd.testing.assert_frame_equal(fresh(folder, birds.root/'images'), here, check_exact=False, atol=1e-6)
    plain = fine_grained_model('mobilenetv2_100', 4, pretrained=False, img_size=96)
    plain.load_state_dict(learn.model.state_dict())
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad(): assert (plain.eval()(x)-learn.model.eval()(x)).abs().max() > 1e-2

def fresh(folder, images):
    "What a new process predicts, without training code and without opening a pickle"
    code = f"""
import sys, torch
def never(*a, **k): raise AssertionError('a pickle was opened')
torch.load = never
import pickle
class Never(pickle.Unpickler): __init__ = never
pickle.load,pickle.loads,pickle.Unpickler = never,never,Never
from fgvc_fast.bundle import load_bundle
df = load_bundle({str(folder)!r}, 'cpu').predict({str(images)!r}, k=4, progress=False)
had = [o for o in sys.modules if o.split('.')[0] in ('fastai','matplotlib','sklearn') or o in ('fgvc_fast.learner','fgvc_fast.save')]
assert not had, had
print(df.to_json(orient='split', double_precision=15))
"""
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert res.returncode==0, res.stderr[-3000:]
    o = json.loads(res.stdout)
    df = pd.DataFrame(o['data'], columns=o['columns'])
    return df.astype({c: np.float32 for c in df if c.startswith('conf')})

def test_fresh_process(saved, birds):
    _,folder = saved
    here = load_bundle(folder, 'cpu').predict(birds.root/'images', k=4, progress=False)
    assert len(here)==len(birds) and here.label.nunique()>1
    pd.testing.assert_frame_equal(fresh(folder, birds.root/'images'), here, check_exact=False, atol=1e-6)

# --- what loaders do

def test_box_crop(birds, tmp_path):
    "Boxes are cut as validation cuts them; without them one warning, and the middle"
    learn = learner(birds, dls=loaders(birds, (64,48), crop='box', margin=.2))
    folder,rows = save(learn, tmp_path/'b'),birds['test'].index[:8]
    boxes = birds.items.loc[rows, ['x0','y0','x1','y1']]
    bundle = agrees(learn, folder, rows, boxes=boxes)
    with pytest.warns(UserWarning, match="cut to the object's box") as seen: whole = bundle.predict([birds.path(i) for i in rows], progress=False)
    assert len(seen)==1
    cut = bundle.predict([birds.path(i) for i in rows], boxes=boxes.to_numpy(), progress=False)
    assert (whole.confidence-cut.confidence).abs().max() > 1e-3
    some = bundle.predict([birds.path(i) for i in rows], boxes=[None, *boxes.to_numpy()[1:]], progress=False)
    np.testing.assert_allclose(some.confidence, [whole.confidence[0], *cut.confidence[1:]], rtol=1e-4)
    opened = bundle.predict(Image.open(birds.path(rows[0])), boxes=boxes.iloc[0])
    np.testing.assert_allclose(opened.confidence, cut.confidence[:1], rtol=1e-4)
    with pytest.raises(FineGrainedError, match='8 boxes for 2 pictures'): bundle.predict([birds.path(0)]*2, boxes=boxes)

def test_loaders_that_normalize(birds, tmp_path):
    "Their statistics go into the bundle, whatever the model does besides"
    dls = loaders(birds, batch_tfms=Normalize.from_stats([.4,.5,.6], [.2,.25,.3], cuda=False))
    learn = learner(birds, dls=dls)
    assert isinstance(learn.model.norm, nn.Identity)
    bundle = agrees(learn, save(learn, tmp_path/'b'), birds['test'].index[:6])
    torch.testing.assert_close(bundle.model.norm.mean.flatten(), torch.tensor([.4,.5,.6]))

def test_augmentation_does_not_matter(birds, tmp_path):
    learn = learner(birds, dls=loaders(birds, aug='standard', batch_tfms=aug_transforms()))
    agrees(learn, save(learn, tmp_path/'b'), birds['test'].index[:6])

def test_loaders_that_a_bundle_cannot_repeat(birds, tmp_path):
    for kw,said in ((dict(item_tfms=Resize(64)), 'these loaders have Resize'), (dict(batch_tfms=aug_transforms(size=48)), 'changes validation pictures')):
        with pytest.raises(FineGrainedError, match=said): learner(birds, dls=loaders(birds, **kw)).save_bundle(tmp_path/'b')
    assert not list(tmp_path.iterdir())

# --- pictures

@pytest.fixture(scope='module')
def odd(tmp_path_factory):
    "Pictures as they come: every mode, every turn, large ones"
    d = tmp_path_factory.mktemp('odd')
    x = np.random.default_rng(0).integers(0, 255, (12,16,3), dtype=np.uint8)
    rgb = Image.fromarray(x).resize((320,240), Image.Resampling.BICUBIC)
    grey = rgb.convert('L')
    saved = {'grey.jpg': grey, 'cmyk.jpg': rgb.convert('CMYK'), 'palette.gif': rgb.convert('P'), 'alpha.png': rgb.convert('RGBA'), 'see_through.png': Image.new('RGBA', (80,60), (200,0,0,90)),
        '16bit.png': Image.fromarray(np.asarray(grey).astype(np.uint16)*257), 'tall.jpg': rgb.resize((60,300)), 'large.jpg': rgb.resize((2000,1500)), 'tiny.png': rgb.resize((5,3)), 'bits.png': grey.convert('1')}
    for nm,im in saved.items(): im.save(d/nm)
    for o in (0, *range(2,9)):
        exif = Image.Exif()
        exif[0x0112] = o
        for end in ('jpg','png','webp','tif'): rgb.save(d/f'turned{o}.{end}', exif=exif)
    for end in ('png','webp','jpg'): rgb.save(d/f'broken.{end}', exif=b'Exif\x00\x00II*\x00\xff\xff\xff\x7fbroken')
    Image.fromarray(np.where(np.eye(240,320), np.nan, np.asarray(grey)/np.float32(255)).astype(np.float32)).save(d/'nan.tif')
    return d

def test_odd_pictures_are_read_as_the_learner_reads_them(saved, odd):
    learn,folder = saved
    files,labels = sorted(odd.iterdir()),list(learn.dls.vocab)
    bundle = load_bundle(folder, 'cpu')
    df = bundle.predict(odd, k=4, progress=False)
    assert list(df.path)==list(map(str, files)) and df.attrs['skipped']=={}
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl(files, num_workers=0))[0]
    np.testing.assert_allclose(probs_of(df, labels), want, atol=2e-5)
    opened = [Image.open(f) for f in files]
    with learn.no_bar(): want = learn.get_preds(dl=learn.dls.test_dl([im.copy() for im in map(Image.open, files)], num_workers=0))[0]
    np.testing.assert_allclose(probs_of(bundle.predict(opened, k=4, progress=False), labels), want, atol=2e-5)

def test_unreadable_pictures_are_skipped_and_listed(saved, birds, tmp_path):
    "By name and reason, in a folder and in a list, with workers and without"
    bundle = load_bundle(saved[1], 'cpu')
    (tmp_path/'deep'/'.hidden').mkdir(parents=True)
    good = [tmp_path/'a.png', tmp_path/'deep'/'b.png']
    for g,i in zip(good, (0,1)): shutil.copy(birds.path(i), g)
    shutil.copy(birds.path(0), tmp_path/'deep'/'.hidden'/'c.png')
    (tmp_path/'cut.png').write_bytes(birds.path(0).read_bytes()[:900])
    (tmp_path/'page.jpg').write_text('<html>')
    (tmp_path/'empty.jpg').write_bytes(b'')
    (tmp_path/'phone.HEIC').write_bytes(b'ftypheic')
    (tmp_path/'notes.txt').write_text('no picture')
    for workers in (0, 2):
        with pytest.warns(UserWarning, match='4 of 6 pictures could not be read and were skipped: .*cut.png is damaged') as seen: df = bundle.predict(tmp_path, num_workers=workers, progress=False)
        assert len(seen)==1 and list(df.path)==list(map(str, good))
        assert {Path(k).name: v.split('(')[0].strip() for k,v in df.attrs['skipped'].items()}=={'cut.png': 'is damaged', 'empty.jpg': 'is not a picture that Pillow can read',
            'page.jpg': 'is not a picture that Pillow can read', 'phone.HEIC': 'is not a picture that Pillow can read'}
    with pytest.warns(UserWarning, match='gone.png does not exist'): df = bundle.predict([good[0], tmp_path/'gone.png', tmp_path])
    assert list(df.path)==[str(good[0])] and list(df.attrs['skipped'])==[str(tmp_path/'gone.png'), str(tmp_path)]
    with pytest.warns(UserWarning): none = bundle.predict([tmp_path/'page.jpg'])
    assert len(none)==0 and list(none.columns)==list(df.columns)
    with pytest.raises(FineGrainedError, match='page.jpg is not a picture'): bundle.predict(tmp_path/'page.jpg')
    with pytest.raises(FineGrainedError, match="'gone' does not exist"): bundle.predict('gone')

def test_pixels_are_read_as_a_picture_of_them_is(saved, odd):
    "Arrays, tensors and bytes of any layout beside the PIL picture of the same; what is none is one error"
    bundle = load_bundle(saved[1], 'cpu')
    rgb = np.asarray(Image.open(odd/'large.jpg').resize((90,70)))
    grey,alpha = rgb[...,0],np.dstack([rgb, rgb[...,:1]])
    same = [(rgb, rgb), (rgb.transpose(2,0,1), rgb), (torch.from_numpy(rgb.copy()), rgb), (torch.from_numpy(rgb.copy()).permute(2,0,1), rgb), (rgb/255, rgb),
        (torch.tensor(rgb/255).permute(2,0,1).float(), rgb), (rgb.astype(np.uint16)*257, rgb),
        (rgb[None], rgb), (rgb[:,::-1], rgb[:,::-1].copy()), (grey, grey), (grey[...,None], grey), (grey[None]/255, grey), (grey.astype(np.uint16)*257, grey),
        (alpha, alpha), (alpha/255, alpha), (grey>99, (grey>99).astype(np.uint8)*255)]
    got,want = [bundle.predict(o, k=4, progress=False) for o in ([a for a,_ in same], [Image.fromarray(b) for _,b in same])]
    pd.testing.assert_frame_equal(got, want, check_exact=False, atol=1e-6)
    assert want.confidence.nunique()>3
    np.testing.assert_allclose(bundle.predict(rgb).confidence, want.confidence[:1], atol=1e-6)
    np.testing.assert_allclose(bundle.predict((odd/'large.jpg').read_bytes()).confidence, bundle.predict(Image.open(odd/'large.jpg')).confidence, atol=1e-6)
    np.testing.assert_allclose(bundle.predict(np.stack([rgb, rgb])).confidence, want.confidence[[0,0]], atol=1e-6)
    for bad in (None, 5, 2.5, object(), {}, dict(a=rgb), [None], [5], [rgb, None], [dict()], rgb.astype(object), np.zeros((9,9,2)), np.zeros(5),
        np.zeros((9,9,3))*np.nan, np.zeros((9,9,3))-4, np.zeros((0,9,3)), np.zeros((9,9,3), complex), b'no picture'):
        with pytest.raises(FineGrainedError, match='images|expected|picture'), warnings.catch_warnings():
            warnings.simplefilter('error')
            bundle.predict(bad)

def test_arguments_of_predict(saved, birds):
    bundle,f = load_bundle(saved[1], 'cpu'),birds.path(0)
    for kw in (dict(k=0), dict(k='3'), dict(k=2.5), dict(k=None), dict(k=True), dict(bs=0), dict(bs=-1), dict(bs='x'), dict(bs=None), dict(num_workers=-1),
        dict(num_workers='x'), dict(flip=7), dict(flip=None), dict(flip='no'), dict(progress=5), dict(boxes=5), dict(boxes='x'), dict(boxes=[1,2,3])):
        with pytest.raises(FineGrainedError, match=next(iter(kw))): bundle.predict(f, **kw)
    for folder in (5, None, [], b'x', '', 'gone', 'a\0b', f):
        with pytest.raises(FineGrainedError): load_bundle(folder)
    for device in ('x', 'cuda:99', 5.5, 'meta', [], -1):
        with pytest.raises(FineGrainedError, match='device='): load_bundle(saved[1], device)
    crop = Bundle(bundle.model, bundle.labels, bundle.levels, dict(size=(64,64), crop='box', margin=.1), 'cpu')
    for box in ((0,0,0,5), (5,5,1,9), ('a','b','c','d'), (0,0,9), (0,0,np.inf,9), (0,np.nan,9,9), 'abcd'):
        with pytest.raises(FineGrainedError, match='boxes'): crop.predict([f], boxes=[box])

def test_arguments_of_saving(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn,folder = saved
    model,labels = load_bundle(folder, 'cpu').model,list(learn.dls.vocab)
    for folder in (None, 5, '', ' ', 'a\0', b'x', []):
        with pytest.raises(FineGrainedError, match='folder='): learn.save_bundle(folder)
    for kw in (dict(folder=None), dict(folder=5), dict(folder='/'), dict(model=None), dict(model=nn.Linear(2,2)), dict(labels=None), dict(labels='abcd'),
        dict(labels=[]), dict(labels=labels[:2]), dict(labels=labels[:3]+labels[:1]), dict(labels=5), dict(size=0), dict(size='64'), dict(size=(64,)),
        dict(size=(64,-1)), dict(size=2.5),
            dict(size=10**6), dict(crop='middle'), dict(crop=5), dict(margin=-1), dict(margin='x'), dict(margin=np.nan), dict(margin=None), dict(levels=5),
            dict(levels=dict(family=5)), dict(levels=dict(family={'a': 1})), dict(stats=5), dict(stats=([0],[1])), dict(stats=([0]*3,[0]*3)),
            dict(stats=([np.nan]*3,[1]*3)),
            dict(facts=5), dict(facts=dict(nothing=1)), dict(verify=5)):
        with pytest.raises(FineGrainedError): write_bundle(**dict(folder='new', model=model, labels=labels) | kw)
    assert not list(tmp_path.iterdir())

def test_one_list_of_what_is_a_picture(saved, tmp_path, birds):
    "Of a folder with every ending, a bundle and `fine_grained_data` look at the same files"
    from fgvc_fast.data.image import picture_suffixes
    ends = [*picture_suffixes, '.txt', '.csv', '.eps', '.pdf', '.svg', '.mp4', '.npy', '']
    for c in ('a','b'):
        (tmp_path/c).mkdir()
        for i,o in enumerate(ends): Image.open(birds.path(i)).save(tmp_path/c/f'{i}{o.upper() if i%2 else o}', 'PNG')
        (tmp_path/c/'.hidden').mkdir()
        shutil.copy(birds.path(0), tmp_path/c/'.hidden'/'x.png')
    data = fine_grained_data(tmp_path)
    df = load_bundle(saved[1], 'cpu').predict(tmp_path, progress=False)
    assert sorted(df.path)==sorted(str(data.path(i)) for i in data.items.index) and len(df)==2*len(picture_suffixes)

def test_what_is_called_a_picture_and_is_none(saved, tmp_path, birds):
    "A drawing program in an EPS, a pipe, a folder, a link to itself: named, nothing is started and nobody waits; linked folders are seen once"
    good = tmp_path/'in'/'good.png'
    good.parent.mkdir()
    shutil.copy(birds.path(0), good)
    (tmp_path/'in'/'photo.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n')
    os.mkfifo(tmp_path/'in'/'pipe.jpg')
    (tmp_path/'in'/'folder.jpg').mkdir()
    (tmp_path/'in'/'me.jpg').symlink_to('me.jpg')
    (tmp_path/'in'/'up').symlink_to('..')
    (tmp_path/'in'/'more').symlink_to(tmp_path/'far')
    (tmp_path/'far').mkdir()
    shutil.copy(birds.path(1), tmp_path/'far'/'far.png')
    bundle = load_bundle(saved[1], 'cpu')
    with pytest.warns(UserWarning, match='could not be read'): df = bundle.predict(tmp_path/'in', progress=False)
    assert sorted(Path(o).name for o in df.path)==['far.png','good.png']
    assert sorted(Path(o).name for o in df.attrs['skipped'])==['me.jpg','photo.jpg','pipe.jpg']

def test_flips_workers_batches(saved, birds):
    "Mirror images by hand; the result does not depend on who reads or how many at a time"
    learn,folder = saved
    bundle,labels = load_bundle(folder, 'cpu'),list(learn.dls.vocab)
    files = [birds.path(i) for i in range(20)]
    plain = bundle.predict(files, k=4, progress=False)
    mirrored = probs_of(bundle.predict([ImageOps.mirror(Image.open(f)) for f in files], k=4, progress=False), labels)
    both = probs_of(bundle.predict(files, k=4, flip=True, progress=False), labels)
    np.testing.assert_allclose(both, (probs_of(plain, labels)+mirrored)/2, atol=1e-6)
    for kw in (dict(num_workers=2), dict(bs=3), dict(num_workers=2, bs=7)):
        pd.testing.assert_frame_equal(bundle.predict(files, k=4, progress=False, **kw), plain, check_exact=False, atol=1e-6)
    assert list(bundle.predict(files[0], k=99).columns)==list(plain.columns)
    assert (plain.confidence>=plain.confidence_2).all() and np.allclose(probs_of(plain, labels).sum(1), 1, atol=1e-5)

# --- refused

def sealed(cfg):
    "The sum of `cfg` as somebody who forges it would make it"
    return cfg | dict(sha256=hashlib.sha256(json.dumps({k: v for k,v in cfg.items() if k!='sha256'}, sort_keys=True).encode()).hexdigest())

def edit(b, seal=True, **kwargs):
    cfg = json.loads((b/'config.json').read_text()) | kwargs
    (b/'config.json').write_text(json.dumps(sealed(cfg) if seal else cfg))

def part(b, key, **kwargs): edit(b, **{key: json.loads((b/'config.json').read_text())[key] | kwargs})

def one_bit(b):
    w = bytearray((b/'model.safetensors').read_bytes())
    w[len(w)//2] ^= 1
    (b/'model.safetensors').write_bytes(w)

def link(b):
    shutil.move(b/'model.safetensors', b.parent/'away')
    (b/'model.safetensors').symlink_to(b.parent/'away')

def reseal(b, data):
    (b/'model.safetensors').write_bytes(data)
    edit(b, files={'model.safetensors': dict(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())})

spoilt = {'one bit of the weights': (one_bit, "model.safetensors' was changed"), 'weights cut short': (lambda b: os.truncate(b/'model.safetensors', 1000), "model.safetensors' has 1,000 bytes"),
    'weights missing': (lambda b: (b/'model.safetensors').unlink(), "'model.safetensors' is missing"), 'config missing': (lambda b: (b/'config.json').unlink(), 'has no config.json'),
    'config edited': (lambda b: edit(b, seal=False, labels=['a','b','c','d']), "config.json' was changed"), 'config no JSON': (lambda b: (b/'config.json').write_text('{'), "config.json' is damaged"),
    'config of something else': (lambda b: (b/'config.json').write_text('{"a": 1}'), "config.json' is not a bundle's"), 'newer format': (lambda b: edit(b, format=2), 'has format 2, written by fgvc_fast'),
    'strange format': (lambda b: edit(b, format='old'), 'has format old'), 'climbs out': (lambda b: edit(b, files={'../away': {}}), "names the file '../away'"),
    'absolute': (lambda b: edit(b, files={'/etc/passwd': {}}), "names the file '/etc/passwd'"), 'another system\'s path': (lambda b: edit(b, files={'C:\\x': {}}), 'no plain name inside the bundle'),
    'itself': (lambda b: edit(b, files={'..': {}}), "names the file '..'"), 'link out of it': (link, "'model.safetensors' in the bundle .* is a link that leads out of it"),
    'no sum': (lambda b: edit(b, files={}), 'no sum for model.safetensors'), 'other labels': (lambda b: edit(b, labels=['a','b']), 'does not fit the model'),
    'other architecture': (lambda b: part(b, 'model', arch='resnet18'), 'does not fit the model'), 'unknown architecture': (lambda b: part(b, 'model', arch='resnet_of_2040'), 'resnet_of_2040'),
    'hub': (lambda b: part(b, 'model', arch='hf-hub:somebody/something'), 'only names of timm and torchvision'), 'function': (lambda b: part(b, 'model', library='os', arch='system'), 'only names of timm and torchvision'),
    'weights from elsewhere': (lambda b: part(b, 'model', kwargs=dict(checkpoint_path='x.pth')), 'weights from elsewhere'), 'unknown pool': (lambda b: part(b, 'model', pool='os.system'), "pool is 'os.system', which is not among avg, gem"),
    'no safetensors': (lambda b: reseal(b, b'\x80\x04\x95'+b'0'*100), 'does not fit the model'), 'says too little': (lambda b: (b/'config.json').write_text(json.dumps(sealed(dict(format=1, files={})))), 'says nothing of model, labels')}

vast = {'layers': dict(depth=30_000_000, drop_path_rate=.1), 'negative': dict(depth=-30_000_000), 'nested': dict(block_args=dict(a=[1, dict(b=1e9)])),
    'a list': dict(depths=[1]*20_000)}

@pytest.mark.parametrize('kwargs', vast.values(), ids=vast)
@pytest.mark.parametrize('of', ('kwargs','options'))
def test_models_too_large_to_be_any(saved, tmp_path, monkeypatch, kwargs, of):
    b = tmp_path/'b'
    shutil.copytree(saved[1], b)
    if of=='options': kwargs = dict(pool={k: v*7 if isinstance(v, list) else v for k,v in kwargs.items()})
    part(b, 'model', arch='vit_tiny_patch16_224', **{of: kwargs})
    monkeypatch.setattr('fgvc_fast.bundle.fine_grained_model', lambda *a, **k: pytest.fail('it was built'))
    with pytest.raises(FineGrainedError, match='no model has more than'): load_bundle(b)

@pytest.mark.parametrize('spoil,said', spoilt.values(), ids=spoilt)
def test_spoilt_bundle_is_refused(saved, tmp_path, spoil, said):
    b = tmp_path/'b'
    shutil.copytree(saved[1], b)
    spoil(b)
    with pytest.raises(FineGrainedError, match=said): load_bundle(b)

def test_versions_are_named_when_weights_do_not_fit(saved, tmp_path):
    b = tmp_path/'b'
    shutil.copytree(saved[1], b)
    part(b, 'versions', timm='0.9.1')
    part(b, 'model', arch='resnet18')
    with pytest.raises(FineGrainedError, match=f'built by timm {timm.__version__}; it was written with timm 0.9.1. Install that: pip install timm==0.9.1'): load_bundle(b)

def test_card_may_be_edited_and_folder_moved(saved, tmp_path):
    shutil.copytree(saved[1], tmp_path/'elsewhere')
    (tmp_path/'elsewhere'/'README.md').write_text('mine')
    load_bundle(tmp_path/'elsewhere')
    (tmp_path/'link').symlink_to(tmp_path/'elsewhere')
    load_bundle(tmp_path/'link')

class MaxPool(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.nf = nf
    def forward(self, x): return x.amax((2,3))

def test_what_has_no_name_is_not_saved(birds, tmp_path):
    "Own pools, replaced heads, arguments that are no plain values, other models; and by a name of one's own it works"
    with pytest.raises(FineGrainedError, match='pool of this model is a MaxPool'): learner(birds, pool=MaxPool).save_bundle(tmp_path/'b')
    learn = learner(birds)
    learn.model.head = nn.Sequential(nn.Linear(192, 4))
    with pytest.raises(FineGrainedError, match="head of this model is a Sequential, no longer 'linear'"): learn.save_bundle(tmp_path/'b')
    learn.model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(FineGrainedError, match='this Sequential does not'): learn.save_bundle(tmp_path/'b')
    with pytest.raises(FineGrainedError, match='act_layer='): learner(birds, 'resnet18', pretrained=False, act_layer=nn.ReLU).save_bundle(tmp_path/'b')
    with pytest.raises(FineGrainedError, match='no longer'): # of the same name, another class
        learn = learner(birds, pool='gem')
        learn.model.pool.__class__ = type('GeM', (type(learn.model.pool),), {})
        learn.save_bundle(tmp_path/'b')
    learn = learner(birds)
    learn.model.body.model.layer4 = nn.Sequential(learn.model.body.model.layer4, nn.Conv2d(192, 192, 1))
    with pytest.raises(FineGrainedError, match='does not fit'): save(learn, tmp_path/'b')
    learn = learner(birds)
    learn.model.body.model.layer4.register_forward_hook(lambda m, i, o: 2*o) # nothing that a state dict shows
    with pytest.raises(FineGrainedError, match='logits differ by'): save(learn, tmp_path/'b')
    assert not [o for o in tmp_path.iterdir() if not o.name.endswith('.lock')]
    pools['max'] = MaxPool
    try:
        learn = learner(birds, pool='max')
        folder = save(learn, tmp_path/'b')
        agrees(learn, folder, birds['test'].index[:4])
        del pools['max']
        with pytest.raises(FineGrainedError, match="pool is 'max', which is not among avg, gem, .*: put its class into `pools`"): load_bundle(folder)
    finally: pools.pop('max', None)

# --- saving

def test_learner_is_left_as_it_was(birds, tmp_path):
    "Modes (some parts frozen in eval), gradients, weights, random numbers; and what was known of it survives export"
    learn = learner(birds)
    x,y = learn.dls.one_batch()
    learn.model.train()(x).sum().backward()
    learn.model.body.model.layer1.eval()
    def state():
        return [m.training for m in learn.model.modules()],[(p.requires_grad, p.grad.clone()) for p in learn.model.parameters()],{k: v.clone()
            for k,v in learn.model.state_dict().items()}
    old,rng = state(),torch.get_rng_state()
    save(learn, tmp_path/'b')
    new = state()
    assert old[0]==new[0] and torch.equal(rng, torch.get_rng_state())
    assert all(a==c and torch.equal(b, d) for (a,b),(c,d) in zip(old[1], new[1]))
    assert all(torch.equal(v, new[2][k]) for k,v in old[2].items())
    learn.path = tmp_path
    learn.export('l.pkl')
    other = load_learner(tmp_path/'l.pkl')
    assert recipe(other.model)==recipe(learn.model)==recipe(copy.deepcopy(learn.model))
    with pytest.raises(FineGrainedError, match='no validation pictures|do not know their data set'): other.save_bundle(tmp_path/'c')
    other.dls = learn.dls
    agrees(other, save(other, tmp_path/'c'), birds['test'].index[:4])

@pytest.mark.parametrize('where', ['save','load_bundle','_exchange','rename'])
def test_interrupted_saving_leaves_what_was_there(saved, birds, tmp_path, monkeypatch, where):
    "Whatever it is interrupted in; also where nothing was"
    import fgvc_fast.bundle as B
    learn,folder = learner(birds),tmp_path/'b'
    shutil.copytree(saved[1], folder)
    old = {f.name: f.read_bytes() for f in folder.iterdir()}
    def stop(*args, **kwargs): raise KeyboardInterrupt
    def here(): return [o.name for o in tmp_path.iterdir() if not o.name.endswith('.lock')]
    calls,rename = [],Path.rename
    def second(self, target):
        calls.append(target)
        if len(calls)==2: raise KeyboardInterrupt
        return rename(self, target)
    with monkeypatch.context() as m:
        if where=='rename': m.setattr(Path, 'rename', second), m.setattr(B, '_exchange', lambda a, b: False)
        else: m.setattr(B, where, stop)
        with pytest.raises(KeyboardInterrupt): save(learn, folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()}==old and here()==['b']
    if where in ('save','load_bundle'):
        with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
            m.setattr(B, where, stop)
            save(learn, tmp_path/'new')
        assert here()==['b']
    save(learn, folder)
    agrees(learn, folder, birds['test'].index[:4])

def test_other_folders_are_not_touched(saved, birds, tmp_path):
    learn,_ = saved
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'a.png').write_text('mine')
    (tmp_path/'file').write_text('mine')
    with pytest.raises(FineGrainedError, match='is not empty, and no bundle'): learn.save_bundle(tmp_path/'photos')
    with pytest.raises(FineGrainedError, match='is a file'):                    learn.save_bundle(tmp_path/'file')
    save(learn, tmp_path/'deep'/'b')
    (tmp_path/'deep'/'b'/'model.onnx').write_text('mine')
    with pytest.raises(FineGrainedError, match='model.onnx with it'):           learn.save_bundle(tmp_path/'deep'/'b')
    assert (tmp_path/'photos'/'a.png').read_text()==(tmp_path/'deep'/'b'/'model.onnx').read_text()=='mine'

def test_card_says_what_was_measured(birds, tmp_path):
    "The validation figure of these weights; the test figure only if it was read with them; what validates on the test split says so"
    learn = learner(birds)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        card = (learn.save_bundle(tmp_path/'b')/'README.md').read_text()
        preds,targs = learn.get_preds()
        assert f'| validation | {len(targs)} | {100*top_k(preds, targs, 1):.1f} % |' in card
        assert '| test |' not in card and 'has not been read with these weights' in card
        assert 'Toy birds' in card and 'Apache-2.0' in card and all(o in card for o in birds.vocab) and "load_bundle('this/folder')" in card
        res = learn.test().iloc[0]
        card = (learn.save_bundle(tmp_path/'b')/'README.md').read_text()
        assert f'| test | {int(res.pictures)} | {100*res.top1:.1f} % |' in card
        learn.fit(1)
        assert '| test |' not in (learn.save_bundle(tmp_path/'b')/'README.md').read_text()
        peek = learner(birds, dls=loaders(birds, valid='test'))
        card = (peek.save_bundle(tmp_path/'c')/'README.md').read_text()
        assert 'has been chosen by' in card and '| validation |' not in card

def test_card_counts_the_epochs_of_the_last_training(birds, tmp_path):
    learn = learner(birds)
    def epochs(): return [o for o in (save(learn, tmp_path/'b')/'README.md').read_text().splitlines() if o.startswith('| epochs')]
    with learn.no_bar(), learn.no_logging():
        assert epochs()==[]
        learn.fit_phases([Phase('head', 1), Phase('all', 2)])
        assert epochs()==['| epochs | 3 in 2 phases |']
        learn.fit(2)
        assert epochs()==['| epochs | 2 in the last fit |']
        learn.fit_phases(1)
        learn.fit(1) # as many
        assert epochs()==['| epochs | 1 in the last fit |']
        learn.fit_phases(1)
        learn.get_preds(), learn.validate()
        assert epochs()==['| epochs | 1 in 1 phases |']
        learn.fit(2)
        learn.get_preds(), learn.validate()
        assert epochs()==['| epochs | 2 in the last fit |']

def test_half_precision_and_channels_last(birds, tmp_path):
    "What was trained in bf16 is kept in float32, in the usual layout"
    learn = learner(birds, amp='bf16')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    bundle = load_bundle(save(learn, tmp_path/'b'), 'cpu')
    with torch.no_grad():
        x = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
        torch.testing.assert_close(bundle.model(x), learn.model.eval()(x), atol=1e-5, rtol=1e-5)

# --- ONNX

def test_onnx(saved, birds, odd, tmp_path, monkeypatch):
    "ONNX Runtime says the same for one picture and for many; an export that does not is not kept"
    ort = pytest.importorskip('onnxruntime', reason='no ONNX Runtime: pip install "fgvc_fast[onnx]"')
    bundle = load_bundle(saved[1], 'cpu')
    assert bundle.save_onnx(tmp_path/'m.onnx', birds.root/'images') < 1e-4
    session = ort.InferenceSession(tmp_path/'m.onnx', providers=['CPUExecutionProvider'])
    for n in (1, 5):
        x = torch.rand(n, 3, 64, 64)
        with torch.no_grad(): torch.testing.assert_close(torch.tensor(session.run(None, dict(pixels=x.numpy()))[0]), bundle.model(x), atol=1e-4, rtol=1e-4)
    import fgvc_fast.bundle as B
    export = B._export
    def wrong(net, size, path):
        net.norm.mean += .1
        export(net, size, path)
        net.norm.mean -= .1
    monkeypatch.setattr(B, '_export', wrong)
    with pytest.raises(FineGrainedError, match='logits differ by'): bundle.save_onnx(tmp_path/'n.onnx', birds.root/'images')
    assert [o.name for o in tmp_path.iterdir()]==['m.onnx']
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(FineGrainedError, match=r'pip install "fgvc_fast\[onnx\]"'): bundle.save_onnx(tmp_path/'n.onnx', birds.root/'images')

def test_pictures_with_a_banner(tmp_path):
    "What no model sees (FGVC-Aircraft) does not stand between the learner and its bundle"
    data = fine_grained_data('toy_birds', path=tmp_path, families=2, species=2, per_class=8, size=64)
    data.card = {**data.card, 'banner':12}
    learn = fine_grained_learner(data.dls(size=48, bs=4, num_workers=0), 'toy_resnet')
    folder = learn.save_bundle(tmp_path/'bundle')
    assert 'lowest 12 rows' in (folder/'README.md').read_text()

# levels

def edited(birds, rows, **cols):
    items = birds.items.copy()
    for k,v in cols.items(): items.loc[rows(items), k] = v
    return FineGrainedData(items, birds.root, birds.levels)

def test_a_test_split_without_labels_keeps_no_bundle_away(birds, tmp_path):
    data = edited(birds, lambda o: o.split=='test', label=np.nan, family=np.nan)
    levels = load_bundle(save(learner(data), tmp_path/'b'), device='cpu').levels
    assert levels==dict(family={o.label: o.family for o in birds.items[['label','family']].itertuples()})

def test_a_label_of_two_families_is_said(birds, tmp_path):
    learn = learner(edited(birds, lambda o: o.index==0, family='Other'))
    with pytest.warns(UserWarning, match='nothing about levels: The label .* stands under more than one family'): folder = save(learn, tmp_path/'b')
    assert load_bundle(folder, device='cpu').levels=={}
