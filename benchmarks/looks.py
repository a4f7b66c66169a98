"""What a frozen body's closer looks are worth, by cross-validation on the pictures that are not for the test: an experiment that `pool='closer'` was chosen by

    python benchmarks/looks.py

50 classes of CUB, MobileNetV2, pictures of 448 px. Second moments are those in the 64 main directions of the maps of 160 training pictures. Each row is what the head sees; discriminant analysis at its best strength, 5 folds drawn twice. `cost` counts passes at 224 px. The test split is not read.
"""
import torch
from fgvc_fast.all import fine_grained_learner
from fgvc_fast.models.closer import CloserPool, closer_box, cube_mean, cut_square
from fgvc_fast.train.cached_features import frozen_maps
from fgvc_fast.train.solve import Discriminant
from sklearn.model_selection import StratifiedKFold
from torch.nn import functional as F
from _table import cub50, table

half = 224,224
def within(box, inner):
    "`inner`, a box in what `box` holds, as one of the whole picture"
    return torch.cat([box[:,:2]+box[:,2:]*(inner[:,:2]-.5), box[:,2:]*inner[:,2:]], 1)

def seen(x, body, pool):
    "What there is to choose from, of pictures `x`: {name: rows}"
    small = F.interpolate(x, half, mode='area')
    maps,mid = body(small),body(F.interpolate(x, 320, mode='bilinear', antialias=True))
    def near(box, x=x): return body(cut_square(x, box, half))
    box = closer_box(maps)
    look = near(box)
    last = near(within(box, closer_box(look)))
    def moments(*ms): return pool.moments(torch.cat([o.flatten(2) for o in ms], 2))
    res = {'mean': maps.mean((2,3)), 'whole': cube_mean(maps), '320 px': cube_mean(mid), 'look': cube_mean(look), 'closer still': cube_mean(last), 'moments': moments(maps), 'moments of all three': moments(maps, look, last),
        'look by 320 px': cube_mean(near(closer_box(mid)))}
    for keep in (.6,.7,.9): res[f'look of {keep:.0%}'] = cube_mean(near(closer_box(maps, keep)))
    other = body(small.flip(3))
    return res | {'mirrored': cube_mean(other), 'look, mirrored': cube_mean(near(closer_box(other), x.flip(3)))}

def best(x, y, twin=None, seeds=2):
    "Cross-validated accuracy % at the best shrinkage, for each drawing of folds; learned from rows `twin` too, and both asked, if given"
    res = []
    for seed in range(seeds):
        hits = {}
        for a,b in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y):
            own,targs = (x[a],y[a]) if twin is None else (torch.cat([x[a],twin[a]]),y[a].repeat(2))
            m,s = own.mean(0),own.std(0)+1e-5
            d = Discriminant((own-m)/s, targs, 50)
            for shrink in (.3,.5,.7,.8,.9,.95):
                w,c = d.weights(shrink)
                said = sum(F.linear((o[b]-m)/s, w, c) for o in (x, twin) if o is not None)
                hits[shrink] = hits.get(shrink, 0)+(said.argmax(1)==y[b]).sum().item()
        res.append(100*max(hits.values())/len(y))
    return ', '.join(f'{o:.1f}' for o in res)

def main():
    data,body = cub50()
    learn = fine_grained_learner(data.dls(448, cache=False, num_workers=1), **body)
    model,got,targs = learn.model.eval(),[],[]
    pool = CloserPool(model.body, second=64)
    pool.find_directions(frozen_maps(fine_grained_learner(data.dls(224, cache=False, num_workers=1), **body)))
    with torch.inference_mode():
        for dl in learn.dls.loaders:
            dl = dl.new(shuffle=False, drop_last=False, bs=16)
            with dl.dataset.set_split_idx(1):
                for x,y in dl:
                    got.append(seen(model.norm(x.as_subclass(torch.Tensor)), model.body, pool)), targs.append(y.as_subclass(torch.Tensor))
    rows,y = {k: torch.cat([o[k] for o in got]).clone() for k in got[0]},torch.cat(targs).clone()
    def of(*names): return torch.cat([rows[o] for o in names], 1)
    kinds = [(1, 'mean'), (1, 'whole'), (1, 'whole', 'moments'), (2, '320 px'), (2, 'look'), (2, 'whole', 'look'), *[(2, 'whole', f'look of {o} %') for o in (60,70,90)], (3, '320 px', 'look by 320 px'),
        (3, 'whole', 'look', 'look of 70%'), (3, 'whole', 'look', 'closer still'), (3, 'whole', 'look', 'closer still', 'moments of all three')]
    res = []
    for cost,*names in kinds:
        names = [o.replace(' %', '%') for o in names]
        res.append({'what the head sees': ' + '.join(names), 'cost': cost, 'right %': best(of(*names), y)})
    res.append({'what the head sees': 'whole + look, mirrored too', 'cost': 4, 'right %': best(of('whole','look'), y, of('mirrored','look, mirrored'))})
    print(data), table(res)

if __name__=='__main__': main()
