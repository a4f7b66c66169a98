"Learned parts: the pool against a slow loop, its centres, crop and drop against known boxes, and the closer look"
import copy, math, pickle
import pytest, torch
from torch import nn
from torch.nn import functional as F
from fastai.vision.core import TensorImage
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.body import Body
from fgvc_fast.models.head import LinearHead
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.models.parts import ZoomIn, PartPool, attention_crop, attention_drop, part_hits
from fgvc_fast.models.pool import MeanPool
from fgvc_fast.models.pools import pools

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

# Pool

def slow_rows(pool, maps):
    "The paper's sums, part by part, channel by channel and place by place, in float64"
    pool,maps = copy.deepcopy(pool).double(),maps.double()
    a,maps = pool.attention(maps),pool.reduce(maps)
    B,C,h,w = maps.shape
    rows = torch.zeros(B, pool.parts*C, dtype=torch.float64)
    for b in range(B):
        for k in range(pool.parts):
            for c in range(C):
                f = sum(a[b,k,i,j].item()*maps[b,c,i,j].item() for i in range(h) for j in range(w))/(h*w)
                rows[b,k*C+c] = math.copysign(math.sqrt(abs(f)+1e-6), f) if f else 0
        rows[b] /= math.sqrt(sum(float(o)**2 for o in rows[b])) or 1
    return rows

@pytest.mark.parametrize('size', [(1,1), (3,2), (4,5)], ids=str)
@pytest.mark.parametrize('dim', [None,4])
@pytest.mark.parametrize('training', [True,False])
def test_rows(size, dim, training):
    pool,maps = PartPool(6, parts=3, dim=dim).train(training),torch.randn(3, 6, *size)
    ref = slow_rows(pool, maps)
    rows = pool(maps)
    assert rows.shape==(3,pool.nf) and pool.nf==3*(dim or 6) and rows.dtype==torch.float32
    torch.testing.assert_close(rows.double(), ref, rtol=1e-4, atol=1e-5)

def test_registered_by_name():
    model = fine_grained_model('resnet18', 5, 'parts', pretrained=False, img_size=64)
    assert pools['parts'] is PartPool and model.pool.nf==8*512 and model(torch.rand(2, 3, 64, 64)).shape==(2,5)

def test_attention_goes_with_the_places():
    "Mirrored or shuffled places: the attention goes along, the row stays"
    pool,maps = PartPool(16, parts=4, dim=8).eval(),torch.randn(2, 16, 5, 7)
    a = pool.attention(maps)
    assert a.shape==(2,4,5,7) and (a>=0).all() and (a>0).any()
    for dims in ((3,), (2,), (2,3)):
        torch.testing.assert_close(pool.attention(maps.flip(dims)), a.flip(dims))
        torch.testing.assert_close(pool(maps.flip(dims)), pool(maps), rtol=1e-4, atol=1e-5)
    order = torch.randperm(35)
    torch.testing.assert_close(pool(maps.flatten(2)[:,:,order].unflatten(2, (5,7))), pool(maps), rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('dim', [None,4])
def test_gradient_reaches_every_parameter(dim):
    pool,maps = PartPool(8, parts=3, dim=dim),torch.randn(4, 8, 3, 3, requires_grad=True)
    LinearHead(pool.nf, 5)(pool(maps)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max()>0 for p in pool.parameters())
    assert maps.grad.isfinite().all() and (maps.grad!=0).any((1,2,3)).all()

@pytest.mark.parametrize('dim', [None,4])
@pytest.mark.parametrize('training', [True,False])
@pytest.mark.parametrize('bias', [0.,1.,-1.])
def test_nothing_to_see(dim, training, bias):
    "Maps of zeros, and attention that is dead or everywhere"
    pool,maps = PartPool(8, parts=3, dim=dim).train(training),torch.zeros(2, 8, 3, 3, requires_grad=True)
    nn.init.constant_(pool.look[1].bias, bias)
    rows = pool(maps)
    assert rows.isfinite().all()
    (rows.sum() + sum(w*v for _,w,v in pool.aux_losses(rows, maps))).backward()
    assert maps.grad.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in pool.parameters())

@pytest.mark.parametrize('arch', ['toy_resnet', 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224'])
@pytest.mark.parametrize('size', [64,96])
def test_bodies(arch, size):
    kw = {'toy_resnet': {}, 'swin_tiny_patch4_window7_224': dict(depths=(1,1,1,1))}.get(arch, dict(depth=2))
    body = Body(arch, pretrained=False, img_size=size, **kw).eval()
    with torch.no_grad(): maps = body(torch.rand(2, 3, size, size))
    for training in (True,False):
        pool = PartPool(body.nf, parts=4, dim=32).train(training)
        rows,grads = [],[]
        for half in (False,True):
            twin,m = copy.deepcopy(pool),maps.clone().requires_grad_()
            with torch.autocast('cpu', torch.bfloat16, enabled=half):
                r = twin(m)
                side = twin.aux_losses(r, m)
            (r.square().cumsum(1).sum() + sum(w*v for _,w,v in side)).backward()
            assert r.shape==(2,pool.nf) and r.dtype==side[0][2].dtype==twin.centers.dtype==torch.float32
            assert r.isfinite().all() and all(g.isfinite().all() for g in (m.grad, *(p.grad for p in twin.parameters())))
            rows.append(r.detach())
        cos = F.cosine_similarity(*rows)
        assert (cos>.99).all(), cos

def test_channels_last_is_no_difference():
    pool,maps = PartPool(16, parts=4).eval(),torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(pool.to(memory_format=torch.channels_last)(maps.to(memory_format=torch.channels_last)), pool(maps))

def test_bad_options():
    for kw,said in ((dict(parts=9),'parts=9 .* 8 channels'), (dict(parts=0),'parts=0'), (dict(dim=9),'dim=9'), (dict(dim=0),'dim=0')):
        with pytest.raises(FineGrainedError, match=said): PartPool(8, **kw)

# Centres

def test_centres_follow_in_closed_form():
    pool = PartPool(6, parts=2, beta=.2)
    seen = [F.normalize(torch.randn(5, 12)) for _ in range(6)]
    for t,rows in enumerate(seen):
        c = sum(.2*.8**(t-1-s)*o.mean(0) for s,o in enumerate(seen[:t])) if t else torch.zeros(12)
        rows = rows.clone().requires_grad_()
        (name,weight,value), = pool.aux_losses(rows)
        want = sum(((r-c)**2).sum() for r in rows.detach())/5
        assert (name,weight)==('centers',1.)
        torch.testing.assert_close(value.detach(), want)
        value.backward()
        torch.testing.assert_close(rows.grad, 2*(rows.detach()-c)/5) # the centre itself gets none
    torch.testing.assert_close(pool.centers, sum(.2*.8**(5-s)*o.mean(0) for s,o in enumerate(seen)))

def test_centres_move_once_a_step_and_only_in_training():
    pool,maps = PartPool(6, parts=2),torch.randn(4, 6, 3, 3)
    for _ in range(3): pool(maps)      # crops and drops pass here too
    assert not pool.centers.any()
    rows = pool(maps)
    with torch.no_grad(): pool.aux_losses(rows, maps)
    pool.eval().aux_losses(rows, maps)
    assert not pool.centers.any()
    pool.train().aux_losses(rows, maps)
    torch.testing.assert_close(pool.centers, .05*rows.detach().mean(0))

def test_centres_survive():
    pool,rows = PartPool(6, parts=2),F.normalize(torch.randn(4, 12))
    pool.aux_losses(rows)
    was = pool.centers.clone()
    for twin in (copy.deepcopy(pool), pickle.loads(pickle.dumps(pool))): assert torch.equal(twin.centers, was)
    fresh = PartPool(6, parts=2)
    fresh.load_state_dict(pool.state_dict())
    assert torch.equal(fresh.centers, was)
    twin = copy.deepcopy(pool)
    twin.aux_losses(rows)
    assert torch.equal(pool.centers, was) and not torch.equal(twin.centers, was)
    for bad in (math.nan, math.inf): pool.aux_losses(torch.full_like(rows, bad)) # a step that a gradient scaler would skip
    assert torch.equal(pool.centers, was)
    with torch.autocast('cpu', torch.bfloat16): pool.aux_losses(rows.bfloat16())
    assert pool.centers.dtype==torch.float32
    torch.testing.assert_close(pool.centers, was + .05*(rows.bfloat16().float().mean(0)-was))

# Crop and drop

def boxed(n, h, w, *boxes):
    a = torch.zeros(n, h, w)
    for m,(x0,y0,x1,y1) in zip(a, boxes): m[y0:y1,x0:x1] = 1
    return a

def test_known_boxes():
    boxes = (10,4,30,20),(0,0,5,40),(50,30,60,40),(0,0,60,40)
    x,a = torch.rand(4, 3, 40, 60),boxed(4, 40, 60, *boxes)
    a[3] = 0
    for pad,(dx,dy) in {0: (0,0), .1: (6,4)}.items():
        for im,got,(x0,y0,x1,y1) in zip(x, attention_crop(x, a, .5, pad), boxes):
            cut = im[:, max(y0-dy,0):min(y1+dy,40), max(x0-dx,0):min(x1+dx,60)]
            torch.testing.assert_close(got, F.interpolate(cut[None], (40,60), mode='bilinear')[0], rtol=0, atol=1e-4)
    got = attention_drop(x, a, .5)
    for im,out,m in zip(x, got, a):
        assert torch.equal(out[:,m==0], im[:,m==0])
        torch.testing.assert_close(out[:,m==1], im.mean((1,2))[:,None].expand(-1, int(m.sum())))

@pytest.mark.parametrize('low', [(3,5), (1,4), (1,1)], ids=str)
def test_crop_is_what_a_loop_makes(low):
    x,a = torch.rand(12, 3, 48, 64),torch.rand(12, *low)**4*torch.rand(12, 1, 1)*9
    for thresh in (.1,.5,.9):
        for im,m,got in zip(x, a, attention_crop(x, a, thresh, .05)):
            big = F.interpolate(m[None,None], (48,64), mode='bilinear')[0,0]
            big = (big-big.min())/(big.max()-big.min()).clamp(min=1e-7)
            lit = [(i,j) for i in range(48) for j in range(64) if big[i,j]>thresh] or [(0,0),(47,63)]
            y0,y1,x0,x1 = (f(o[k] for o in lit) for k in (0,1) for f in (min,max))
            cut = im[:, max(y0-2,0):y1+1+2, max(x0-3,0):x1+1+3]
            torch.testing.assert_close(got, F.interpolate(cut[None], (48,64), mode='bilinear')[0], rtol=0, atol=1e-4)

def test_each_picture_draws_its_own_threshold():
    "On a ramp the share that is hidden tells the threshold"
    x,n = torch.rand(200, 3, 1, 1001),1001
    ramp = torch.linspace(0, 1, n).expand(200, 1, n)
    t = 1-(attention_drop(x, ramp, (.2,.5))!=x).any(1).float().mean((1,2))
    assert t.min()>=.199 and t.max()<=.501 and t.std()>.07 and abs(t.mean()-.35)<.03
    fixed = (attention_drop(x, ramp, .3)!=x).any(1).float().mean((1,2))
    assert (fixed-.7).abs().max()<.002
    state = torch.get_rng_state()
    attention_drop(x, ramp, .3)
    assert torch.equal(torch.get_rng_state(), state) # evaluation leaves the generator alone
    torch.manual_seed(3)
    a = attention_drop(x, ramp)
    assert not torch.equal(a, attention_drop(x, ramp))
    torch.manual_seed(3)
    assert torch.equal(a, attention_drop(x, ramp))

@pytest.mark.parametrize('f', [attention_crop,attention_drop])
def test_mirrored_pictures_and_odd_input(f):
    x,a = torch.rand(3, 3, 32, 32),torch.rand(3, 4, 4)
    for d in (1,2): torch.testing.assert_close(f(x.flip(d+1), a.flip(d), .5), f(x, a, .5).flip(d+1), rtol=0, atol=1e-4)
    torch.testing.assert_close(f(x, a*7-3, .5), f(x, a, .5), rtol=0, atol=1e-4) # spread, so scale and offset are nothing
    for empty in (a*0, a*0+2, a*math.nan): torch.testing.assert_close(f(x, empty), x, rtol=0, atol=1e-4)
    assert f(x.half(), a.half(), .5).dtype==torch.half and f(TensorImage(x), a, .5).shape==x.shape
    torch.testing.assert_close(f(x.to(memory_format=torch.channels_last), a, .5), f(x, a, .5))
    for bad in (a[:2], a[:,None], a[0]):
        with pytest.raises(FineGrainedError, match='one map'): f(x, bad)
    for bad in (1.,-.1,(.5,.4),(.5,2)):
        with pytest.raises(FineGrainedError, match='thresh='): f(x, a, bad)

# The closer look

class Maps(nn.Module):
    "A pool whose attention is the picture itself"
    def attention(self, maps): return maps

def test_bright_maps_are_drawn_more_often():
    "Three maps of one box each, with means as 1:3:0: what is dropped tells which was drawn"
    n = 2000
    maps = torch.zeros(n, 3, 4, 4)
    maps[:,0,0,0],maps[:,1,3,3] = 1,3
    x = torch.rand(n, 3, 4, 4)
    (_,_,y), = ZoomIn(crop=0, drop_at=.5).train_aux(x, maps, Maps(), lambda x: x)
    changed = (y!=x).any(1)
    assert changed.sum((1,2)).eq(1).all() and (changed[:,0,0]|changed[:,3,3]).all()
    assert abs(changed[:,3,3].float().mean()-.75)<.04

def toy_model():
    model = fine_grained_model('toy_resnet', 4, 'parts', pretrained=False)
    return model, torch.rand(4, 3, 64, 64)

def test_train_sides():
    model,x = toy_model()
    maps = model.maps(x)
    torch.manual_seed(5)
    aux_losses = ZoomIn(crop=.5, drop=2.).train_aux(x, maps, model.pool, model)
    assert [(n,w,tuple(v.shape)) for n,w,v in aux_losses]==[('crop',.5,(4,4)), ('drop',2.,(4,4))]
    torch.manual_seed(5)
    again = ZoomIn(crop=.5, drop=2.).train_aux(x, maps, model.pool, model)
    for a,b in zip(aux_losses, again): torch.testing.assert_close(a[2], b[2])
    grad, = torch.autograd.grad(sum(v.sum() for _,_,v in aux_losses), maps, allow_unused=True)
    assert grad is None # where to look carries no gradient
    F.cross_entropy(aux_losses[0][2], torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())
    for empty in (maps*0, maps*math.nan): # neither stops a training, nor a GPU
        assert len(ZoomIn().train_aux(x, empty, model.pool, model))==2
    assert ZoomIn(crop=0, drop=0).train_aux(x, maps, model.pool, model)==[]

def test_refine():
    model,x = toy_model()
    model.eval()
    with torch.no_grad():
        maps,logits = model.maps(x),model(x)
        got = ZoomIn().refine(x, maps, model.pool, logits, model)
        ps = []
        for im,m in zip(x, model.pool.attention(maps).mean(1)): # one at a time
            big = F.interpolate(m[None,None], (64,64), mode='bilinear')[0,0]
            ys,xs = ((big-big.min())/(big.max()-big.min())>.3).nonzero().T
            cut = im[:, max(ys.min()-6,0):ys.max()+7, max(xs.min()-6,0):xs.max()+7]
            ps.append((model(im[None]).softmax(1)+model(F.interpolate(cut[None], (64,64), mode='bilinear')).softmax(1))/2)
        torch.testing.assert_close(got.exp(), torch.cat(ps), rtol=1e-3, atol=1e-4)
        far = torch.tensor([[1e4,-1e4,0,0]]).expand(4, 4)
        assert ZoomIn().refine(x, maps, model.pool, far, lambda _: far.flip(1)).isfinite().all()
        torch.testing.assert_close(ZoomIn().refine(x, maps, model.pool, logits, lambda _: logits), logits.log_softmax(1))

def test_a_pool_without_attention_is_one_error():
    x = torch.rand(2, 3, 8, 8)
    for f in (lambda: ZoomIn().train_aux(x, x, MeanPool(3), None), lambda: ZoomIn().refine(x, x, MeanPool(3), None, None)):
        with pytest.raises(FineGrainedError, match='MeanPool attends to no parts'): f()

# Hits

def test_part_hits():
    a,points = torch.rand(9, 4, 5, 6),torch.rand(9, 3, 2)
    points[2,1] = points[5,1] = math.nan
    got = part_hits(a, points, .3)
    for k in range(4):
        for p in range(3):
            hits = []
            for m,(x,y) in zip(a[:,k], points[:,p].tolist()):
                i,j = max(((i,j) for i in range(5) for j in range(6)), key=lambda o: m[o])
                if x==x: hits.append(math.dist(((j+.5)/6,(i+.5)/5), (x,y))<.3)
            assert abs(got[k,p]-sum(hits)/len(hits))<1e-6
    assert got.shape==(4,3) and 0<got.mean()<1
