"Holes, evidence, attention crop and drop, groups of augmentations and the report: against loops, closed forms and themselves, in training and when it is stopped"
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback, CancelBatchException, CancelFitException
from fastai.losses import CrossEntropyLossFlat, FocalLossFlat, LabelSmoothingCrossEntropyFlat
from fastai.torch_core import TensorImage, set_seed
from fgvc_fast.all import (AttentionCrop, CutMix, Cutout, Erase, Mix, PartPool, aug_groups, erase, evidence, fine_grained_data, fine_grained_learner,
    fine_grained_model, random_boxes, square_boxes)
from fgvc_fast.core import FineGrainedError
from functools import partial
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from stops import StopAt

@pytest.fixture(autouse=True)
def seed(one_thread): set_seed(0)

@pytest.fixture(scope='module')
def birds(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=48)

@pytest.fixture(scope='module')
def dls(birds): return birds.dls(48, bs=7, num_workers=0, device='cpu', seed=0)

def learner(dls, **kwargs): return fine_grained_learner(dls, 'toy_resnet', **kwargs)

def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn

# holes

@pytest.mark.parametrize('n', [1, 5])
@pytest.mark.parametrize('boxes', [partial(square_boxes, size=.5), random_boxes])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_holes_are_the_loop(n, boxes, dtype):
    x = torch.rand(n, 3, 11, 8).to(dtype)
    b = boxes(n, 11, 8)
    want = x.clone()
    for i,(top,bottom,left,right) in enumerate(b.tolist()):
        assert 0<=top<=bottom<=11 and 0<=left<=right<=8
        want[i,:,top:bottom,left:right] = torch.tensor([.1,.2,.3], dtype=dtype)[:,None,None]
    res = erase(x, b, (.1,.2,.3))
    assert torch.equal(res, want) and res.dtype==dtype

def test_rectangles_have_the_area_and_shape_asked_for():
    t,b,l,r = random_boxes(4000, 200, 300, area=(.1,.2), aspect=(.5,2)).double().T
    area,aspect = (b-t)*(r-l)/60000,(b-t)/(r-l)
    assert area.min()>.098 and area.max()<.202 and aspect.min()>.48 and aspect.max()<2.05
    assert abs(area.mean()-.15)<.002 and abs(aspect.log().mean())<.03 # evenly, and as often high as wide
    assert (t==0).float().mean()<.02 and b.max()==200 and l.min()==0 and r.max()==300

def test_squares_are_centred_anywhere():
    t,b,_,_ = square_boxes(6000, 6, 9, .5).T
    np.testing.assert_allclose(torch.bincount(t).div(6000), [2/6]+[1/6]*4, atol=.03) # centre 0..5, height 3: tops 0,0,1,2,3,4
    assert set((b-t).tolist())=={2,3}

@pytest.mark.parametrize('cb', [Erase, Cutout])
def test_validation_and_labels_are_left_alone(dls, cb):
    seen = []
    class Spy(Callback):
        order = 50
        def before_batch(self): seen.append((self.training, self.xb[0].clone(), self.yb[0]))
    fit(learner(dls), 1, cbs=[Spy()])
    plain,seen[:] = list(seen),[]
    fit(learner(dls), 1, cbs=[cb(p=1.), Spy()])
    assert all(torch.equal(a[1], b[1]) and torch.equal(a[2], b[2]) for a,b in zip(plain, seen) if not a[0])
    assert all(type(b[1]) is type(a[1]) and b[1].shape==a[1].shape for a,b in zip(plain, seen))

def test_p_of_holes(dls):
    learn,x = learner(dls),torch.rand(4000, 3, 8, 8)
    for p in (0., .3, 1.):
        cb = Cutout(.5, p=p, fill=2.)
        cb.learn,learn.xb,learn.yb = learn,(x,'points'),()
        cb.before_batch()
        assert abs((learn.xb[0]==2).flatten(1).any(1).float().mean()-p)<(.03 if 0<p<1 else 1e-9) and learn.xb[1]=='points'

# evidence

def test_evidence_is_the_cam_in_double_precision():
    model = fine_grained_model('toy_resnet', 5, img_size=48).double().eval()
    head,x,y = model.head,torch.rand(3, 3, 48, 48).double(),torch.tensor([4,0,2])
    head.norm.running_mean.normal_(), head.norm.running_var.uniform_(.5, 2), nn.init.uniform_(head.norm.weight), nn.init.uniform_(head.fc.weight, -.5, 1)
    with torch.no_grad(): maps = model.maps(x)
    got,some = evidence(model, x, y),0
    for i in range(3):
        cam = torch.zeros(maps.shape[2:])
        for k in range(maps.shape[1]):
            w = (head.fc.weight[y[i],k]-head.fc.weight[:,k].mean())*head.norm.weight[k]*head.norm.scale/(head.norm.running_var[k]+head.norm.eps).sqrt()
            cam += (w*maps[i,k]).float().detach()
        cam = F.interpolate(cam.relu()[None,None], (48,48), mode='bilinear')[0,0]
        some += (cam>0).any()
        if not (cam>0).any(): cam += 1 # none: the same everywhere
        torch.testing.assert_close(got[i].float(), cam/cam.sum(), atol=1e-6, rtol=1e-3)
    assert some

def test_what_evidence_costs_is_nothing_that_stays():
    model = fine_grained_model('toy_resnet', 4, pool=partial(PartPool, parts=2), branch=-2, zoom=True, img_size=48).train()
    model.body.eval()
    x,y = TensorImage(torch.rand(2, 3, 48, 48)),torch.tensor([1,3])
    model(x)
    for p in list(model.parameters())[::2]: p.requires_grad_(False)
    def state():
        return [m.training for m in model.modules()],[p.requires_grad for p in model.parameters()],{k: v.clone()
            for k,v in model.state_dict().items()},len(model.traces),torch.get_rng_state()
    a = state()
    e = evidence(model, x, y)
    b = state()
    assert a[:2]==b[:2] and a[3]==b[3] and torch.equal(a[4], b[4]) and all(torch.equal(v, b[2][k]) for k,v in a[2].items())
    assert all(p.grad is None for p in model.parameters()) and not e.requires_grad and not x.requires_grad
    body = nn.Sequential(nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))
    evidence(body, x, y)
    assert not x.requires_grad # where the map is the picture itself

def test_evidence_under_autocast_is_nearly_that_without():
    model,x,y = fine_grained_model('toy_resnet', 4, img_size=48).eval(),torch.rand(5, 3, 48, 48),torch.tensor([1,3,0,2,2])
    full = evidence(model, x, y)
    with torch.autocast('cpu', torch.bfloat16): half = evidence(model, x, y)
    assert half.dtype==torch.float32 and (full-half).abs().sum((1,2)).max()<.1

# crop and drop

@pytest.mark.parametrize('crop,drop', [(1.,0.), (0.,1.), (.25,.25), (.02,0.)])
def test_attend_changes_the_pictures_it_should(dls, crop, drop):
    learn,x = learner(dls),torch.rand(300, 3, 48, 48)
    cb = AttentionCrop(crop, drop)
    cb.learn,learn.xb,learn.yb = learn,(x,),(torch.arange(300)%4,)
    cb.before_batch()
    changed = (learn.xb[0]!=x).flatten(1).any(1).float().mean()
    assert abs(changed-(crop+drop))<(.05 if crop+drop==1 else .1) # where there is no evidence, nothing is dropped
    assert crop+drop>.1 or changed<.08
    assert learn.xb[0].min()>=0 and learn.xb[0].max()<=1

def test_a_crop_is_nearer_and_a_drop_takes_the_strongest(dls):
    learn = fit(learner(dls), 3, 5e-3)
    x,y = next(iter(dls.valid))
    e,seen = evidence(learn.model, x, y),[]
    for crop in (True,False):
        cb = AttentionCrop(float(crop), float(not crop), crop_at=.5, drop_at=.5, pad=0)
        cb.learn,learn.xb,learn.yb = learn,(x,),(y,)
        cb.before_batch()
        for o,p,m in zip(x, learn.xb[0], e):
            on = (m-m.min())/(m.max()-m.min())>.5
            if not on.any(): continue # no evidence
            seen.append(crop)
            rows,cols = on.any(1).nonzero()[[0,-1],0],on.any(0).nonzero()[[0,-1],0]
            if crop: want = F.interpolate(o[None,:,rows[0]:rows[1]+1,cols[0]:cols[1]+1].as_subclass(torch.Tensor), o.shape[-2:], mode='bilinear')[0]
            else: want = torch.where(on, o.mean((1,2))[:,None,None], o)
            torch.testing.assert_close(p.as_subclass(torch.Tensor), want.as_subclass(torch.Tensor), atol=1e-4, rtol=0)
    assert set(seen)=={True,False}

# in training, all together

all_cbs = dict(snapmix=lambda: [Mix(snapmix=5.)], all_mixes=lambda: [Mix(.4, 1., 5.)], erase=lambda: [Erase()], cutout=lambda: [Cutout()],
    attend=lambda: [AttentionCrop()],
    everything=lambda: [AttentionCrop(), Cutout(), Mix(.4, 1., 5., weights=(1,1,3))])

losses = [CrossEntropyLossFlat(), LabelSmoothingCrossEntropyFlat(eps=.1), FocalLossFlat(), partial(F.cross_entropy, label_smoothing=.1),
    nn.CrossEntropyLoss(torch.tensor([1.,2.,3.,4.]))]

@pytest.mark.parametrize('name,loss', [*[(o, losses[0]) for o in all_cbs], *[('everything', o) for o in losses[1:]]])
def test_one_short_fit(dls, name, loss):
    learn = fit(learner(dls, loss_func=loss), 1, 1e-3, cbs=all_cbs[name]())
    assert np.isfinite(learn.recorder.values[-1]).all() and learn.loss_func is loss

@pytest.mark.parametrize('kw', [dict(amp='bf16'), dict(pool=partial(PartPool, parts=2), branch=-2, zoom=True), dict(head='levels'), dict(pool='gem', head='cosine')], ids=str)
def test_with_every_kind_of_model(dls, kw):
    learn = fit(learner(dls, **kw), 1, 1e-3, cbs=all_cbs['everything']())
    assert np.isfinite(learn.recorder.values[-1]).all() and learn.model.traces==[] and not torch.is_autocast_enabled('cpu')

@pytest.mark.parametrize('name', all_cbs)
def test_a_batch_of_one(birds, name):
    one = birds.subset(per_class=2).dls(48, bs=1, num_workers=0, device='cpu')
    fit(learner(one, head=lambda nf,n,drop: nn.Linear(nf, n)), 1, 1e-3, cbs=all_cbs[name]()) # a head without a batch norm, which wants two

@pytest.mark.parametrize('ex', [CancelFitException, CancelBatchException, KeyboardInterrupt])
@pytest.mark.parametrize('ev', ['before_batch','after_loss'])
def test_nothing_stays_behind(dls, ev, ex):
    learn = learner(dls)
    cbs,loss,mine = sorted(type(o).__name__ for o in learn.cbs),learn.loss_func,all_cbs['everything']()
    try: fit(learn, 1, 1e-3, cbs=[*mine, StopAt(ev, 2, ex, training=True)])
    except KeyboardInterrupt: assert ex is KeyboardInterrupt
    assert sorted(type(o).__name__ for o in learn.cbs)==cbs and learn.loss_func is loss and all(p.requires_grad for p in learn.model.parameters())
    learn.model.eval()
    with torch.no_grad():
        want = F.cross_entropy(torch.cat([learn.model(x) for x,_ in dls.valid]), torch.cat([y for _,y in dls.valid]).as_subclass(torch.Tensor))
    with learn.no_bar(): assert abs(learn.validate()[0]-want)<1e-4

# groups

@pytest.mark.parametrize('name', aug_groups)
def test_groups_train(birds, name):
    dls = birds.dls(48, bs=7, aug=['light',name], num_workers=0, device='cpu')
    assert np.isfinite(fit(learner(dls), 1, 1e-3).recorder.values[-1]).all()

def test_groups_repeat_with_the_seed_and_in_workers(birds):
    kw = dict(bs=7, aug=['standard','geometric','color','pose','trivialaugment',v2.RandomGrayscale(.5)], device='cpu')
    a,b,c = [birds.dls(48, num_workers=n, seed=s, **kw) for n,s in ((0,3), (2,3), (0,4))]
    for _ in range(2):
        xa,xb,xc = [torch.cat([x for x,_ in o.train]) for o in (a, b, c)]
        assert torch.equal(xa, xb) and not torch.equal(xa, xc)
    plain = birds.dls(48, bs=7, num_workers=0, device='cpu')
    assert torch.equal(torch.cat([x for x,_ in a.valid]), torch.cat([x for x,_ in plain.valid])) # only in training

def test_each_group_changes_pictures_and_keeps_their_form(birds):
    x = (torch.cat([o for o,_ in birds.dls(48, bs=7, num_workers=0, device='cpu').valid])*255).byte().as_subclass(torch.Tensor)
    for name,t in aug_groups.items():
        res = torch.stack([t(o) for o in x.repeat(4, 1, 1, 1)])
        assert res.dtype==torch.uint8 and res.shape[1:]==x.shape[1:] and (res!=x.repeat(4, 1, 1, 1)).flatten(1).any(1).float().mean()>.6, name

def test_wrong_groups(birds):
    for aug,said in (('wild', "aug='wild' is unknown"), (['light','strong'], 'both levels'), ([v2.Resize(16)], 'Resize make'), ([v2.ToDtype(torch.float32)], 'ToDtype make')):
        with pytest.raises(FineGrainedError, match=said): birds.dls(48, aug=aug)
    with pytest.raises(FineGrainedError, match='or `parts` out'): birds.dls(48, parts=True, aug=['light','pose'])

# the report

def test_the_report_can_be_stopped_and_leaves_all_as_it_was(birds, dls):
    learn = learner(dls)
    fit(learn, 1, 1e-3)
    before,values,opt = {k: v.clone() for k,v in learn.model.state_dict().items()},list(learn.recorder.values),learn.opt
    rng = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt): learn.mix_report(CutMix(), StopAt('after_loss', 2, training=True), epochs=1, seeds=3)
    assert all(torch.equal(v, before[k]) for k,v in learn.model.state_dict().items()) and learn.recorder.values==values and learn.opt is opt
    assert torch.equal(torch.get_rng_state(), rng)

def test_the_report_sees_what_hurts(tmp_path):
    for i in range(60): Image.new('RGB', (32,32), ('red','blue')[i%2]).save(tmp_path/f'{i}.png')
    flags = fine_grained_data(pd.DataFrame(dict(path=[f'{i}.png' for i in range(60)], label=['red','blue']*30, split=['train']*20+['valid']*40)), root=tmp_path)
    learn = learner(flags.dls(32, bs=10, num_workers=0, cache=False, device='cpu'))
    fit(learn, 20, 1e-2) # until batch norm knows its means
    class Swap(Callback):
        "Teaches every picture the other label"
        order,run_valid = -20,False
        def before_batch(self): self.learn.yb = 1-self.yb[0],
    class Nothing(Callback): pass
    report = learn.mix_report(Swap(), Nothing(), epochs=2, seeds=3, lr=1e-2)
    assert report.accuracy.iloc[0]==1 and report.verdict.tolist()==['','hurts','cannot be told apart'] and report.difference.iloc[2]==0

def test_the_same_seeds_are_the_same_report(dls):
    learn = learner(dls)
    a,b = [learn.mix_report(CutMix(), epochs=1, seeds=[3,4,5], lr=1e-2) for _ in range(2)]
    assert a.equals(b) and a.index.tolist()==['as it is','CutMix(cutmix=1)']
