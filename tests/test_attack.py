"Attacks: against captum, against a slow loop, on every kind of model, and the model as it was"
import copy
import pytest, torch
from torch.nn import functional as F
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.robust.attack import attacks, bim, fgsm, pgd

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
