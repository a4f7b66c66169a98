"Whatever makes a figure of what a network says stops where that is NaN, and says of how many pictures"
import math
import pytest, torch
from contextlib import contextmanager
from fastai.callback.core import Callback
from fgvc_fast.all import (FeatureHierarchy, FineGrainedInterpretation, fine_grained_data, fine_grained_learner, fine_grained_model, knn_accuracy, load_bundle,
    map_at_r, nearest, r_precision, recall_at_k)
from fgvc_fast.core import FineGrainedError
from fgvc_fast.study.all import measure

interp_of = FineGrainedInterpretation.from_learner

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(scope='module')
def learn():
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64).split(valid=.4)
    res = fine_grained_learner(data.dls(32, bs=8, num_workers=0), 'toy_resnet', amp=None)
    res.remove_cb(res.progress)
    return res

@contextmanager
def spoilt(weight, v):
    was = weight.data.clone()
    weight.data.fill_(v)
    try: yield
    finally: weight.data.copy_(was)

asked = dict(test=lambda l: l.test(), interpretation=FineGrainedInterpretation.from_learner, embeddings=lambda l: l.embeddings(),
    retrieve=lambda l: l.retrieve(0), retrieval_metrics=lambda l: l.retrieval_metrics(),
    prototypes=lambda l: l.prototypes(), calibrate=lambda l: l.calibrate(), robustness=lambda l: interp_of(l).robustness(eps=.1, corrupted=False),
    occlusion=lambda l: interp_of(l).occlusion(), predict=lambda l: l.predict(0), measure=measure,
    answer_level=lambda l: l.answer_level([0]), level_coverage=lambda l: interp_of(l).level_coverage(), plot_embeddings=lambda l: l.plot_embeddings())
of_body = dict(maps=lambda f, o: f.maps(o), top_activations=lambda f, o: f.top_activations(-1, 0), receptive_fields=lambda f, o: f.receptive_fields(o),
    linear_probes=lambda f, o: f.linear_probes(tuple(f.learn.dls.vocab[:2])))

@pytest.mark.parametrize('what', asked)
def test_of_all(learn, what):
    with spoilt(next(learn.model.head.parameters()), math.nan), pytest.raises(FineGrainedError, match=r'of (\d+) of \1 pictures is NaN'): asked[what](learn)

@pytest.mark.parametrize('what', of_body)
def test_maps(learn, what):
    f = FeatureHierarchy.from_learner(learn)
    with spoilt(next(learn.model.body.parameters()), math.nan), pytest.raises(FineGrainedError, match='pictures is NaN'): of_body[what](f, list(learn.dls.valid.items)[:2])

def test_of_some(learn):
    class One(Callback):
        def before_batch(self):
            if self.iter==0: self.learn.xb = (self.xb[0].clone().index_fill_(0, torch.tensor([2]), math.nan),)
    n = len(learn.dls.valid_ds)
    with learn.added_cbs(One()), pytest.raises(FineGrainedError, match=f'of 1 of {n} pictures'): FineGrainedInterpretation.from_learner(learn)

def test_of_an_attacked_picture(learn):
    def worst(net, x, y, eps): return x*math.nan
    with pytest.raises(FineGrainedError, match='of 8 of 8 pictures'): interp_of(learn).robustness(attack=worst, eps=.1, corrupted=False)

def test_a_bundle(learn, tmp_path):
    learn.save_bundle(tmp_path/'good')
    b = load_bundle(tmp_path/'good', device='cpu')
    next(b.model.parameters()).data.fill_(math.nan)
    with pytest.raises(FineGrainedError, match='of 1 of 1 pictures'): b.predict(learn.dls.data.path(0))
    with spoilt(next(learn.model.head.parameters()), math.nan), pytest.raises(FineGrainedError, match='pictures is NaN'): learn.save_bundle(tmp_path/'bad')

def test_a_class_that_is_ruled_out_is_an_answer(learn):
    class Without(Callback):
        def after_pred(self): self.learn.pred = self.pred.index_fill(1, torch.tensor([3]), -math.inf)
    with learn.added_cbs(Without()): assert not (FineGrainedInterpretation.from_learner(learn).preds==3).any()

@pytest.mark.parametrize('v', (math.nan, math.inf))
def test_a_file_of_weights(learn, tmp_path, v):
    sd = {k: o.clone() for k,o in learn.model.body.model.state_dict().items()}
    name = [k for k,o in sd.items() if o.is_floating_point()][3]
    sd[name].view(-1)[0] = v
    torch.save(sd, tmp_path/'w.pth')
    with pytest.raises(FineGrainedError, match=f"w.pth': {name} holds NaN or infinity"): fine_grained_model('toy_resnet', 4, weights=tmp_path/'w.pth')

def test_rows(learn):
    rows,y = torch.eye(4),torch.arange(4)//2
    rows[1,1] = math.nan
    for f in (recall_at_k, r_precision, map_at_r, knn_accuracy):
        with pytest.raises(FineGrainedError, match='1 of 4 rows hold NaN'): f(rows, y)
    with pytest.raises(FineGrainedError, match='1 of 4 rows'): list(nearest(torch.eye(4), 1, rows))
