"Scores of maps, depths, calibration and what is left of a hidden part: against other roads to the same numbers"
import os
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from torch.nn import functional as F
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.all import fine_grained_data, toy_birds
from fgvc_fast.interpret.calibration import FineGrainedInterpretation
from fgvc_fast.interpret.features import FeatureHierarchy, _guessed
from fgvc_fast.interpret.score import CamReport, _blurred, _peak_ci, deletion_insertion, truth_of
from fgvc_fast.learner import fine_grained_learner
from fgvc_fast.models.model import fine_grained_model
from fgvc_fast.robust.occlude import hide

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def data(tmp_path_factory): return toy_birds(families=2, species=3, per_class=16, size=96, path=tmp_path_factory.mktemp('toys'))

def learner(data, size=64, **kw):
    set_seed(0)
    return fine_grained_learner(data.dls(size=size, bs=8, seed=0, num_workers=0, device='cpu', aug='none', **kw), 'toy_resnet', metrics=accuracy)

@pytest.mark.parametrize('crop', [None,'box'])
@pytest.mark.parametrize('size', [64, (48,96)])
def test_truth_is_where_the_loaders_put_it(data, size, crop):
    "Boxes and points of the same pictures, by way of the loaders' own `parts`"
    learn = learner(data, size, crop=crop)
    rows = list(data['valid'].index)
    h,w = (size,size) if isinstance(size, int) else size
    boxes,discs = truth_of(learn, data, rows, None)
    for parts,got in ((True,discs), ('box',boxes)):
        dls = data.dls(size=size, bs=64, num_workers=0, device='cpu', aug='none', crop=crop, parts=parts)
        where = dls.test_dl(rows).one_batch()[1].as_subclass(torch.Tensor)
        if parts is True:
            names = list(dls.parts)
            want = torch.stack([where[j,names.index(data.items.differs[i])] for j,i in enumerate(rows)])*torch.tensor([w,h])
            np.testing.assert_allclose(got[:,:2], want, atol=1e-3)
        else: np.testing.assert_allclose(got, where*torch.tensor([w,h,w,h]), atol=1e-3)

def test_deletion_and_insertion_against_a_loop():
    torch.manual_seed(0)
    model = fine_grained_model('resnet18', 4, pretrained=False, img_size=32).eval()
    x,maps,y = torch.rand(3, 3, 32, 32),torch.rand(3, 32, 32),torch.tensor([0,1,3])
    gone,back = deletion_insertion(model, x, maps, y, 8)
    soft = _blurred(x)
    for i in range(3):
        order = maps[i].flatten().argsort(descending=True)
        for k in range(9):
            a,b = x[i].clone().flatten(1),soft[i].clone().flatten(1)
            at = order[:round(k*1024/8)]
            a[:,at],b[:,at] = soft[i].flatten(1)[:,at],x[i].flatten(1)[:,at]
            with torch.no_grad(): p = model(torch.stack([a,b]).view(2, 3, 32, 32)).softmax(1)[:,y[i]]
            torch.testing.assert_close(torch.stack([gone[i,k], back[i,k]]), p, atol=1e-5, rtol=0)

@pytest.mark.parametrize('size', [(64,320), (320,64), (5,40)])
def test_deletion_and_insertion_of_pictures_that_are_not_square(size):
    "By hand, in double precision: a Gaussian, reflected at the edges, one line after the other; then pixel by pixel, and the area of trapezia"
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AvgPool2d((5,8)), torch.nn.Flatten(), torch.nn.LazyLinear(3)).double()
    x,y,steps = torch.rand(1, 3, *size).double(),torch.tensor([2]),4
    net(x)
    k = max(size)//4*2+1
    def lines(o, s): # along the last side
        r = min(k, 2*s-1)//2
        w = torch.exp(-.5*(torch.arange(-r, r+1).double()/(k/6))**2)
        return F.conv1d(F.pad(o, (r,r), mode='reflect'), (w/w.sum())[None,None])
    a = lines(x.reshape(-1, 1, size[1]), size[1]).reshape(x.shape)
    soft = lines(a.mT.reshape(-1, 1, size[0]), size[0]).reshape(a.mT.shape).mT
    maps = torch.rand(1, *size).double()
    gone,back = deletion_insertion(net, x, maps, y, steps)
    order,n,area = maps.flatten().argsort(descending=True).tolist(),size[0]*size[1],[0.,0.]
    for j,(start,end) in enumerate(((x,soft),(soft,x))):
        curve = []
        for i in range(steps+1):
            now = start.clone()
            for at in order[:round(i*n/steps)]: now[0,:,at//size[1],at%size[1]] = end[0,:,at//size[1],at%size[1]]
            with torch.no_grad(): curve.append(net(now).softmax(1)[0,2].item())
        np.testing.assert_allclose((gone,back)[j][0], curve, atol=1e-6)
        area[j] = sum((p+q)/2/steps for p,q in zip(curve, curve[1:]))
    np.testing.assert_allclose([torch.trapezoid(o, dx=1/steps).item() for o in (gone,back)], area, atol=1e-6)

def test_pointing_game_with_tolerance():
    "Zhang et al.: a hit where the peak is within some pixels of the mask; in loops"
    from fgvc_fast.interpret.score import pointing_game
    torch.manual_seed(0)
    maps,masks = torch.rand(12, 30, 40),torch.rand(12, 30, 40)>.995
    for tol in (0, 1, 3.5, 15):
        want = []
        for m,k in zip(maps, masks):
            peak = divmod(m.argmax().item(), 40)
            want.append(float(any((peak[0]-a)**2+(peak[1]-b)**2<=tol**2 for a,b in k.nonzero().tolist())))
        assert pointing_game(maps, masks, tol).tolist()==want
    assert 0<sum(want) and pointing_game(torch.ones(1, 5, 5), torch.ones(1, 5, 5)).item()==0
    for bad in ((maps, masks, -1), (maps, masks, float('nan')), (maps[0], masks), (maps*torch.nan, masks)):
        with pytest.raises(FineGrainedError): pointing_game(*bad)

def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr
    from fgvc_fast.interpret.score import _ranked
    torch.manual_seed(0)
    a,b = torch.rand(5, 6, 7).sub(.5).relu(),torch.rand(5, 6, 7).mul(4).round() # many places alike
    got = (_ranked(a)*_ranked(b)).sum(1)
    np.testing.assert_allclose(got, [spearmanr(p.flatten(), q.flatten())[0] for p,q in zip(a, b)], atol=1e-10)
    assert (_ranked(torch.ones(1, 4, 4))*_ranked(torch.ones(1, 4, 4))).sum().isnan()

def flat_map(v): return v.maps.new_ones(len(v.x), 3, 3)

@pytest.mark.parametrize('kw', [dict(), dict(head='cosine'), dict(pool='gem', branch=-2), dict(pool='parts', zoom=True), dict(pool='class_attention', blocks={-2: 'se', -1: 'cbam'}), dict(arch='vit_tiny_patch16_224', pool='part_tokens')], ids=str)
def test_all_that_is_named_is_made_random(kw):
    "After the last row no parameter is what it was; and the learner is"
    from fgvc_fast.interpret.score import _ever_more_random
    torch.manual_seed(0)
    kw = dict(arch='toy_resnet') | kw
    model = fine_grained_model(n_out=6, pretrained=False, img_size=64, **kw, **(dict(depth=2) if 'vit' in kw['arch'] else {}))
    for p in model.parameters(): p.data += .1*torch.rand_like(p)+.01 # as if trained
    was,names,left = {k: p.clone() for k,p in model.named_parameters()},[],[]
    for name in _ever_more_random(model):
        names.append(name)
        left.append({k for k,p in model.named_parameters() if torch.equal(p, was[k])})
    assert names==['head', *[f'and {o}' for o in model.body.group_names()[::-1]]] and not left[-1]
    assert {k.split('.')[0] for k in left[0]}=={'body'} and all(a>b for a,b in zip(left, left[1:]))

def test_a_flat_map_correlates_with_nothing(data):
    from test_cam import same, state
    learn = learner(data)
    interp = FineGrainedInterpretation.from_learner(learn)
    before,x,rng = state(learn),torch.rand(3, 3, 64, 64),torch.get_rng_state()
    with pytest.warns(UserWarning, match='flat_map.*same everywhere'): t = learn.cam_sanity_check(x, ['gradcam', flat_map])
    assert t.flat_map.isna().all() and t.gradcam.between(-1, 1).all() and torch.equal(rng, torch.get_rng_state())
    def broken(v): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.cam_sanity_check(x, [broken])
    assert torch.equal(rng, torch.get_rng_state())
    with pytest.raises(KeyboardInterrupt): interp.cam_report(methods=[broken], n=2)
    same(before, state(learn))

def test_report_of_each_question(data):
    "Each question is what `cam` answers when asked it"
    from fgvc_fast.interpret.cam import cam
    learn = learner(data)
    learn.model.head.fc.weight.data += .3*torch.randn(1, learn.model.head.fc.in_features)
    rows = list(data['valid'].index[:4])
    r = FineGrainedInterpretation.from_learner(learn).cam_report(methods='gradcam', asked=['label','score','contrast'], n=None, steps=0).scores.query("method=='gradcam'")
    boxes = truth_of(learn, data, rows, None)[0]
    from fgvc_fast.interpret.score import box_masks, energy_inside
    with torch.no_grad(): best = learn.model.eval()(learn.dls.test_dl(rows).one_batch()[0]).topk(2).indices.tolist()
    labels = [learn.dls.vocab.o2i[o] for o in data.items.label[rows]]
    likeliest = [a if a!=y else b for y,(a,b) in zip(labels, best)]
    for how,kw in dict(label=dict(target=labels), score=dict(target=labels, against=None), contrast=dict(target=[*zip(labels, likeliest)])).items():
        got = r[(r.asked==how)].set_index('item')['energy in box'].loc[rows]
        np.testing.assert_allclose(got, energy_inside(cam(learn, rows, **kw), box_masks(boxes, (64,64))), atol=1e-4)
    assert set(FineGrainedInterpretation.from_learner(learn).cam_report(methods='gradcam', asked='score', n=2, steps=0).scores.asked)=={'score',''}

def test_pictures_of_another_data_set_have_no_rows_here(data):
    "Row 3 there is not row 3 here: boxes and parts of other pictures would be taken for theirs"
    learn = learner(data)
    other = fine_grained_data(data.items.copy(), root=data.root, levels=data.levels).drop(data.items.index[:1])
    interp = FineGrainedInterpretation.from_learner(learn, dl=other.dls(size=64, bs=8, num_workers=0, device='cpu').valid)
    for ask in (interp.cam_report, interp.occlusion):
        with pytest.raises(FineGrainedError, match="no rows of the learner's data set"): ask()
    again = FineGrainedInterpretation.from_learner(learn, dl=learn.dls.test_dl(data['test'].index[::2], with_labels=True))
    assert again.rows()==list(data['test'].index[::2])

@pytest.mark.parametrize('how', ['shuffled', 'shuffled anew', 'cut short', 'train'])
def test_answers_are_in_the_order_of_the_pictures(data, how):
    "Whatever order a loader would deal them in: rows, labels and robustness are of the same pictures"
    learn = learner(data)
    rows = list(data['valid'].index)[::-1][:11]
    test_dl = learn.dls.test_dl(rows, with_labels=True, bs=4)
    dl = {'shuffled': learn.dls.test_dl(rows, with_labels=True, bs=4, shuffle=True), 'shuffled anew': test_dl.new(shuffle=True), 'cut short': test_dl.new(drop_last=True),
        'train': learn.dls.train}[how]
    interp = FineGrainedInterpretation.from_learner(learn, dl=dl)
    want = list(learn.dls.train.items) if how=='train' else rows
    assert interp.rows()==want and [learn.dls.vocab[o] for o in interp.targs]==data.items.label[want].tolist()
    clean = interp.robustness('fgsm', eps=[.01], corrupted=False).table.iloc[0]
    assert clean.pictures==len(want) and clean.accuracy==pytest.approx((interp.preds==interp.targs).float().mean().item())

def test_an_order_that_nobody_sees_is_refused(data):
    learn = learner(data)
    dl = learn.dls.test_dl(list(data['valid'].index), with_labels=True).new(get_idxs=lambda: reversed(range(len(data['valid']))))
    interp = FineGrainedInterpretation.from_learner(learn, dl=dl)
    with pytest.raises(FineGrainedError, match='in another order'): interp.rows()

def test_report_leaves_the_learner_as_it_was(data):
    from test_cam import same, state
    learn = learner(data)
    interp = FineGrainedInterpretation.from_learner(learn)
    learn.model.train()
    before = state(learn)
    report = interp.cam_report(methods=['gradcam', lambda v: v.maps.mean(1).relu()], layers=(None,'layer2'), n=5, steps=2)
    learn.cam_sanity_check(list(data['valid'].index[:4]), ['gradcam','layercam'], layer=-2)
    FeatureHierarchy.from_learner(learn).maps(list(data['valid'].index[:4]))
    interp.occlusion()
    same(before, state(learn))
    assert report.scores.groupby(['method','layer','asked']).size().eq(5).all() and set(report.names)=={'peak in box','energy in box','peak in part','energy in part','deletion','insertion'}
    assert report.to_markdown().count('|')%10==0 and '±' in report.to_markdown() and 'layer2' in repr(report)

def test_report_on_photographs():
    shared = Path(os.environ.get('FGVC_SHARED', '../shared'))/'data'/'cub50'/'CUB_200_2011'
    if not shared.exists(): pytest.skip(f'{shared} is not here (set FGVC_SHARED)')
    data = fine_grained_data(shared)
    learn = fine_grained_learner(data.subset(classes=3, per_class=8).dls(size=64, bs=8, num_workers=0, device='cpu', crop='box'), 'toy_resnet')
    t = FineGrainedInterpretation.from_learner(learn).cam_report(methods=['gradcam'], part='crown', asked=['label'], steps=0).table()
    assert t['energy in part']['mean'].between(0, 1).all() and t['peak in box']['mean'].between(0, 1).all()
    with pytest.raises(FineGrainedError, match='give `part`'): FineGrainedInterpretation.from_learner(learn).occlusion()

@pytest.mark.parametrize('arch,size', [('resnet18',64), ('swin_tiny_patch4_window7_224',64), ('vit_tiny_patch16_224',64), ('convnext_atto',64), ('mobilenetv2_100',64)])
def test_depths_of_every_kind_of_body(data, arch, size):
    import matplotlib.pyplot as plt
    dls = data.dls(size=size, bs=8, num_workers=0, device='cpu')
    fh = FeatureHierarchy.from_learner(fine_grained_learner(dls, arch, pretrained=False))
    maps = fh.maps(list(data['valid'].index[:3]))
    for s,m in zip(fh.model.body.stages, maps.values()): assert m.shape==(3,s.channels,size//s.reduction,size//s.reduction)
    fh.show(data['valid'].index[0], k=3)
    fh.plot_receptive_fields(list(data['valid'].index[:2]))
    if arch=='resnet18': fh.show_filters(8)
    plt.close('all')

def test_probes_follow_a_learner_that_trains_on(data):
    learn,pair = learner(data),tuple(data.vocab[:2])
    fh = FeatureHierarchy.from_learner(learn)
    rows = list(data['valid'].index)
    before = fh._rows(rows)
    assert fh._rows(rows) is before
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    now,fresh = fh._rows(rows),FeatureHierarchy.from_learner(learn)._rows(rows)
    for k in fh.stages: np.testing.assert_allclose(now[k], fresh[k], atol=1e-6)
    assert np.abs(now[fh.stages[-1]]-before[fh.stages[-1]]).max()>1e-4
    assert fh.linear_probes([pair]).shape==(1,len(fh.stages)+1)

def test_two_streams_have_no_stages(data):
    dls = data.dls(size=64, bs=8, num_workers=0, device='cpu')
    with pytest.raises(FineGrainedError, match='one body'): FeatureHierarchy.from_learner(fine_grained_learner(dls, ('resnet18','resnet18'), pretrained=False))

def test_temperature_is_that_of_least_loss(data):
    from scipy.optimize import minimize_scalar
    learn = learner(data)
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases(4)
        scores,y = learn.get_preds(act=lambda o: o)
        t = learn.calibrate()
        again = learn.calibrate() # from what was found
    best = np.exp(minimize_scalar(lambda l: F.cross_entropy(scores/np.exp(l), y).item(), bounds=(-2.5,2.5), method='bounded', options=dict(xatol=1e-6)).x)
    assert t==pytest.approx(best, rel=2e-3) and again==pytest.approx(t, rel=1e-4)
    with learn.no_bar(): torch.testing.assert_close(learn.get_preds(act=lambda o: o)[0], scores/t, rtol=1e-4, atol=1e-4)

def test_weights_of_before_there_was_a_temperature():
    model = fine_grained_model('toy_resnet', 3, pretrained=False, img_size=64)
    sd = {k: v for k,v in model.state_dict().items() if k!='temperature'}
    model.temperature.fill_(2.)
    model.load_state_dict(sd)
    assert model.temperature==1

def test_calibration_error_of_known_answers():
    "Three bins by hand"
    class Known(FineGrainedInterpretation):
        def __init__(self):
            self.probs,self.preds,self.targs = torch.tensor([.95,.95,.95,.95,.55,.55,1.]),torch.tensor([0,0,0,0,1,1,2]),torch.tensor([0,0,0,1,1,0,2])
    k = Known()
    assert k.ece(10)==pytest.approx((abs(4*.95+1-4)+2*abs(.55-.5))/7, abs=1e-6)
    assert list(k.calibration(10).pictures)==[2,5]

def test_nothing_is_hidden_where_nothing_is_known():
    x = torch.rand(2, 3, 20, 20)
    assert torch.equal(hide(x, np.full((2,3), np.nan)), x)
    y = hide(x, [[10,10,4]]*2)
    assert (y!=x).any(1).sum()==2*((torch.arange(20)+.5-10)[:,None]**2+(torch.arange(20)+.5-10)**2<16).sum()

def test_guessing_inside_a_family(data):
    t = FineGrainedInterpretation.from_learner(learner(data)).occlusion()
    assert np.allclose(t['guessing inside the family'], 1/3) and (t.family>=t.label).all() and t.pictures.nunique()==1

@pytest.mark.parametrize('k,n', [(40,40), (0,40), (39,40), (7,12)])
def test_a_share_has_a_width(k, n):
    "Of peaks inside, which are 0 or 1: as scipy's Wilson interval"
    from scipy.stats import binomtest
    o = binomtest(k, n).proportion_ci(method='wilson')
    hits = pd.Series([1.]*k+[0.]*(n-k)+[np.nan])
    assert _peak_ci(hits)==pytest.approx((o.high-o.low)/2, abs=1e-6)==_peak_ci(-hits)

def test_tables_of_hits_and_of_differences_of_hits():
    rows = [dict(method=m, layer='', asked='', item=i, **{'peak in box': float(v[i]), 'energy in box': .5}) for m,v in dict(a=[1]*8, b=[1]*8, c=[1]*4+[0]*4, center=[1]*8).items()
        for i in range(8)]
    report = CamReport(pd.DataFrame(rows))
    t = report.table()
    assert t['peak in box'].ci['a'].item()>.1 and t['energy in box'].ci['a'].item()<1e-9 # which is no share of pictures
    d = report.beats('c')
    assert d['peak in box']['mean']['a'].item()==.5 and (report.beats()['peak in box'].ci>=1/8).all()
    turn = pd.Series([1.,-1.]*4)
    assert _peak_ci(turn)>=1/8

def test_bands_of_guessing():
    "... as so many coins say, with what pairs share guessed alike"
    rng,n = np.random.default_rng(0),dict(a=4, b=12, c=6)
    right = {k: rng.binomial(v, .5, 40_000)/v for k,v in n.items()}
    for pairs in ([('a','b')], [('a','b'), ('a','c')]):
        score = np.mean([(right[x]+right[y])/2 for x,y in pairs], 0)
        assert _guessed([{k: n[k] for k in o} for o in pairs])==pytest.approx(2*score.std(), rel=.02)

def test_the_band_counts_each_picture_once():
    import matplotlib.pyplot as plt
    data = toy_birds_small()
    learn = fine_grained_learner(data.dls(size=32, bs=8, num_workers=0, device='cpu'), 'toy_resnet')
    v,n = list(data.vocab),data['valid'].label.value_counts()
    ax = FeatureHierarchy.from_learner(learn).plot_linear_probes([(v[0],v[1]), (v[0],v[2])])
    band = ax.patches[0].get_extents().transformed(ax.transData.inverted())
    assert f'{n[v[:3]].sum()} pictures' in str([o.get_text() for o in ax.get_legend().get_texts()]) and 'the mean' in ax.get_legend().get_texts()[-1].get_text()
    assert band.y1-.5==pytest.approx(.25*(4/n[v[0]] + 1/n[v[1]] + 1/n[v[2]])**.5, rel=1e-3)
    plt.close('all')

def toy_birds_small(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=32).split(valid=.4, seed=0)
