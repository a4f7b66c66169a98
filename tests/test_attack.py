"Attacks: against captum, against a slow loop, on every kind of model, and the model as it was"
import copy
import numpy as np, pytest, torch
from torch.nn import functional as F
from fgvc_fast.core import FineGrainedError
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.robust.attack import _allowed, attacks, bim, fgsm, pgd

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def asked():
    torch.manual_seed(0)
    model = fine_grained_model('resnet18', 5, pretrained=False, img_size=64).eval()
    for m in model.modules():
        if getattr(m, 'running_mean', None) is not None: m.running_mean.uniform_(-.1, .1)
    return model,torch.rand(4, 3, 64, 64),torch.tensor([0,1,2,3])

@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('eps', [0., .01, .1])
def test_against_captum(asked, eps, targeted):
    from captum.robust import FGSM, PGD
    model,x,y = asked
    model,x = copy.deepcopy(model).double(),x.double()
    loss = torch.nn.CrossEntropyLoss(reduction='none')
    one,many = FGSM(model, loss, 0., 1.),PGD(model, loss, 0., 1.)
    one.zero_thresh = many.fgsm.zero_thresh = 0. # below 1e-6 captum takes a gradient for none
    ref = one.perturb(x, eps, y, targeted=targeted)
    torch.testing.assert_close(fgsm(model, x, y, eps, targeted=targeted), ref.detach(), atol=1e-5, rtol=0)
    ref = many.perturb(x, eps, .004, 5, y, targeted=targeted)
    torch.testing.assert_close(bim(model, x, y, eps, 5, .004, targeted=targeted), ref.detach(), atol=1e-5, rtol=0)

def test_l2_against_a_loop(asked):
    "Picture by picture, in double precision"
    model,x,y = asked
    got = bim(model, x, y, 2., 4, .8, 'l2')

    m = copy.deepcopy(model).double()
    for p,t,g in zip(x.double(), y, got):
        now = p
        for _ in range(4):
            now = now.detach().requires_grad_()
            F.cross_entropy(m(now[None]), t[None]).backward()
            d = now.detach()+.8*now.grad/now.grad.norm()-p
            if d.norm()>2: d = d*2/d.norm()
            now = (p+d).clamp(0, 1)
        torch.testing.assert_close(g.double(), now, atol=1e-3, rtol=0)

@pytest.mark.parametrize('name', attacks)
def test_a_picture_does_not_depend_on_its_batch(asked, name):
    model,x,y = asked
    kw = {} if name=='fgsm' else dict(steps=3)
    if name=='pgd': return torch.testing.assert_close(*[pgd(model, x, y, .05, generator=torch.Generator().manual_seed(0), **kw) for _ in range(2)])
    whole = attacks[name](model, x, y, .05, **kw)
    alone = torch.cat([attacks[name](model, x[i:i+1], y[i:i+1], .05, **kw) for i in range(4)])
    assert (whole-alone).abs().gt(1e-5).float().mean()<.02 # signs of gradients next to nothing may differ

@pytest.mark.parametrize('name', attacks)
def test_under_autocast_inference_mode_and_in_training(asked, name):
    model,x,y = asked
    with torch.no_grad(): clean = F.cross_entropy(model(x), y)
    model.train()
    before = {k: v.clone() for k,v in model.state_dict().items()}
    model.requires_grad_(False)
    for ctx in (torch.autocast('cpu', torch.bfloat16), torch.inference_mode(), torch.no_grad()):
        with ctx: a = attacks[name](model, x, y, .02)
        assert (a-x).abs().max()<=.02+1e-6 and model.training
        with torch.no_grad(): assert F.cross_entropy(model.eval()(a), y)>clean
        model.train()
    assert all(torch.equal(v, before[k]) for k,v in model.state_dict().items())
    model.requires_grad_(True).eval()

def test_left_as_it_was_after_an_exception(asked):
    model,x,y = asked
    model.train()
    h = model.pool.register_forward_pre_hook(lambda *_: 1/0)
    with pytest.raises(ZeroDivisionError): pgd(model, x, y, .1)
    h.remove()
    assert all(m.training for m in model.modules()) and all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()
    model.eval()

@pytest.mark.parametrize('k', [1e3,1e5])
def test_confident_pictures_are_attacked_in_half_precision_too(asked, k):
    "Where softmax says one and zero, the pixels that change are those that change in float64"
    model,x,_ = asked
    model = copy.deepcopy(model)
    with torch.no_grad():
        y = model(x).argmax(1)
        model.head.fc.weight.mul_(k), model.head.fc.bias.mul_(k)
        assert k<1e5 or model(x).softmax(1).gather(1, y[:,None]).min()==1 # the loss is nought, and so would be its gradient
    ref = copy.deepcopy(model).double()
    now = x.double().requires_grad_()
    said = ref(now)
    rest = said.masked_fill(F.one_hot(y, 5).bool(), -torch.inf)
    g, = torch.autograd.grad((rest.logsumexp(1)-said.gather(1, y[:,None])[:,0]).sum(), now) # the slope of the log of the odds
    for dtype,same in ((None,.99), (torch.float16,.95), (torch.bfloat16,.8)):
        with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None): a = fgsm(model, x, y, .02)
        inside = (x>.03)&(x<.97)&(g!=0)
        assert inside.flatten(1).any(1).all() and (torch.sign(a-x)==torch.sign(g))[inside].float().mean()>same

@pytest.mark.parametrize('norm', ['linf','l2'])
def test_what_is_allowed_in_closed_form(norm):
    "Back along the straight line (or side by side), then cut off at black and white"
    rng = np.random.default_rng(0)
    start,x = rng.random((6, 3, 4, 4)),rng.random((6, 3, 4, 4))*3-1
    want = []
    for s,p in zip(start, x):
        d = p-s
        d = np.clip(d, -.3, .3) if norm=='linf' else d*min(1, .3/np.sqrt((d**2).sum()))
        want.append(np.clip(s+d, 0, 1))
    got = _allowed(torch.from_numpy(x), torch.from_numpy(start), .3, norm)
    np.testing.assert_allclose(got.numpy(), np.stack(want), atol=1e-12)

@pytest.mark.parametrize('name', attacks)
def test_wrong_arguments_and_pixels_just_beyond(asked, name):
    model,x,y = asked
    f = attacks[name]
    a = f(model, x.clamp(min=.5)*(1+1e-7)/x.clamp(min=.5).max(), y, .01)
    assert a.max()<=1
    more = [] if name=='fgsm' else [(dict(steps=0),'steps=0'), (dict(steps=2.5),'steps=2.5'), (dict(alpha=float('nan')),'alpha=nan'), (dict(alpha=-1.),'alpha=-1')]
    for bad,said in [(dict(eps=-1),'eps=-1'), (dict(eps=float('nan')),'eps=nan'), (dict(eps='x'),"eps='x'"), (dict(eps=None),'eps=None'), (dict(norm='l1'),"norm='l1'"), (dict(norm=2),'norm=2'),
        (dict(y=y+2),'from 0 to 4'), (dict(y=y-1),'from 0 to 4'), (dict(y=y[:2]),'4 pictures'), (dict(y=y.float()),'y:'), (dict(y=None),'y:'), (dict(x=x*2),'from 0 to 1'), (dict(x=x*torch.nan),'from 0 to 1'), (dict(x=None),'from 0 to 1'),
        (dict(x=x[0]),'from 0 to 1'), *more]:
        was = {k: v.clone() for k,v in model.state_dict().items()}
        with pytest.raises(FineGrainedError, match=said): f(**{**dict(model=model, x=x, y=y, eps=.1), **bad})
        assert not model.training and all(torch.equal(v, was[k]) for k,v in model.state_dict().items())
