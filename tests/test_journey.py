"Whole journeys, as a user makes them: from files to a tested model and back"
import os, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat, Learner, ShortEpochCallback, accuracy, load_learner, nn
from fgvc_fast.all import CutMix, Mix, MixUp, Phase, fine_grained_data, fine_grained_learner

shared = Path(os.environ.get('FGVC_SHARED', '../shared'))
needs_cub = pytest.mark.skipif(not (shared/'data'/'cub50').is_dir(), reason=f'no photographs at {shared}/data/cub50 (FGVC_SHARED)')

@pytest.fixture(scope='module')
def birds(tmp_path_factory): return fine_grained_data('toy_birds', path=tmp_path_factory.mktemp('birds'), families=2, species=2, per_class=24, size=64)

def learner(data, **kwargs): return fine_grained_learner(data.dls(size=64, bs=16, num_workers=0, seed=0), 'toy_resnet', metrics=accuracy, **kwargs)

def test_folder_to_tested_model(birds, tmp_path):
    "A folder made by hand: a test put aside, trained in phases, tested, exported, loaded, asked again"
    for i in birds.items.index:
        p = tmp_path/'photos'/birds.items.label[i]/f'{i}.png'
        p.parent.mkdir(parents=True, exist_ok=True)
        Image.open(birds.path(i)).save(p)
    data = fine_grained_data(tmp_path/'photos').split(valid=.15, test=.25)
    assert data.check(progress=False).empty
    torch.manual_seed(0)
    learn = learner(data)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases([Phase('head', 3, lr=1e-2), Phase('all', 5, lr=2e-3)])
    assert len(learn.recorder.values)==8
    assert learn.test().top1.item() > .5 # four classes: chance is .25
    fn = tmp_path/'model.pkl'
    learn.path = tmp_path
    learn.export('model.pkl')
    other,path = load_learner(fn),data.path(0)
    with learn.no_bar(), other.no_bar(): a,b = learn.predict(path),other.predict(path)
    assert a[0]==b[0]
    torch.testing.assert_close(a[2], b[2])

@pytest.mark.parametrize('mix', [MixUp, CutMix, lambda: Mix(mixup=.4, cutmix=1.)], ids=['mixup','cutmix','both'])
@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss, CrossEntropyLossFlat, LabelSmoothingCrossEntropyFlat], ids=lambda o: o.__name__)
def test_mixing_with_any_loss(birds, mix, loss):
    "fastai's own fail together, and with a plain loss"
    func = loss()
    learn = learner(birds, loss_func=func)
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(2, cbs=mix())
    assert learn.loss_func is func
    assert np.isfinite([float(o) for o in learn.recorder.losses]).all()

def test_odd_pictures_work(tmp_path):
    "Greyscale, CMYK, palette, alpha, 16 bit, turned by EXIF: all in one batch"
    x = np.linspace(0, 255, 60*80).reshape(60,80).astype(np.uint8)
    grey,exif = Image.fromarray(x),Image.Exif()
    exif[0x0112] = 6
    saved = {'grey.jpg': grey, 'cmyk.jpg': grey.convert('CMYK'), 'palette.gif': grey.convert('P'), 'alpha.png': grey.convert('LA'), '16bit.png': Image.fromarray(x.astype(np.uint16)*257), 'rgb.png': grey.convert('RGB')}
    for c in ('a','b'):
        (tmp_path/c).mkdir()
        for nm,im in saved.items(): im.save(tmp_path/c/nm)
        grey.save(tmp_path/c/'turned.jpg', exif=exif)
    data = fine_grained_data(tmp_path, valid=.2)
    assert not len(data.check(progress=False).query('not usable'))
    dls = data.dls(size=32, aug='none', bs=14, num_workers=0)
    upright = {nm: dls.test_dl([tmp_path/'a'/nm], num_workers=0).one_batch()[0] for nm in [*saved, 'turned.jpg']}
    for nm in saved: assert (upright[nm]-upright['rgb.png']).abs().max() < .03, nm
    for nm,x32 in upright.items(): assert (dls.test_dl([Image.open(tmp_path/'a'/nm)], num_workers=0).one_batch()[0]-x32).abs().max() < .03, f'{nm}, opened'
    by_hand = Image.fromarray(x).transpose(Image.Transpose.ROTATE_270).crop((0,10,60,70)).resize((32,32), Image.Resampling.BILINEAR)
    turned = torch.tensor(np.asarray(by_hand))/255
    assert (upright['turned.jpg'][0,0]-turned).abs().max() < .03

def test_broken_file_is_named(birds, tmp_path):
    "Also when a worker process finds it"
    data = fine_grained_data(birds.items, root=birds.root)
    bad = tmp_path/'bad.jpg'
    bad.write_bytes(b'<html>404</html>')
    items = data.items.assign(path=str(bad))
    with pytest.raises(ValueError, match='bad.jpg is not a picture'): fine_grained_data(items, root=tmp_path).dls(size=32, num_workers=2).one_batch()

def test_front_door_is_lazy():
    "`import fgvc_fast` costs nothing; its names come when asked for"
    code = "import sys, fgvc_fast; assert 'torch' not in sys.modules and 'fastai' not in sys.modules; from fgvc_fast import fine_grained_learner, fine_grained_data; assert hasattr(fgvc_fast.FineGrainedData, 'dls')"
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)

def test_names_stay_fastai(birds):
    "A fastai learner, of whose methods five are ours: several processes, a lock that is given back, batches of one, batches that break off, and answers that are none"
    cls = type(learner(birds))
    assert issubclass(cls, Learner) and {o for o in vars(cls) if not o.startswith(('__','_orig_'))}=={'one_batch','_do_one_batch','validation_context','distrib_ctx','predict'}

@needs_cub
def test_real_photographs():
    "CUB's own files, the box crop, and weights whose padding and statistics are not the defaults"
    import timm
    from safetensors.torch import load_file
    data = fine_grained_data(shared/'data'/'cub50')
    assert data.items.split.value_counts().to_dict()==dict(train=1350, valid=150, test=1389) and len(data.vocab)==50
    weights = shared/'weights'/'mobilenetv2_100.imagenet1k.safetensors'
    dls = data.dls(size=96, bs=8, crop='box', num_workers=0, seed=0)
    learn = fine_grained_learner(dls, 'mobilenetv2_100', weights=weights, stats=([.5]*3, [.5]*3), pad_type='same')
    ref = timm.create_model('mobilenetv2_100', pad_type='same')
    ref.load_state_dict(load_file(weights))
    x = dls.valid.one_batch()[0]
    with torch.no_grad():
        want = ref.eval().forward_features((x.as_subclass(torch.Tensor)-.5)/.5)
        torch.testing.assert_close(learn.model.eval().maps(x), want, rtol=1e-3, atol=1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, cbs=ShortEpochCallback(.02))
    assert np.isfinite(float(learn.recorder.losses[-1]))
