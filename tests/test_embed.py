"Measures of embeddings against a slow loop and pytorch-metric-learning; neighbours, prototypes, and batches with several of a class"
import math
import numpy as np, pandas as pd, pytest, torch
from fgvc_fast.all import (FineGrainedData, balanced_order, fine_grained_data, fine_grained_learner, knn_accuracy, map_at_r, metric_loss, nearest, r_precision,
    recall_at_k)
from fgvc_fast.core import FineGrainedError
from fgvc_fast.embed import retrieval_measures
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures('one_thread')

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def slow(embeddings, targs, k, ref=None, ref_targs=None):
    "recall@k, R-precision, mAP@R and k-NN accuracy, picture by picture in float64"
    embeddings = embeddings.double().numpy()
    other,own = (embeddings,targs) if ref is None else (ref.double().numpy(),ref_targs)
    recall,rp,ap,knn = [],[],[],[]
    for i,(q,t) in enumerate(zip(embeddings, targs.tolist())):
        cos = [-np.inf if ref is None and i==j else q@o/np.linalg.norm(q)/np.linalg.norm(o) for j,o in enumerate(other)]
        order = [j for j in np.argsort(cos)[::-1] if cos[j]>-np.inf]
        said = own[order].tolist()
        counts = {c: said[:k].count(c) for c in said[:k]}
        knn.append(next(c for c in said[:k] if counts[c]==max(counts.values()))==t)
        r = said.count(t)
        if not r: continue
        hits = [o==t for o in said]
        recall.append(any(hits[:k])), rp.append(sum(hits[:r])/r)
        ap.append(sum(sum(hits[:n])/n for n in range(1, r+1) if hits[n-1])/r)
    return [np.mean(o) for o in (recall, rp, ap, knn)]

@pytest.mark.parametrize('k', (1, 4, 7))
@pytest.mark.parametrize('split', (False, True), ids=('one another','references'))
def test_measures_are_the_loop(k, split):
    embeddings,y = torch.randn(90, 4),torch.cat([torch.randint(6, (89,)), torch.tensor([6])]) # the last is alone in its class
    ref = (torch.randn(50, 4),torch.randint(5, (50,))) if split else () # here class 5 is not to be found
    got = [recall_at_k(embeddings, y, k, *ref), r_precision(embeddings, y, *ref), map_at_r(embeddings, y, *ref), knn_accuracy(embeddings, y, k, *ref)]
    np.testing.assert_allclose(got, slow(embeddings, y, k, *ref), atol=1e-9)
    assert all(.02<o<.98 for o in got)

def test_measures_are_those_of_pytorch_metric_learning():
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN
    calc = AccuracyCalculator(include=('precision_at_1','r_precision','mean_average_precision_at_r'), knn_func=CustomKNN(CosineSimilarity()), device=torch.device('cpu'))
    embeddings,y,ref,ref_y = torch.randn(80, 5),torch.randint(6, (80,)),torch.randn(70, 5),torch.randint(6, (70,))
    for a in ((), (ref, ref_y)):
        want = calc.get_accuracy(embeddings, y, *a)
        got = dict(precision_at_1=recall_at_k(embeddings, y, 1, *a), r_precision=r_precision(embeddings, y, *a),
            mean_average_precision_at_r=map_at_r(embeddings, y, *a))
        for k,v in got.items(): assert math.isclose(v, want[k], abs_tol=1e-6), k

def test_chunks_make_no_difference():
    embeddings,ref = torch.randn(23, 4),torch.randn(9, 4)
    for a in (None, ref):
        whole, = nearest(embeddings, 5, a)
        parts = list(nearest(embeddings, 5, a, chunk=7))
        torch.testing.assert_close(torch.cat([o.values for o in parts]), whole.values)
        assert torch.equal(torch.cat([o.indices for o in parts]), whole.indices)
    assert next(nearest(embeddings, 50, ref)).indices.shape==(23, 9)

def test_no_square_of_the_pictures_is_held(monkeypatch):
    biggest,orig = [],torch.Tensor.__matmul__
    def note(a, b):
        res = orig(a, b)
        biggest.append(res.numel())
        return res
    monkeypatch.setattr(torch.Tensor, '__matmul__', note)
    recall_at_k(torch.randn(5000, 4), torch.randint(500, (5000,)), 1)
    assert max(biggest)<=1024*5000 and len(biggest)==5

def test_half_precision_rows():
    embeddings,y = torch.randn(40, 8).bfloat16(),torch.randint(4, (40,))
    assert map_at_r(embeddings, y)==map_at_r(embeddings.float(), y)

def test_semihard_triplets_are_the_loop():
    embeddings,y,m = F.normalize(torch.randn(9, 3)),torch.tensor([0,0,0,1,1,1,2,2,2]),.2
    d,want = torch.cdist(embeddings, embeddings),[]
    for a in range(9):
        for p in range(9):
            for n in range(9):
                if a!=p and y[a]==y[p] and y[n]!=y[a] and 0 < d[a,n]-d[a,p] <= m: want.append((m+d[a,p]-d[a,n]).item())
    want = [o for o in want if o>0] # the mean over those that teach something
    assert math.isclose(metric_loss('triplet', 3, 3)(embeddings, y).item(), np.mean(want), rel_tol=1e-4)

def test_supcon_is_the_loop():
    embeddings,y = torch.randn(6, 4).double(),torch.tensor([0,1,0,1,2,2])
    z,total = F.normalize(embeddings),[]
    for i in range(6):
        sim = (z @ z[i]/.1).exp()
        others = sum(sim[j] for j in range(6) if j!=i)
        total.append(np.mean([-(sim[p]/others).log().item() for p in range(6) if p!=i and y[p]==y[i]]))
    assert math.isclose(metric_loss('supcon', 4, 3)(embeddings, y).item(), np.mean(total), rel_tol=1e-6)

@pytest.mark.parametrize('per_class', (1, 2, 4))
def test_balanced_batches_have_as_many_of_each(per_class):
    y = np.repeat(np.arange(5), [40,3,9,20,8])
    order = balanced_order(y, np.random.default_rng(0), per_class)
    assert len(order)==len(y)
    for i in range(0, len(y), per_class): assert len(set(y[order[i:i+per_class]]))==1
    blocks = y[order].reshape(-1, per_class)[:,0]
    for i in range(0, len(blocks)//5*5, 5): assert sorted(blocks[i:i+5])==list(range(5))
    assert not np.array_equal(blocks[:5], blocks[5:10]) or not np.array_equal(blocks[5:10], blocks[10:15])

def test_one_of_each_is_what_it_was():
    y = np.repeat(np.arange(4), [7,2,5,6])
    rng = np.random.default_rng(3)
    rounds = np.stack([np.concatenate([rng.permutation(np.flatnonzero(y==c)) for _ in range(-(-5//(y==c).sum()))])[:5] for c in range(4)], 1)
    assert np.array_equal(balanced_order(y, np.random.default_rng(3)), rng.permuted(rounds, axis=1).ravel())

@pytest.fixture(scope='module')
def data(): return fine_grained_data('toy_birds', families=2, species=2, per_class=12, size=64)

def test_loaders_give_them(data):
    dls = data.dls(64, bs=8, num_workers=0, per_class=4, seed=0)
    for dl in (dls.train, dls.train.new()):
        for _,y in dl: assert sorted(y.bincount().tolist())[-2:]==[4,4]
    with pytest.raises(FineGrainedError, match='per_class=3 does not divide a batch of 8'): data.dls(64, bs=8, per_class=3)

@pytest.fixture(scope='module')
def learn(data):
    learn = fine_grained_learner(data.dls(64, bs=8, num_workers=0), 'toy_resnet')
    learn.remove_cb(learn.progress)
    with learn.no_logging(): learn.fit(1, 1e-3)
    return learn

def test_neighbours_are_the_nearest_rows(learn, data):
    dl = learn.dls.test_dl(list(learn.dls.train_ds.items))
    with torch.no_grad(): embeddings = F.normalize(torch.cat([learn.model.eval().features(x) for x, in dl]).as_subclass(torch.Tensor))
    i = int(learn.dls.valid_ds.items[0])
    with torch.no_grad(): q = F.normalize(learn.model.features(learn.dls.test_dl([i]).one_batch()[0]).as_subclass(torch.Tensor))[0]
    cos = (embeddings @ q).numpy()
    want = np.argsort(-cos)[:5]
    got = learn.retrieve(i, 5).df
    assert got['item'].tolist()==[learn.dls.train_ds.items[j] for j in want]
    np.testing.assert_allclose(got.cosine, cos[want], atol=1e-5)
    assert got.label.tolist()==data.items.label[got['item']].tolist()

def test_embeddings_follow_the_weights(learn):
    embeddings = learn.embeddings()[0]
    assert torch.equal(learn.embeddings()[0], embeddings)
    with learn.no_logging(): learn.fit(1, 1e-3)
    new = learn.embeddings()[0]
    assert not torch.equal(new, embeddings)
    assert learn.model.traces==[]

def test_metrics_of_retrieval(learn):
    (v,vy),(t,ty) = learn.embeddings('valid'),learn.embeddings()
    df = learn.retrieval_metrics((1,3))
    np.testing.assert_allclose(df.iloc[1], [recall_at_k(v, vy, 1, t, ty), recall_at_k(v, vy, 3, t, ty), map_at_r(v, vy, t, ty), r_precision(v, vy, t, ty),
        knn_accuracy(v, vy, 3, t, ty)])
    assert list(df.index)==['among one another','among training pictures']

def test_prototypes_are_class_means(learn, data):
    embeddings,y = learn.embeddings()
    files = [data.path(int(i)) for i in learn.dls.valid_ds.items[:2]]
    birds = learn.prototypes({'Nobody': files})
    assert birds.vocab==[*learn.dls.vocab, 'Nobody'] and len(learn.dls.vocab)==4
    for c in range(4): torch.testing.assert_close(birds.embeddings[c], F.normalize(embeddings[y==c].mean(0), dim=0))
    one,raw,same = [learn.prototypes({'Nobody': o}).embeddings[-1] for o in (np.asarray(data.picture(0)), bytearray(data.path(0).read_bytes()), [data.path(0)])]
    torch.testing.assert_close(raw, same)
    torch.testing.assert_close(one, same) # an array is one picture, and not many rows of pixels
    said = birds.predict(files)
    assert said.label.tolist()==['Nobody']*2 and (said.farther>0).all()
    with pytest.raises(FineGrainedError, match='knows that class already'): learn.prototypes({learn.dls.vocab[0]: files})

def test_no_file_is_its_own_neighbour(learn, data, tmp_path):
    "However it is called: its row, another row of it, its path, a link to it"
    i = int(learn.dls.train_ds.items[0])
    (link := tmp_path/'link.jpg').symlink_to(data.path(i).resolve())
    for o in (i, data.path(i), str(data.path(i)), link): assert i not in learn.retrieve(o, 400).df['item'].tolist()
    one,many = learn.retrieve(i, 3).df,learn.retrieve(i, 10**6).df
    assert len(many)==len(learn.dls.train_ds)-1 and many['item'].tolist()[:3]==one['item'].tolist()
    half = data.items.assign(split=['train' if o==i or o%2 else 'valid' for o in data.items.index])
    twice = FineGrainedData(pd.concat([half, half], ignore_index=True), data.root, data.levels) # a row for each of two boxes
    own,learn.dls = learn.dls,twice.dls(64, bs=8, num_workers=0)
    try:
        df = learn.retrieve(i, 5).df
        assert i%len(data.items) not in (df['item']%len(data.items)).tolist() and (df.cosine<1-1e-6).all()
        (v,vy),(t,ty) = learn.embeddings('valid'),learn.embeddings()
        files = torch.tensor([int(o)%len(data.items) for o in learn.dls.valid_ds.items])
        cos = (v@v.T).masked_fill(files[:,None]==files, -2)
        got = learn.retrieval_metrics((1,)).iloc[0]
        np.testing.assert_allclose(got['recall@1'], (vy[cos.argmax(1)]==vy).double().mean(), atol=1e-6)
        assert got['recall@1']<1
    finally: learn.dls = own

def test_files_are_left_out_of_all_measures():
    "As if, for each row, the others of its file were not there"
    embeddings,y,files = torch.randn(30, 3),torch.randint(3, (30,)),torch.randint(9, (30,))
    some = [(i, (files!=files[i]).nonzero()[:,0]) for i in range(30)]
    one_by_one = [retrieval_measures(embeddings[i:i+1], y[i:i+1], (1,4), embeddings[o], y[o]) for i,o in some]
    for k,v in retrieval_measures(embeddings, y, (1,4), files=[files]).items(): np.testing.assert_allclose(v, np.nanmean([o[k] for o in one_by_one]))
    for k,v in retrieval_measures(embeddings, y, (1,4), embeddings, y, files=[files,files]).items():
        np.testing.assert_allclose(v, np.nanmean([o[k] for o in one_by_one]))

@pytest.mark.parametrize('t', (0, 1))
def test_a_row_without_neighbours(t):
    y = torch.tensor([t])
    assert all(math.isnan(f(torch.randn(1, 4), y)) for f in (knn_accuracy, recall_at_k, r_precision, map_at_r))
