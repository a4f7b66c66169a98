"Points and boxes arrive where their parts are in the crop; the pool takes them in training, and finds them afterwards"
import math, numpy as np, pandas as pd, pickle, pytest, torch
from fastai.vision.augment import Brightness, Resize, aug_transforms
from functools import partial
from PIL import Image
from fgvc_fast.augment.mix import CutMix, MixUp
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data import lazy
from fgvc_fast.data.block import CropResize, PartsOf, TensorParts, _twins
from fgvc_fast.data.table import FineGrainedData
from fgvc_fast.datasets.toy import toy_birds
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.models.body import Body
from fgvc_fast.models.annotated import AnnotatedPartPool, part_targets
from fgvc_fast.models.pools import pools

# ---- the loaders: find the dots ----

dots = {'left eye': 0, 'right eye': 1, 'tail': 2} # each in the colour channel that it is drawn in
radius,size = 5,64

def stored(im, o):
    "`im` as a camera stores it that writes EXIF orientation `o`: undone by it"
    back = {2:'FLIP_LEFT_RIGHT', 3:'ROTATE_180', 4:'FLIP_TOP_BOTTOM', 5:'TRANSPOSE', 6:'ROTATE_90', 7:'TRANSVERSE', 8:'ROTATE_270'}
    return im.transpose(getattr(Image.Transpose, back[o])) if o in back else im

def dotted(root, n=24, suffix='jpg'):
    "Dark pictures with three dots and a grey box, in all orientations; places are found in the file as it is stored"
    rng,rows,parts = np.random.default_rng(0),[],[]
    for i in range(n):
        w,h = (200,150) if i%3 else (130,170)
        y,x = np.mgrid[:h,:w]+.5
        a = np.full((h,w,3), 20, np.uint8)
        x0,y0 = rng.integers(10, w//4),rng.integers(10, h//4)
        a[y0:h-20,x0:w-15] = 60
        places = rng.uniform((x0+8,y0+8), (w-23,h-28), (3,2))
        while min(np.linalg.norm(places[j]-places[k]) for j,k in ((0,1),(0,2),(1,2)))<3*radius: places = rng.uniform((x0+8,y0+8), (w-23,h-28), (3,2))
        for c,(px,py) in enumerate(places): a[(x-px)**2+(y-py)**2<=radius**2] = 60+195*(np.arange(3)==c)
        o,exif = i%8+1,Image.Exif()
        exif[0x0112] = o
        im = np.asarray(stored(Image.fromarray(a), o))
        Image.fromarray(im).save(root/f'{i}.{suffix}', exif=exif, **dict(quality=98, subsampling=0) if suffix=='jpg' else {})
        inside = np.argwhere(im.max(2)>40)
        (by0,bx0),(by1,bx1) = inside.min(0),inside.max(0)+1
        rows.append((f'{i}.{suffix}', 'ab'[i%2], 'valid' if i%3==0 else 'train', bx0, by0, bx1, by1))
        for name,c in dots.items():
            at = np.argwhere(im[...,c].astype(int)-im.min(2)>100)
            parts.append((i, name, *(at.mean(0)[::-1]+.5), int((i,name)!=(1,'tail'))))
    items = pd.DataFrame(rows, columns=['path','label','split','x0','y0','x1','y1'])
    return FineGrainedData(items, root, parts=pd.DataFrame(parts, columns=['item','part','x','y','visible']))

def middle(x, c):
    "Where the dot of colour `c` is in the crop `x`, from 0 to 1, and how many pixels of it are there"
    at = (x[c]-x.min(0).values>.35).nonzero().double()
    return ((at.mean(0)+.5)/size).flip(0) if len(at) else None,len(at)

def compare(xb, pb, colors):
    "How many points were found at their dots, and how many were left out with theirs"
    found = lost = 0
    for x,points in zip(xb, pb):
        for (px,py),c in zip(points.tolist(), colors):
            at,n = middle(torch.as_tensor(x), c)
            if math.isnan(px):
                lost += 1
                assert at is None or (at<.12).any() or (at>.88).any() # at most a rim of the dot is left
            elif min(px, py, 1-px, 1-py)>.1: # the whole dot is there
                assert math.dist(at, (px,py))*size<1.2
                found += 1
    return found,lost

@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('cache', [True, False])
@pytest.mark.parametrize('crop', [None, 'box'])
def test_dots(tmp_path, suffix, cache, crop):
    data = dotted(tmp_path, suffix=suffix)
    data.parts.loc[(data.parts.item==1) & (data.parts.part=='tail'), 'visible'] = 1
    for flip in (0.,1.):
        dls = data.dls(size, bs=8, crop=crop, parts=True, cache=cache, flip=flip, min_scale=.3, num_workers=0, seed=1)
        assert dls.parts==list(dots) and dls.n_inp==2
        colors = [1,0,2] if flip else [0,1,2] # in a mirror image left and right change places
        for again in range(2): # the second time out of the cache
            res = [compare(xb, pb, colors) for _ in range(3) for xb,pb,_ in dls.train]
            found,lost = map(sum, zip(*res))
            assert found>60 and lost>(0 if crop else 5)
            assert sum(compare(xb, pb, [0,1,2])[0] for xb,pb,_ in dls.valid)>=len(data['valid'])*(3 if crop else 2)

@pytest.mark.parametrize('cache', [True, False])
@pytest.mark.parametrize('crop', [None, 'box'])
def test_box(tmp_path, cache, crop):
    data = dotted(tmp_path)
    for flip in (0.,1.):
        dls = data.dls(size, bs=8, crop=crop, parts='box', cache=cache, flip=flip, num_workers=0, seed=1)
        for dl in (dls.train, dls.valid, dls.train):
            for xb,pb,_ in dl:
                assert pb.shape==(len(xb),4)
                for x,box in zip(xb, pb):
                    at = (torch.as_tensor(x).amax(0)>.16).nonzero() # lighter than the ground
                    (y0,x0),(y1,x1) = at.min(0).values,at.max(0).values+1
                    assert (torch.as_tensor(box)*size-torch.tensor([x0,y0,x1,y1])).abs().max()<1.6

def test_what_is_kept_is_not_opened(tmp_path, monkeypatch):
    "Later epochs know from the cache how a picture was turned"
    dls = dotted(tmp_path).dls(size, bs=8, parts=True, num_workers=0)
    for dl in dls.loaders: list(dl)
    def opened(fn): raise AssertionError(f'{fn} was opened')
    monkeypatch.setattr(lazy, 'open_picture', opened)
    for dl in dls.loaders: assert all(p.isfinite().any() for _,p,_ in dl)

def test_unseen(tmp_path):
    "What is not visible, of no row, or without a box is NaN"
    data = dotted(tmp_path)
    data.items.loc[3, ['x0','y0','x1','y1']] = np.nan
    dls = data.dls(size, bs=4, parts=True, aug='none', num_workers=0)
    _,pb,yb = dls.test_dl(range(8), with_labels=True, bs=8).one_batch()
    assert pb.isnan().any(-1).tolist()[1]==[False,False,True] and len(yb)==8
    _,pb = dls.test_dl(range(8), bs=8).one_batch()
    assert pb[0].isfinite().any()
    for o in (tmp_path/'0.jpg', str(tmp_path/'0.jpg'), Image.open(tmp_path/'0.jpg')):
        _,p = dls.test_dl([o], num_workers=0).one_batch()
        assert p.shape==(1,3,2) and p.isnan().all()
    _,pb = data.dls(size, bs=4, parts='box', num_workers=0).test_dl([2,3,4]).one_batch()
    assert pb.isnan().all(1).tolist()==[False,True,False]

def test_ways_agree(tmp_path):
    "The short way to an item, fastai's, and two workers give the same; pictures and labels are those without parts"
    data = dotted(tmp_path)
    def batches(parts, quick=True, **kwargs):
        dls = data.dls(size, bs=8, parts=parts, aug='standard', seed=3, device='cpu', **kwargs)
        for dl in dls.loaders: dl.quick = dl.quick if quick else None
        res = [*dls.train, *dls.valid]
        assert (dls.train._sooner is not None)==quick
        return res
    def same(a, b): return torch.equal(torch.as_tensor(a).nan_to_num(7), torch.as_tensor(b).nan_to_num(7))
    for parts in (True, 'box'):
        ref = batches(parts, num_workers=0)
        assert [type(o) for o in ref[0]][1] is TensorParts
        for other in (batches(parts, quick=False, num_workers=0), batches(parts, num_workers=2)):
            assert all(same(a, b) and type(a)==type(b) for o,p in zip(ref, other, strict=True) for a,b in zip(o, p, strict=True))
        plain = batches(False, num_workers=0)
        assert all(same(o[0], p[0]) and same(o[2], p[1]) for o,p in zip(ref, plain, strict=True))

def test_twins():
    assert _twins(['beak', 'left eye', 'Right Eye', 'wing_left', 'wing_right', 'left leg', 'leftmost']).tolist()==[0,2,1,4,3,5,6]

def test_arrays_only():
    "Workers share the table of parts: no Python object per row"
    def size_of(n):
        parts = pd.DataFrame([(i,o,1.,2.,True) for i in range(n) for o in 'abc'], columns=['item','part','x','y','visible'])
        return len(pickle.dumps(PartsOf(FineGrainedData(pd.DataFrame(dict(path='a.jpg', label='a'), index=range(n)), parts=parts, valid=0))))
    assert size_of(1000)-size_of(10)<990*3*2*4+100

def test_wrong_asks(tmp_path):
    data = dotted(tmp_path)
    with pytest.raises(FineGrainedError, match="parts='eyes' is unknown"): data.dls(parts='eyes')
    bare = FineGrainedData(data.items[['path','label','split']], tmp_path, card=dict(title='Dots'))
    with pytest.raises(FineGrainedError, match='parts=True needs the places of parts, and Dots has none'): bare.dls(parts=True)
    with pytest.raises(FineGrainedError, match='Dots has none'): FineGrainedData(bare.items, tmp_path, parts=data.parts[:0], card=bare.card).dls(parts=True)
    with pytest.raises(FineGrainedError, match="parts='box' needs boxes, and Dots has none"): bare.dls(parts='box')
    for tfms in (Resize(64), [Resize(64)], CropResize(64)):
        with pytest.raises(FineGrainedError, match='leave `item_tfms` out'): data.dls(parts=True, item_tfms=tfms)
    for tfms in (aug_transforms(max_rotate=20), aug_transforms(size=32, min_scale=.5)):
        with pytest.raises(FineGrainedError, match='would move the pictures of a batch and not their parts'): data.dls(parts=True, batch_tfms=tfms)
    a,b = [data.dls(size, bs=8, parts=True, batch_tfms=o, num_workers=0, seed=0).one_batch() for o in (None, Brightness(.5, p=1.))]
    assert torch.equal(torch.as_tensor(a[1]).nan_to_num(7), torch.as_tensor(b[1]).nan_to_num(7)) and not torch.equal(a[0], b[0])

# ---- the pool ----

def slow_targets(places, h, w, sigma):
    "Place by place"
    res = np.zeros((*places.shape[:1], places.shape[1] if places.ndim==3 else 1, h, w))
    for b,k,i,j in np.ndindex(*res.shape):
        if places.ndim==2:
            x0,y0,x1,y1 = places[b].tolist()
            res[b,k,i,j] = max(min(x1*w, j+1)-max(x0*w, j), 0)*max(min(y1*h, i+1)-max(y0*h, i), 0)
        else:
            x,y = places[b,k].tolist()
            res[b,k,i,j] = math.exp(-((x*w-j-.5)**2+(y*h-i-.5)**2)/(2*sigma**2))
    return torch.tensor(res/res.sum((2,3), keepdims=True))

@pytest.mark.parametrize('h,w', [(1,1), (6,6), (3,7)])
def test_targets(h, w):
    torch.manual_seed(0)
    points = torch.rand(4,5,2)
    lo,hi = torch.rand(2, 4, 2).sort(0).values
    boxes = torch.cat([lo,hi], 1)
    for places in (points, boxes):
        true,known = part_targets(places, h, w, .7)
        assert known.all() and torch.allclose(true.double(), slow_targets(places, h, w, .7), atol=1e-5)
    points[1,2],points[2,0,1],boxes[3] = torch.nan,torch.nan,torch.nan
    true,known = part_targets(points, h, w)
    assert known.tolist()==[[(i,j) not in ((1,2),(2,0)) for j in range(5)] for i in range(4)]
    assert true.isfinite().all() and torch.allclose(true.sum((2,3)), known.float())
    assert part_targets(boxes, h, w)[1][:,0].tolist()==[True]*3+[False]
    assert part_targets(torch.tensor([[0.,0.],[1.,1.]])[None], 4, 4)[0].flatten(2).argmax(2).tolist()==[[0,15]]

def test_true_places_in_training():
    "given=1: the rows are those of the true places, those of the predicted ones where none is known; at test time they are never asked"
    torch.manual_seed(0)
    pool,maps,points = AnnotatedPartPool(8, 3, given=1.),torch.randn(4,8,5,6),torch.rand(4,3,2)
    points[0,1] = torch.nan
    true,_ = part_targets(points, 5, 6)
    at = pool.attention(maps)
    assert at.shape==(4,3,5,6) and torch.allclose(at.sum((2,3)), torch.ones(4,3), atol=1e-5)
    for training in (True,False):
        rows = pool.train(training)(maps, points=points).view(4, 4, 8)
        assert torch.allclose(rows[:,0], maps.mean((2,3)), atol=1e-6)
        for b in range(4):
            for k in range(3):
                where = true[b,k] if training and (b,k)!=(0,1) else at[b,k]
                assert torch.allclose(rows[b,k+1], (maps[b]*where).sum((1,2)), atol=1e-5)
    assert torch.equal(pool(maps), pool(maps, points=points))
    pool.train().given = 0.
    assert torch.allclose(pool(maps, points=points), pool.eval()(maps), atol=1e-6)
    pool.train().given = .5
    changed = torch.stack([(pool(maps, points=points)-pool(maps)).view(4,4,8)[:,1:].abs().amax(2)>1e-6 for _ in range(200)]).float().mean(0)
    assert changed[0,1]==0 and ((changed>.35)&(changed<.65)).sum()==11

def test_loss():
    "Against torch's own distributions; unknown parts do not count"
    torch.manual_seed(0)
    pool,maps,points = AnnotatedPartPool(8, 3, weight=.3),torch.randn(4,8,5,6),torch.rand(4,3,2)
    points[0,1] = torch.nan
    (name,weight,value), = pool.aux_losses(None, maps, points=points)
    true,known = part_targets(points, 5, 6)
    def dist(o): return torch.distributions.Categorical(probs=o[known].flatten(1).double())
    ref = torch.distributions.kl_divergence(dist(true+1e-30), dist(pool.attention(maps))).mean()
    assert (name,weight)==('places',.3) and abs(value.item()-ref.item())<1e-5
    value.backward()
    assert pool.where.weight.grad.abs().sum()>0
    blank = pool.aux_losses(None, maps, points=torch.full((4,3,2), torch.nan))[0][2]
    assert blank.item()==0 and blank.requires_grad
    assert AnnotatedPartPool(8, 3, weight=0).aux_losses(None, maps)==[]

def test_learns_the_places():
    "From maps that say where a part is, its place is learned, whatever the size of the map"
    torch.manual_seed(0)
    pool = AnnotatedPartPool(4, 2)
    opt = torch.optim.Adam(pool.parameters(), .1)
    def batch(h, w, n=32):
        points = torch.rand(n,2,2)*.8+.1
        return torch.cat([part_targets(points, h, w)[0], torch.rand(n,2,h,w)*.1], 1),points
    for _ in range(150):
        maps,points = batch(6, 6)
        opt.zero_grad()
        pool.aux_losses(None, maps, points=points)[0][2].backward()
        opt.step()
    for h,w in ((6,6), (4,9)):
        maps,points = batch(h, w)
        assert (pool.eval().locate(maps)-points).norm(dim=2).mean()<.08
    at = torch.zeros(1,4,5,10)
    at[0,0,1,7],at[0,1,4,2] = 1e4,1e4
    with torch.no_grad(): pool.where.weight.copy_(torch.eye(2,4)[...,None,None])
    assert torch.allclose(pool.locate(at), torch.tensor([[[.75,.3],[.25,.9]]]), atol=1e-5)

@pytest.mark.parametrize('dim', [None, 16])
@pytest.mark.parametrize('arch,px', [('toy_resnet',64), ('toy_resnet',96), ('vit_tiny_patch16_224',64), ('vit_tiny_patch16_224',96), ('swin_tiny_patch4_window7_224',64), ('swin_tiny_patch4_window7_224',96)])
def test_on_bodies(arch, px, dim):
    torch.manual_seed(0)
    body = Body(arch, pretrained=False, img_size=px)
    maps = body.eval()(torch.rand(2,3,px,px)).detach()
    pool,points = AnnotatedPartPool(body.nf, 3, dim=dim, given=1.),torch.tensor([[.1,.2],[.9,.9],[torch.nan]*2]).repeat(2,1,1)
    assert pool.nf==4*(dim or body.nf)
    for m in (maps, maps.to(memory_format=torch.channels_last), torch.zeros_like(maps), maps[...,:1,:1]):
        for training in (True,False):
            x = m.detach().clone().requires_grad_()
            rows = pool.train(training)(x, points=points)
            loss = rows.square().mean()+sum(w*v for _,w,v in pool.aux_losses(rows, x, points=points))
            pool.zero_grad()
            loss.backward()
            assert rows.shape==(2,pool.nf) and all(o.isfinite().all() for o in (rows, x.grad, *[p.grad for p in pool.parameters() if p.grad is not None]))
    with torch.no_grad():
        rows = pool(maps)
        with torch.autocast('cpu', torch.bfloat16): half = pool(maps)
    assert (half.float()-rows).norm()<.02*rows.norm()

def test_options():
    assert pools['annotated_parts'] is AnnotatedPartPool and AnnotatedPartPool(8).nf==16
    for kwargs,say in ((dict(parts=0),'parts=0'), (dict(parts=2.5),'parts=2.5'), (dict(dim=0),'dim=0'), (dict(given=1.2),'given=1.2'), (dict(sigma=0),'sigma=0')):
        with pytest.raises(FineGrainedError, match=say): AnnotatedPartPool(8, **kwargs)
    pool,maps = AnnotatedPartPool(8, 3),torch.randn(2,8,4,4)
    with pytest.raises(FineGrainedError, match='parts=5'): pool(maps, points=torch.rand(2,5,2))
    with pytest.raises(FineGrainedError, match='parts=1'): pool(maps, points=torch.rand(2,4))
    with pytest.raises(FineGrainedError, match=r'data.dls\(..., parts=True\)'): pool.aux_losses(None, maps)

# ---- together ----

@pytest.fixture(scope='module')
def birds(tmp_path_factory): return toy_birds(tmp_path_factory.mktemp('birds'), families=2, species=2, per_class=10, size=64)

@pytest.mark.parametrize('parts', [True, 'box'])
def test_learner(birds, parts):
    dls = birds.dls(size=64, bs=8, parts=parts, num_workers=0, seed=0, device='cpu')
    learn = fine_grained_learner(dls, 'toy_resnet', pool=partial(AnnotatedPartPool, parts=len(dls.parts), dim=32))
    where = learn.model.pool.where.weight.detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        assert (learn.model.pool.where.weight-where).abs().max()>1e-3 # by the loss of its places and of the labels
        preds,targs = learn.get_preds()
        rows = birds['valid'].index
        assert torch.allclose(learn.get_preds(dl=dls.test_dl(rows))[0], preds, atol=1e-5) # without labels
        assert torch.allclose(learn.get_preds(dl=dls.test_dl([birds.path(i) for i in rows]))[0], preds, atol=1e-5) # and without places
        assert torch.allclose(learn.predict(birds.path(rows[0]))[2], preds[0], atol=1e-5)
        learn.show_results(max_n=4)
        dls.show_batch(max_n=4)
        dls.show_batch(max_n=4, boxes=True)
        dls.valid.show_batch(max_n=4)

def test_mixing_is_refused(birds):
    "Mixed pictures have two sets of parts"
    dls = birds.dls(size=64, bs=8, parts=True, num_workers=0, device='cpu')
    for cb in (MixUp(), CutMix()):
        learn = fine_grained_learner(dls, 'toy_resnet', pool=partial(AnnotatedPartPool, parts=len(dls.parts)))
        with learn.no_bar(), learn.no_logging(), pytest.raises(FineGrainedError, match='Mix mixes pictures'): learn.fit(1, cbs=cb)
