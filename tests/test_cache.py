"The cache: what it serves is what the file says now, whoever writes, dies, or runs out of room"
import os, random, shutil, signal, subprocess, sys, time
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Resize, TensorImage, set_seed
from fasttransform import Transform
from fgvc_fast.all import FineGrainedData, FineGrainedError
from fgvc_fast.data.block import CropResize, Presized
from fgvc_fast.data.cache import _entry as cache_entry, _mark as cache_mark, _who as cache_who
from fgvc_fast.data.lazy import LazyImage, open_lazily

def photo(rng, w, h):
    "A smooth random picture, as photographs are"
    x = rng.integers(0, 256, (6,8,3), dtype=np.uint8)
    return Image.fromarray(x).resize((w,h), Image.Resampling.BICUBIC)

@pytest.fixture
def data(tmp_path):
    "Forty pictures of many shapes and two classes, with boxes; some turned by EXIF, grey, or no JPEG"
    rng,rows = np.random.default_rng(0),[]
    (tmp_path/'photos').mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for i in range(40):
        w,h = int(rng.integers(90, 260)),int(rng.integers(90, 260))
        im,kw = photo(rng, w, h),dict(quality=95)
        if i%10==3: kw['exif'] = turned
        if i%10==5: im = im.convert('L')
        im.save(tmp_path/'photos'/f'{i}.{"png" if i%10==7 else "jpg"}', **({} if i%10==7 else kw))
        x0,y0 = rng.uniform(0, w*.5),rng.uniform(0, h*.5)
        rows.append(dict(path=f'{i}.{"png" if i%10==7 else "jpg"}', label='ab'[i%2], split='train' if i<32 else 'valid', x0=x0, y0=y0, x1=x0+rng.uniform(.2, .5)*w, y1=y0+rng.uniform(.2, .5)*h))
    return FineGrainedData(pd.DataFrame(rows), tmp_path/'photos')

def batches(dls): return [b for dl in dls.loaders for b in dl]

def equal(a, b): return len(a)==len(b) and all(torch.equal(o, p) for x,y in zip(a, b) for o,p in zip(x, y))

def loaders(data, tmp_path, **kwargs): return data.dls(**{**dict(size=64, bs=8, num_workers=0, seed=0, cache=tmp_path/'cache'), **kwargs})

# What comes out

@pytest.mark.parametrize('crop', [None,'box'])
@pytest.mark.parametrize('size', [64, (48,80), (80,48)])
@pytest.mark.parametrize('min_scale', [.75, .2])
def test_same_crops_as_without(data, tmp_path, crop, size, min_scale):
    "With the same seed the same regions are drawn, and the pixels differ by no more than resizing twice does; validation not at all"
    kw = dict(size=size, crop=crop, min_scale=min_scale, aug='standard')
    cached,plain = loaders(data, tmp_path, **kw),loaders(data, tmp_path, cache=False, **kw)
    for _ in range(2): # made, then read
        for (x,y),(p,q) in zip(cached.train, plain.train):
            assert torch.equal(y, q)
            assert (x-p).abs().mean()<.015 # of 1
    assert equal(list(cached.valid), list(plain.valid))

def test_distribution_of_crops(data, tmp_path):
    "Where crops lie and how large they are, drawn from the cache and from the file, over many draws (two-sample Kolmogorov–Smirnov)"
    from scipy.stats import ks_2samp
    for crop in (None,'box'):
        cut = loaders(data, tmp_path, crop=crop).train.after_item.fs[0]
        drawn = {True: [], False: []}
        for i in range(400):
            row = i%32
            im = LazyImage(data.path(row), data.items.loc[row, ['x0','y0','x1','y1']].to_numpy(float), row=row)
            cut.train = True
            kept = cut.cache.get(im, 'train', cut.plan)
            assert isinstance(kept, Presized)
            for is_cached,x in ((True,kept), (False,im)):
                x0,y0,x1,y1 = cut.region(x, 1.)
                W,H = im.size
                drawn[is_cached].append(((x0+x1)/2/W, (y0+y1)/2/H, (x1-x0)*(y1-y0)/W/H, (x1-x0)/(y1-y0)))
        for a,b in zip(*[np.array(o).T for o in drawn.values()]): assert ks_2samp(a, b).pvalue>1e-3

def test_what_is_kept_covers_every_crop(data):
    "No crop reaches beyond what is kept, and the closest one is not enlarged, unless the file itself is too small"
    rng = random.Random(0)
    for size in (64, (48,80), (80,48)):
        for crop in (None,'box'):
            cut = CropResize(size, crop, min_scale=.5)
            cut.train,(h,w) = True,cut.size
            for _ in range(400):
                wh = rng.randint(40, 900),rng.randint(40, 900)
                x0,y0 = rng.uniform(-3, wh[0]*.8),rng.uniform(-3, wh[1]*.8)
                box = x0,y0,x0+rng.uniform(5, wh[0]),y0+rng.uniform(5, wh[1])
                (bx0,by0,bx1,by1),(kw,kh) = cut.plan(wh, box)
                s = kw/(bx1-bx0)
                x0,y0,x1,y1 = cut.region(Presized(None, None, wh, box), w/h)
                assert x0>=bx0-1 and y0>=by0-1 and x1<=bx1+1 and y1<=by1+1, (wh, box)
                if s<.99: assert (x1-x0)*(y1-y0)*s*s > w*h*.93, (wh, box)

# Seeds

@pytest.mark.parametrize('aug', ['light','strong'])
def test_seed_repeats_whatever_the_workers(data, tmp_path, aug):
    "Also while the cache is being made, across epochs, and with transforms of fastai's that draw from torch"
    from fastai.vision.all import aug_transforms
    def two_epochs(n, **kwargs):
        dls = loaders(data, tmp_path, num_workers=n, aug=aug, batch_tfms=aug_transforms(size=64), **kwargs)
        return [[o for o in dls.train] for _ in range(2)]
    first = two_epochs(0)
    assert not equal(*first)
    for n in (0,1,2,3): assert all(equal(a, b) for a,b in zip(first, two_epochs(n)))
    assert not equal(first[0], two_epochs(0, seed=1)[0])

def test_seeded_batches_leave_the_training_loop_alone(data, tmp_path):
    dls = loaders(data, tmp_path)
    set_seed(3)
    want = torch.rand(3),np.random.rand(),random.random()
    set_seed(3)
    batches(dls)
    got = torch.rand(3),np.random.rand(),random.random()
    assert torch.equal(want[0], got[0]) and want[1:]==got[1:]

def test_seeded_batches_leave_cuda_alone(data, tmp_path, monkeypatch):
    "Asked for its generators it would be initialised, and workers could not be forked any more"
    asked = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: False)
    for o in ('device_count','get_rng_state_all'): monkeypatch.setattr(torch.cuda, o, lambda o=o: asked.append(o) or [])
    dls = loaders(data, tmp_path)
    asked.clear()
    batches(dls)
    assert not asked

def test_resumed_epoch_is_the_same(data, tmp_path):
    "Whoever puts back the loader's generator gets the epoch again"
    from copy import deepcopy
    dl = loaders(data, tmp_path).train
    list(dl)
    rng = deepcopy(dl.rng)
    a = list(dl)
    dl.rng = rng
    assert equal(a, list(dl))

# Staleness

def test_changed_file_is_decoded_anew(data, tmp_path):
    "Same name, same length, same date"
    dls = loaders(data, tmp_path, aug='none')
    before = batches(dls)
    fn = data.path(35)
    st,old = fn.stat(),fn.read_bytes()
    x = np.asarray(Image.open(fn))
    Image.fromarray(255-x).save(fn, quality=95)
    new = fn.read_bytes()
    fn.write_bytes(new[:len(old)].ljust(len(old), b'\0') if len(new)<=len(old) else new)
    os.utime(fn, ns=(st.st_atime_ns, st.st_mtime_ns))
    after = batches(dls)
    assert (before[-1][0][3]-after[-1][0][3]).abs().mean()>.05
    plain = batches(loaders(data, tmp_path, aug='none', cache=False))
    assert torch.equal(after[-1][0], plain[-1][0])

def test_changed_box_and_settings(data, tmp_path):
    "A corrected box, another size, margin, crop: never the old pixels"
    def valid(data, cache=tmp_path/'cache', **kwargs): return [x for x,_ in loaders(data, tmp_path, cache=cache, **{'crop':'box', **kwargs}).valid]
    valid(data)
    moved = FineGrainedData(data.items.assign(x1=data.items.x1-8), data.root)
    for d,kw in ((moved, {}), (data, dict(size=48)), (data, dict(margin=.4)), (data, dict(crop=None))):
        want = valid(d, cache=False, **kw)
        assert all(torch.equal(a, b) for a,b in zip(valid(d, **kw), want))

def test_parts_of_a_data_set_share_what_is_kept(data, tmp_path):
    dls = loaders(data, tmp_path)
    batches(dls)
    n = (dls.cache.folder/'pixels').stat().st_size
    some = data.subset(classes=['a'])
    small = loaders(some, tmp_path)
    batches(small)
    assert small.cache.folder==dls.cache.folder and (dls.cache.folder/'pixels').stat().st_size==n
    assert equal(list(small.valid), list(loaders(some, tmp_path, cache=False).valid))

# Many writers, sudden deaths, no room

worker = '''
import sys, torch
from fgvc_fast.all import FineGrainedData
import pandas as pd
data = FineGrainedData(pd.read_json(sys.argv[1]), sys.argv[2])
dls = data.dls(size=64, bs=8, num_workers=2, seed=0, cache=sys.argv[3])
print('ready', flush=True)
for _ in range(int(sys.argv[4])):
    for b in dls.train: pass
print([float(x.double().mean()) for x,_ in dls.valid])
'''

def run(data, tmp_path, epochs=1):
    data.items.to_json(tmp_path/'items.json')
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', worker, tmp_path/'items.json', data.root, tmp_path/'cache', str(epochs)], stdout=subprocess.PIPE, text=True,
        start_new_session=True)

def test_two_processes_build_at_once(data, tmp_path):
    a,b = run(data, tmp_path, 2),run(data, tmp_path, 2)
    said = [o.communicate(timeout=900)[0].splitlines()[-1] for o in (a,b)]
    assert said[0]==said[1] and a.returncode==b.returncode==0
    made = loaders(data, tmp_path)
    assert equal(list(made.valid), list(loaders(data, tmp_path, cache=False).valid))
    assert '32 of' not in repr(made.cache) and '40 of 40' in repr(made.cache)

def test_killed_while_building(data, tmp_path):
    "Process and workers die in the middle, again and again; what was kept is right, and the rest is made"
    for wait in (0, .05, .15):
        p = run(data, tmp_path, 50)
        assert p.stdout.readline()=='ready\n'
        time.sleep(wait)
        os.killpg(p.pid, signal.SIGKILL)
        p.wait()
    made,plain = loaders(data, tmp_path, aug='none'),loaders(data, tmp_path, aug='none', cache=False)
    assert equal(list(made.valid), list(plain.valid))
    for (x,_),(y,_) in zip(made.train, plain.train): assert (x-y).abs().mean()<.015

@pytest.mark.parametrize('hurt', ['zeros','short','entries','keys'])
def test_damaged_files_are_noticed(data, tmp_path, hurt):
    "Pages that never reached the disk, a file cut short, half an entry, half a key: decoded again, never served"
    dls = loaders(data, tmp_path, aug='none')
    want,folder = batches(dls),dls.cache.folder
    if hurt=='zeros':
        b = bytearray((folder/'pixels').read_bytes())
        b[8192:len(b)-5000:] = bytes(len(b)-5000-8192)
        (folder/'pixels').write_bytes(b)
    if hurt=='short': os.truncate(folder/'pixels', 20000)
    if hurt=='entries':
        b = bytearray((folder/'entries').read_bytes())
        for i in range(0, len(b), 97): b[i] ^= 255
        (folder/'entries').write_bytes(b)
    if hurt=='keys': os.truncate(folder/'keys', 8*7+3)
    assert equal(batches(loaders(data, tmp_path, aug='none')), want)
    assert equal(batches(loaders(data, tmp_path, aug='none')), want)

def test_every_bit_is_covered(data, tmp_path):
    "One bit of the pixels that flips, anywhere, and the picture is not served"
    dls = loaders(data, tmp_path, aug='none')
    batches(dls)
    cut,rng = dls.train.after_item.fs[0],np.random.default_rng(0)
    pixels,entries = dls.cache.folder/'pixels',np.fromfile(dls.cache.folder/'entries', cache_entry)
    pictures = {row: LazyImage(data.path(row), data.items.loc[row, ['x0','y0','x1','y1']].to_numpy(float), row=row) for row in range(32)}
    cut.train = True
    def served(row): return dls.cache._read(slots[row], cache_who(pictures[row], int(dls.cache.keys['train'][row])))
    slots = dls.cache.slots['train']
    assert all(served(row) is not None for row in range(32))
    with open(pixels, 'r+b') as f:
        for _ in range(400):
            row = int(rng.integers(32))
            at = int(entries['at'][slots[row]]+rng.integers(entries['n'][slots[row]]))
            f.seek(at)
            was = f.read(1)
            f.seek(at)
            f.write(bytes([was[0]^1<<int(rng.integers(8))]))
            f.flush()
            assert served(row) is None, (row, at)
            f.seek(at)
            f.write(was)
            f.flush()
    assert all(served(row) is not None for row in range(32))

def test_pages_that_changed_places():
    "Sums alone would not see it"
    kept = np.random.default_rng(0).integers(0, 256, 5*4096+77, dtype=np.uint8)
    mark = cache_mark(bytes(8), kept)
    for a,b in ((0,1), (3,4)):
        other = kept.copy()
        other[a*4096:a*4096+4096],other[b*4096:b*4096+4096] = kept[b*4096:b*4096+4096],kept[a*4096:a*4096+4096]
        assert cache_mark(bytes(8), other)!=mark
    assert cache_mark(bytes(8), np.roll(kept, 8))!=mark and cache_mark(b'1'*8, kept)!=mark and cache_mark(bytes(8), kept.copy())==mark

def test_cut_short_while_in_use(data, tmp_path):
    "Somebody truncates the files under loaders that have them open: in a process of its own, which a memory map would end"
    dls = loaders(data, tmp_path, aug='none')
    batches(dls)
    want = list(dls.valid)
    pid = os.fork()
    if not pid:
        same = []
        try:
            same.append(equal(list(dls.valid), want)) # its own files are open
            for o,n in (('pixels',5000), ('entries',100), ('pixels',0), ('entries',0)):
                os.truncate(dls.cache.folder/o, n)
                list(dls.train)
                same += [equal(list(dls.valid), want) for _ in range(2)]
        finally: os._exit(0 if len(same)==9 and all(same) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0
    assert equal(list(dls.valid), want)

@pytest.mark.parametrize('call', ['mkdir','lock','keys','entries','about','fastai'])
def test_where_nothing_can_be_written(data, tmp_path, monkeypatch, call):
    "A read-only home, a quota, a full disk: one warning, and training goes on without"
    import builtins, pathlib, fgvc_fast.data.cache as cache
    def fail(*args, **kwargs): raise OSError(30 if call in ('mkdir','lock') else 28, 'Read-only file system' if call in ('mkdir','lock') else 'No space left on device')
    want = batches(loaders(data, tmp_path, aug='none', cache=False))
    home = tmp_path/'cache'
    if call=='mkdir': (mk := pathlib.Path.mkdir,monkeypatch.setattr(pathlib.Path, 'mkdir', lambda self, *a, **kw: fail() if 'cache' in str(self) else mk(self, *a, **kw)))
    if call=='lock': monkeypatch.setattr(cache, 'FileLock', fail)
    if call=='fastai':
        monkeypatch.setattr(cache, 'fastai_path', fail)
        monkeypatch.delenv('FGVC_CACHE', raising=False)
        home = True
    if call in ('keys','entries'):
        opened = builtins.open
        monkeypatch.setattr(builtins, 'open', lambda fn, mode='r', *a, **kw: fail() if str(fn).endswith(f'/{call}') and mode!='rb' else opened(fn, mode, *a, **kw))
    if call=='about': (write := pathlib.Path.write_text,monkeypatch.setattr(pathlib.Path, 'write_text', lambda self, *a, **kw: fail() if self.name=='about.json' else write(self, *a, **kw)))
    with pytest.warns(UserWarning, match='cannot be written|cannot grow') as said: dls = loaders(data, tmp_path, aug='none', cache=home)
    for (x,y),(p,q) in zip(batches(dls), want, strict=True): assert torch.equal(y, q) and (x-p).abs().mean()<.015
    assert sum('cannot' in str(o.message) for o in said)==1

def test_disk_fills_while_an_entry_is_written(data, tmp_path):
    dls = loaders(data, tmp_path, aug='none')
    dls.cache._open()
    class Full:
        def __init__(self, f): self.f = f
        def __getattr__(self, k): return getattr(self.f, k)
        def write(self, b): raise OSError(122, 'Disk quota exceeded')
    dls.cache._files[0] = Full(dls.cache._files[0])
    with pytest.warns(UserWarning, match='quota'): got = batches(dls)
    assert equal(got, batches(loaders(data, tmp_path, aug='none')))

def test_other_caches_that_are_damaged(data, tmp_path):
    "Half of an about.json, of a run that was killed, stops nobody"
    for name,text in (('half','{"root": "/x'), ('empty',''), ('list','[1]'), ('none','{}')):
        (tmp_path/'cache'/name).mkdir(parents=True)
        (tmp_path/'cache'/name/'about.json').write_text(text)
    assert loaders(data, tmp_path).cache is not None
    assert len(list((tmp_path/'cache').glob('*/about.json')))==1

def test_names_that_are_no_text(data, tmp_path):
    "A class folder from an old zip, under a root from one"
    root = os.fsdecode(os.fsencode(tmp_path)+b'/Gr\xfcn')
    shutil.copytree(data.root, root)
    names = [os.fsdecode(b'Fink\xe9')+o for o in data.items.path]
    for a,b in zip(data.items.path, names): os.rename(f'{root}/{a}', f'{root}/{b}')
    odd = FineGrainedData(data.items.assign(path=names), root)
    dls = loaders(odd, tmp_path, aug='none')
    for (x,_),(p,_) in zip(batches(dls), batches(loaders(data, tmp_path, aug='none', cache=False)), strict=True): assert (x-p).abs().mean()<.015
    assert '40 of 40' in repr(dls.cache)

def test_removed_meanwhile(data, tmp_path):
    "Somebody clears the folder: the loaders go on without, with workers too"
    dls = loaders(data, tmp_path, aug='none')
    want = list(dls.valid)
    shutil.rmtree(dls.cache.folder)
    assert equal(list(dls.valid), want)
    dls = loaders(data, tmp_path, aug='none', num_workers=2)
    shutil.rmtree(tmp_path/'cache')
    assert equal(list(dls.valid), want) and 'removed' in repr(dls.cache)

def test_no_room(data, tmp_path, capsys, monkeypatch):
    "Too large for max_gb: JPEGs; too large even so: nothing, in words; larger than thought: what is there stays, in a warning"
    raw = loaders(data, tmp_path).cache
    assert not raw.compress
    jpeg = loaders(data, tmp_path, max_gb=3e-4)
    assert jpeg.cache.compress and 'kept as JPEG' in capsys.readouterr().out
    batches(jpeg)
    assert sum(o.stat().st_size for o in jpeg.cache.folder.iterdir())<3e5
    for (x,_),(y,_) in zip(loaders(data, tmp_path, max_gb=3e-4).train, loaders(data, tmp_path, cache=False).train): assert (x-y).abs().mean()<.03
    none = loaders(data, tmp_path, max_gb=1e-5)
    assert none.cache is None and 'No cache' in capsys.readouterr().out
    full = loaders(data, tmp_path/'other')
    full.cache.limit = 30_000
    with pytest.warns(UserWarning, match='as large as it may become'): got = batches(full)
    assert (full.cache.folder/'pixels').stat().st_size<=30_000
    assert equal(got, batches(loaders(data, tmp_path/'third')))

def test_full_disk(data, tmp_path):
    "The disk fills up while an entry is written: no half of a picture is believed"
    dls = loaders(data, tmp_path, aug='none')
    dls.cache._open()
    class Full:
        def __init__(self, f): self.f,self.left = f,30_000
        def __getattr__(self, k): return getattr(self.f, k)
        def write(self, b):
            n = self.f.write(memoryview(b)[:max(self.left, 0)])
            self.left -= len(b)
            if not n: raise OSError(28, 'No space left on device')
            return n
    dls.cache._files[2] = Full(dls.cache._files[2])
    with pytest.warns(UserWarning, match='cannot grow'): got = batches(dls)
    again = loaders(data, tmp_path, aug='none')
    assert equal(got, batches(again))
    assert equal(list(again.valid), list(loaders(data, tmp_path, aug='none', cache=False).valid))

def test_unreadable_files_are_named(data, tmp_path):
    dls = loaders(data, tmp_path)
    batches(dls)
    data.path(4).write_bytes(data.path(4).read_bytes()[:300])
    with pytest.raises(FineGrainedError, match='4.jpg is (damaged|not a picture)'): batches(dls)
    data.path(4).unlink()
    with pytest.raises((FineGrainedError,FileNotFoundError), match='4.jpg'): batches(dls)

# Options of the loaders

def test_augmentation_is_the_same_on_either_device(data, tmp_path):
    "On a GPU colours change per batch, on a CPU per picture: the same distribution"
    cpu,gpu = [data.block(size=32, aug='standard', cache=False, device=o) for o in ('cpu','cuda')]
    cut,other = [next(t for t in o.item_tfms if isinstance(t, CropResize)) for o in (cpu, gpu)]
    assert (cut.light,other.light)==(.3,0)
    one = Image.fromarray(np.full((32,32,3), 100, np.uint8))
    light = next(t for t in gpu.batch_tfms if hasattr(t, 'fs'))
    set_seed(0)
    a = np.array([cut(open_lazily(one), split_idx=0)[0,0,0].item() for _ in range(3000)])
    b = light(TensorImage(torch.full((3000,3,2,2), 100/255)), split_idx=0)[:,0,0,0].numpy()
    from scipy.stats import ks_2samp
    assert ks_2samp(a, (b*255).round()).pvalue>1e-3

def test_balanced(data, tmp_path):
    rare = data.drop(data['train'].index[data['train'].label=='b'][2:])
    dls = loaders(rare, tmp_path, balanced=True, num_workers=2)
    for _ in range(2):
        y = torch.cat([y for _,y in dls.train])
        assert abs((y==0).sum()-(y==1).sum())<=1
    assert len(torch.cat([y for _,y in dls.valid]))==len(rare['valid'])

def test_label_level(data, tmp_path):
    two = FineGrainedData(data.items.assign(family=np.where(data.items.label=='a', 'x', 'y'), label=data.items.path), data.root, levels=['family','label'])
    dls = loaders(two, tmp_path, label_level='family')
    assert list(dls.vocab)==['x','y'] and dls.data.levels==['label']
    with pytest.raises(FineGrainedError, match="level='genus'"): loaders(two, tmp_path, label_level='genus')

def test_users_transforms_take_the_long_way(data, tmp_path):
    "Another item transform, or one added later: fastai's own pipeline"
    dls = loaders(data, tmp_path, item_tfms=Resize(64))
    assert dls.cache is None and dls.one_batch()[0].shape==(8,3,64,64) and dls.train._sooner is None
    dls = loaders(data, tmp_path)
    dls.one_batch()
    assert dls.train._sooner is not None
    dls.add_tfms([Transform(lambda x: x)], 'after_item')
    dls.one_batch()
    assert dls.train._sooner is None
